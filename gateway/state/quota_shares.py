"""Quotas that many workers keep together: each spends from a wallet of its own, and several times a second the wallets are filled anew.

A worker tells what it has used of each limit, what its wallet still holds and how much is asked of it; the script (quotas.lua) divides
what is left between the workers by that demand. What all have used and all wallets hold never adds up to more than a limit: the script
lets a wallet grow only. Requests spend from it while a call is under way, and an answer may be lost; so one that is to become smaller
does so here first, and the next call tells. Nothing of it is on the request path: there a wallet is a number that is enough or not
(quota/measure.py).

Without an answer for longer than STANDS_S wallets are not filled any more. Each worker spends what is left in its own until a minute has
gone, in which all that was spent before has returned; then it goes on with an equal part of every limit, counting what it has spent itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import msgspec

from gateway.quota.measure import RETURNS_S, Measure
from gateway.quota.quotas import Quotas
from gateway.state.looks import again
from gateway.state.script_text import script_text
from gateway.state.slots import KEPT_RATIO, STANDS_S
from gateway.state.store import Store, StoreError

log = logging.getLogger("slo_gateway")

EVERY_S = 0.2
"""between looks at the others"""
MOST_ROWS = 500
"""limits that are looked after all the time; with more of them, those that nobody uses wait for their first request"""
RESTING_RATIO = 0.001
"""of a limit, taken for the demand of a worker that has none: what nobody asks for is spread evenly"""

SCRIPT = script_text("quotas.lua")
_grants = msgspec.msgpack.Decoder(list[tuple[int, int, int]])


class QuotaShares:
    """One worker's. `quotas` gives those in force, which a reload replaces."""

    def __init__(
        self,
        quotas: Callable[[], Quotas | None],
        store: Store,
        key: str,
        worker: str,
        *,
        expected: int = 1,
        stands_s: float = STANDS_S,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.workers = max(expected, 1)  # that were there at the last answer
        self.lost: bool | None = None  # wallets no longer stand; None before the first answer, or its failure
        self._quotas = quotas
        self._store = store
        self._key = key
        self._worker = worker
        self._stands_s = stands_s
        self._clock = clock
        self._until_s = 0.0
        self._lost_at_s = 0.0
        self._made_ms = 0  # when what we last saw there was made
        self._calls = 0

    async def run(self) -> None:
        """Look, for ever."""
        await again(EVERY_S, "quotas", self.look)

    def begin(self) -> None:
        """Spend nothing until there is an answer."""
        quotas = self._quotas()
        if quotas is not None:
            quotas.look_s = EVERY_S
            for _, _, measure in quotas.rows():
                measure.wallet = 0

    async def look(self) -> bool:
        """Tell the others and hear from them; once more when something was given up for them. False when there was no answer."""
        quotas = self._quotas()
        if quotas is None:
            return True
        if not quotas.look_s:  # a reload has brought the first ones
            self.begin()
        given_up = await self._ask(quotas)
        if given_up:
            await self._ask(quotas)
        return given_up is not None

    async def leave(self) -> None:
        """Give up what is left in the wallets, and say for the last time what was spent of this minute."""
        quotas = self._quotas()
        if quotas is not None and self.lost is False:
            await self._ask(quotas, leaving=True)

    async def _ask(self, quotas: Quotas, leaving: bool = False) -> int | None:
        """How much was given up; None when there was no answer."""
        now_s = self._clock()
        if self.lost is False and now_s >= self._until_s:
            self.fall_back()  # we were paused: others have taken what we held
        rows = self._rows(quotas, now_s)
        asked = [self._asks(name, measure, now_s, leaving) for name, measure in rows]
        before = [_spendable(measure, now_s) for _, measure in rows]
        self._calls += 1
        try:
            args = (self._worker, int(self._stands_s * KEPT_RATIO * 1000), self._made_ms, msgspec.msgpack.encode(asked), self._calls)
            reply = await self._store.run(SCRIPT, [self._key], args)
        except StoreError as error:
            log.debug("quotas: %s", error)
            if self._clock() >= self._until_s:
                self.fall_back()
            return None
        self._until_s = now_s + self._stands_s
        was_lost, self.lost = self.lost, False
        return self._answered(rows, before, reply, bool(was_lost))

    def _rows(self, quotas: Quotas, now_s: float) -> list[tuple[str, Measure]]:
        rows = [(f"{quota_id} {name}", measure) for quota_id, name, measure in quotas.rows()]
        if len(rows) > MOST_ROWS:
            used: list[tuple[str, Measure]] = []
            for name, measure in rows:
                if measure.demanded or measure.demand > 0.01 or measure.used(now_s):
                    used.append((name, measure))
                else:
                    measure.wallet, measure.share = None, 1.0 / self.workers
            return used
        return rows

    def _asks(self, name: str, measure: Measure, now_s: float, leaving: bool) -> tuple[str, int, int, int, float, int]:
        used = measure.used(now_s)
        lasts_s = measure.window.empty_in_s(now_s) if measure.window is not None else 0.0
        if leaving:
            return name, 0, used, 0, 0.0, int(lasts_s * 1000.0)
        demand = measure.looked() + max(measure.limit * RESTING_RATIO, 0.01)
        # What we held when nobody answered was others' to take meanwhile: we go on with it until we hear, and do not claim it.
        claimed = 0 if self.lost else max(measure.wallet or 0, 0)
        return name, measure.limit, used, claimed, demand, int(lasts_s * 1000.0)

    def _answered(self, rows: list[tuple[str, Measure]], before: list[int], reply: Sequence[Any], was_lost: bool) -> int:
        _, self._made_ms, settled, self.workers, packed = reply
        given_up = 0
        now_s = self._clock()
        for (_, measure), had, (granted, others_used, come_down_to) in zip(rows, before, _grants.decode(packed), strict=True):
            measure.others_used = others_used
            if not settled and (was_lost or measure.wallet is None):
                continue  # a server that was emptied does not know what others have left of it: what held still does
            # What was spent (or came back) since we asked was spent of what we held then.
            since = _spendable(measure, now_s) - had
            wallet = min(granted + since, max(come_down_to + since, 0))
            given_up += granted + since - wallet
            measure.wallet = wallet
        return given_up

    def fall_back(self) -> None:
        """Nobody answers: the last wallets hold for a minute, then an equal part of every limit by what this worker has spent itself."""
        now_s = self._clock()
        if not self.lost:
            self._lost_at_s = now_s
        self.lost = True
        quotas = self._quotas()
        had_any = self._until_s > 0.0 and now_s - self._lost_at_s < RETURNS_S
        for _, _, measure in quotas.rows() if quotas is not None else ():
            measure.share = 1.0 / self.workers
            if not had_any:
                measure.wallet = None


def _spendable(measure: Measure, now_s: float) -> int:
    """Goes down by what is spent."""
    return measure.wallet if measure.wallet is not None else -measure.used(now_s)
