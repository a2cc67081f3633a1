"""Workers that tell what their users got, on clocks that are arguments, to stores of every kind."""

from __future__ import annotations

from typing import Any

from gateway.measure.attainment import Attainment, tally_edges
from gateway.measure.windows import Merged
from gateway.state.history import History, Others
from gateway.state.names import Names
from gateway.state.store import Store
from gateway.state.telemetry import Telemetry
from tests.measure.conftest import CHAT, SUMMARY, completed, placed

NAMES = Names("told")
UNIX_S = 1_800_000_000.0


class Clock:
    """Seconds since these workers' clocks began."""

    def __init__(self) -> None:
        self.now_s = 0.0


class Teller:
    """A worker's counts and what tells them. `booted_s`: its own clock at the start, since no two hosts agree."""

    def __init__(self, store: Store, name: str, clock: Clock, booted_s: float = 1000.0) -> None:
        self.name = name
        self.clock = clock
        self.booted_s = booted_s
        self.attainment = Attainment(tally_edges([CHAT, SUMMARY]), self.at_s)
        self.telemetry = Telemetry(self.attainment, store, NAMES, name, clock=lambda: self.at_s, unix=lambda: UNIX_S + clock.now_s)
        self.history = History(store, NAMES, name)

    @property
    def at_s(self) -> float:
        return self.booted_s + self.clock.now_s

    def serve(self, *, gaps_s: tuple[float, ...] = (), **figures: Any) -> None:
        placement = placed()
        cell = self.attainment.cell(placement.ticket, placement.pool)
        for gap_s in gaps_s:
            cell.now.itl.record(gap_s)
        self.attainment.observe(placement, completed(**figures), self.at_s)

    async def others(self, window_s: float = 300.0) -> Others:
        return await self.history.others(window_s, UNIX_S + self.clock.now_s)

    async def fleet(self, window_s: float = 300.0) -> Merged:
        """What this worker answers for all."""
        others = await self.others(window_s)
        merged = self.attainment.merged(self.at_s, window_s)
        for _ in others.merging(merged, self.attainment.edges):
            pass
        return merged


async def pass_time(seconds: int, *tellers: Teller) -> None:
    """Second by second, each worker ticking and telling."""
    for _ in range(seconds):
        tellers[0].clock.now_s += 1.0
        for teller in tellers:
            teller.attainment.tick(teller.at_s)
            await teller.telemetry.flush()


def completed_in(merged: Merged) -> int:
    return sum(tally.completed for tally in merged.cells.values())
