"""Turns between tenants are fair over the fleet: what a tenant is served by one worker counts when it waits at another one.

Each worker tells four times a second how many tokens every tenant has been served from its queues, ever; the others move those tenants'
turns on by what was added since they last looked. A worker that is seen for the first time is a beginning, not a debt; and so is
everybody for a worker where nobody has waited for a while, which does not look.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from heapq import nlargest

import msgspec

from gateway.core.queues import Queues
from gateway.state.looks import again
from gateway.state.names import Names
from gateway.state.store import Store

log = logging.getLogger("slo_gateway")

EVERY_S = 0.25
RESTS_S = 2.0
"""after so long without anybody who waits, turns matter no more"""
KEPT_S = 150.0
VERSION = 1
MOST_ROWS = 500
"""tenants of a class that a worker tells of: those it has served most"""
MOST_TOKENS = 1e9
"""between two looks; more is not true"""

Row = tuple[str, str, str, float]  # model, class, tenant, tokens


class Told(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What a worker has served, ever."""

    version: int
    rows: list[Row]


_decoder = msgspec.msgpack.Decoder(Told)


class Turns:
    """One worker's side of it. `unix` tells wall time."""

    def __init__(self, queues: Queues, store: Store, names: Names, worker: str, *, unix: Callable[[], float]) -> None:
        self._queues = queues
        self._store = store
        self._names = names
        self._worker = worker
        self._unix = unix
        self._seen: dict[str, dict[tuple[str, str, str], float]] = {}  # by worker
        self._told: list[Row] | None = None
        self._told_minute = -1
        self._waited_at_s = float("-inf")  # when somebody was last seen waiting here

    async def run(self) -> None:
        """Tell and look, for ever."""
        await again(EVERY_S, "turns", self.look)

    async def look(self) -> None:
        """Tell what was served here, and count what was served elsewhere."""
        now_s = self._unix()
        minute = int(now_s // 60)
        rows = list(self._queues.paid())
        if len(rows) > MOST_ROWS:
            rows = nlargest(MOST_ROWS, rows, key=lambda row: row[3])
        # What nobody waits for changes nobody's turn: a fleet without queues tells its bare existence, once a minute.
        if rows != self._told or minute != self._told_minute:
            await self._store.put_fields(self._names.turns(minute), {self._worker: msgspec.msgpack.encode(Told(VERSION, rows))}, KEPT_S)
            self._told, self._told_minute = rows, minute
        if not self._queues.waiting:
            if now_s - self._waited_at_s >= RESTS_S:
                self._seen.clear()
                return
        else:
            self._waited_at_s = now_s
        before, now = await self._store.fields([self._names.turns(minute - 1), self._names.turns(minute)])
        there = {**before, **now}
        there.pop(self._worker, None)
        for worker, data in there.items():
            self._count(worker, data)
        for worker in self._seen.keys() - there.keys():
            del self._seen[worker]

    def _count(self, worker: str, data: bytes) -> None:
        try:
            told = _decoder.decode(data)
        except ValueError:
            return
        if told.version != VERSION or len(told.rows) > MOST_ROWS:
            return
        known = self._seen.get(worker)
        seen: dict[tuple[str, str, str], float] = {}
        for model, experience_class, tenant, tokens in told.rows:
            key = (model, experience_class, tenant)
            seen[key] = tokens
            if known is not None:
                more = tokens - known.get(key, 0.0)
                if 0.0 < more <= MOST_TOKENS:
                    self._queues.served_elsewhere(model, experience_class, tenant, more)
        self._seen[worker] = seen
