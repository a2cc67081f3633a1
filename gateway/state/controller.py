"""Who does what only one worker of the fleet may do: a lease with a fencing token, and writes that only its holder can make.

The lease is renewed by its holder and taken by whoever asks when it has run out, on the server's time. Each new holder has a larger token
than all before. A holder that was paused and wakes up is not one any more, whatever it believes: its writes name its token, and the store
refuses those whose token does not hold the lease at that very moment.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from gateway.state.looks import again
from gateway.state.names import Names
from gateway.state.store import Arg, Script, Store, StoreError

log = logging.getLogger("slo_gateway")

HOLDS_S = 1.5
"""how long the lease stands without renewal"""
EVERY_S = 0.5
"""between renewals, and between looks of the others: a crashed holder is followed within the sum of both"""

_LEASE = """
-- KEYS: lease, fence. ARGV: worker, ms it holds. The token, 0 when another worker holds it.
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'table' then redis.call('DEL', KEYS[1]); held = false end
local token = held and string.match(held, '^(%d+) ')
if token and #token > 15 then token = nil end -- not one of ours
if token and string.sub(held, #token + 2) == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return tonumber(token)
end
if token then return 0 end
-- Later than every token before, also on a server that has lost the fence: its time goes on.
local time, last = redis.call('TIME'), redis.pcall('GET', KEYS[2])
last = type(last) == 'string' and tonumber(string.match(last, '^%d+$')) or 0
if last > 2 ^ 52 then last = 0 end
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local new = string.format('%.0f', math.max(last + 1, now))
redis.call('SET', KEYS[2], new)
redis.call('SET', KEYS[1], new .. ' ' .. ARGV[1], 'PX', ARGV[2])
return tonumber(new)
"""
_PUT = """
-- KEYS: lease, the key to write. ARGV: '<token> <worker>', value, ms to keep it. 1 when written, 0 when that is not the holder.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
"""
_LEAVE = """
-- KEYS: lease. ARGV: '<token> <worker>'.
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0
"""


def _lease_here(values: dict[str, Any], keys: Sequence[str], args: Sequence[Arg], now_s: float) -> int:
    worker, until_s = str(args[0]), now_s + float(args[1]) / 1000.0
    held = values.get(keys[0], (b"", 0.0))[0]
    token, _, holder = held.decode().partition(" ") if isinstance(held, bytes) else ("", "", "")
    if token and holder != worker:
        return 0
    if not token:
        last = values.get(keys[1], (b"0", 0.0))[0]
        token = str(int(last) + 1)
        values[keys[1]] = (token.encode(), float("inf"))
    values[keys[0]] = (f"{token} {worker}".encode(), until_s)
    return int(token)


def _put_here(values: dict[str, Any], keys: Sequence[str], args: Sequence[Arg], now_s: float) -> int:
    if values.get(keys[0], (b"", 0.0))[0] != str(args[0]).encode():
        return 0
    values[keys[1]] = (args[1], now_s + float(args[2]) / 1000.0)
    return 1


def _leave_here(values: dict[str, Any], keys: Sequence[str], args: Sequence[Arg], now_s: float) -> int:
    if values.get(keys[0], (b"", 0.0))[0] == str(args[0]).encode():
        del values[keys[0]]
    return 0


LEASE = Script(_LEASE, _lease_here)
PUT = Script(_PUT, _put_here)
LEAVE = Script(_LEAVE, _leave_here)


class ControllerLease:
    """One worker's side of it. `changed` is told when this worker becomes the controller, or no longer is."""

    def __init__(
        self,
        store: Store,
        names: Names,
        worker: str,
        *,
        holds_s: float = HOLDS_S,
        changed: Callable[[bool], object] = lambda holds: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.token = 0
        self._store = store
        self._names = names
        self._worker = worker
        self._holds_s = holds_s
        self._changed = changed
        self._clock = clock
        self._until_s = 0.0
        self._told = False

    def held(self) -> bool:
        """Is this worker the controller, as far as it can know? What must be sure goes through `put`."""
        return self.token > 0 and self._clock() < self._until_s

    async def run(self) -> None:
        """Renew, for ever."""
        await again(EVERY_S, "controller lease", self.renew)

    async def renew(self) -> bool:
        """Hold on to the lease, or try to get it. False as well when there was no answer in time."""
        asked_at_s = self._clock()
        try:
            token = await self._store.run(LEASE, [self._names.controller, self._names.fence], [self._worker, int(self._holds_s * 1000)])
            self.token = token if isinstance(token, int) else 0
            self._until_s = asked_at_s + self._holds_s
        except StoreError as error:
            log.debug("controller lease: %s", error)
        holds = self.held()
        if holds is not self._told:
            self._told = holds
            log.info("this worker is %s the controller of the fleet", "now" if holds else "no longer")
            self._changed(holds)
        return holds

    async def keep(self) -> bool:
        """Is this worker the controller? One that was and could not renew in time, on a busy machine, is it again unless another one is."""
        return self.held() or (self.token > 0 and await self.renew())

    async def put(self, key: str, value: bytes, ttl_s: float) -> bool:
        """Write as the controller. False when another one holds the lease by now, and nothing is written. StoreError as of the store."""
        if not self.token:
            return False
        return bool(await self._store.run(PUT, [self._names.controller, key], [self._claim, value, max(int(ttl_s * 1000), 1)]))

    async def leave(self) -> None:
        """Let another worker have it at once."""
        if self.token:
            try:
                await self._store.run(LEAVE, [self._names.controller], [self._claim])
            except StoreError as error:
                log.debug("controller lease: %s", error)
        self.token = 0

    @property
    def _claim(self) -> str:
        return f"{self.token} {self._worker}"
