"""What this worker's users got, told to everybody: each window of ten seconds and of a minute as one field that only we write.

The open window is written once a second, as far as it has come, and a last time when it is over; so a worker that is killed takes no more
than its last second with it. Windows that could not be told are told later, and once more when the store has lost them, for as long as
this worker remembers them (eleven minutes). Reading is history.py's business, the bytes are blob.py's.

Packing a cell takes some 20 us; it is done in slices between which the loop goes on, and only for cells that have changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from math import inf
from time import perf_counter
from typing import cast

from gateway.measure.attainment import Attainment
from gateway.measure.tally import Counts, Tally
from gateway.measure.windows import LONG_S, SHORT_S, Window
from gateway.state.blob import VERSION, WindowBlob, edges_of, pack
from gateway.state.looks import again
from gateway.state.names import Names
from gateway.state.store import Store, StoreError

log = logging.getLogger("slo_gateway")

EVERY_S = 1.0
AGAIN_S = 10.0
"""between one time that everything is told again and the next: minutes of windows, to a server that goes on losing them"""
SLICE_S = 0.0005  # of the loop's time at once
SMALL_BYTES = 4096
SHORT_KEPT_S = 2 * 3600.0
LONG_KEPT_S = 7 * 86400.0


class Telemetry:
    """One worker's. `clock` is the core's, `unix` tells wall time."""

    def __init__(
        self,
        attainment: Attainment,
        store: Store,
        names: Names,
        worker: str,
        *,
        clock: Callable[[], float],
        unix: Callable[[], float],
    ) -> None:
        self.told_unix_s = 0.0  # up to when everything was told
        self._attainment = attainment
        self._store = store
        self._names = names
        self._worker = worker
        self._clock = clock
        self._unix = unix
        self._short_until_s = -1.0  # windows up to here have been told for good
        self._long_until_s = -1.0
        self._minute_until_s = -1.0  # the open minute was told with the windows up to here
        self._started: dict[float, float] = {}  # wall time of a window's start, fixed when it is first told
        self._written: set[tuple[str, str]] = set()  # keys and fields that should be there
        self._emptied = False  # something we had written was gone
        self._told_again_at_s = -inf
        self._packed: dict[tuple[str, ...], tuple[Counts, tuple[float, ...], bytes]] = {}

    async def run(self) -> None:
        """Tell, for ever."""
        await again(EVERY_S, "telemetry", self.flush)

    async def leave(self) -> None:
        """The last words: nothing more will come from this worker."""
        try:
            await self.flush(last=True)
        except StoreError as error:
            log.debug("telemetry: %s", error)

    async def flush(self, last: bool = False) -> None:
        """Tell what has changed. StoreError when it could not be told; the next time it will be told again."""
        windows = self._attainment.windows
        now_s = self._clock()
        told_unix_s = self._unix()
        opened_at_s = windows.opened_at_s
        open_now = [(key, cell.now) for key, cell in self._attainment.cells.items() if cell.now]
        open_counts: dict[tuple[str, ...], Counts] = {**dict(open_now), **{(name,): c for name, c in self._attainment.tenants.items()}}
        for window in [window for window in windows.short if window.end_at_s > self._short_until_s]:
            await self._tell(SHORT_S, SHORT_KEPT_S, window, closed=True)
            self._short_until_s = window.end_at_s
        # A minute's share of a window is in it once that window has been packed.
        if windows.settled:
            for window in [window for window in windows.long if window.end_at_s > self._long_until_s]:
                await self._tell(LONG_S, LONG_KEPT_S, window, closed=True)
                self._long_until_s = window.end_at_s
            minute = windows.minute
            if windows.settled and minute.counted and (last or self._minute_until_s < windows.opened_at_s):
                so_far = Window(minute.start_at_s, windows.opened_at_s)
                so_far.counted = dict(minute.counted)
                await self._tell(LONG_S, LONG_KEPT_S, so_far, closed=False)
                self._minute_until_s = so_far.end_at_s
        so_far = Window(opened_at_s, now_s)
        so_far.counted = cast(dict[tuple[str, ...], Counts | bytes], open_counts)
        await self._tell(SHORT_S, SHORT_KEPT_S, so_far, closed=last)
        self.told_unix_s = told_unix_s
        if self._emptied and now_s - self._told_again_at_s >= AGAIN_S:
            self._told_again_at_s = now_s
            log.warning("the shared state at %s has lost what was told to it; telling it again", self._store.health.where)
            self._emptied = False
            self._short_until_s = self._long_until_s = self._minute_until_s = -1.0
            self._written.clear()

    async def _tell(self, length_s: float, kept_s: float, window: Window, *, closed: bool) -> None:
        edges = edges_of(self._attainment.edges)
        counted = await self._pack(dict(window.counted), remember=length_s == SHORT_S and not closed)
        start_unix_s = self._start_unix_s(window.start_at_s)
        blob = WindowBlob(
            VERSION,
            self._worker,
            start_unix_s,
            max(start_unix_s + window.end_at_s - window.start_at_s, start_unix_s),
            closed,
            edges,
            [(key, packed) for key, packed in counted.items() if len(key) == 5],
            [(key[0], packed) for key, packed in counted.items() if len(key) == 1],
        )
        # A thread costs more than a small window's packing does.
        small = sum(map(len, counted.values())) <= SMALL_BYTES
        data = pack(blob) if small else await asyncio.to_thread(pack, blob)
        key, field = self._names.window(length_s, start_unix_s // length_s * length_s), f"{self._worker} {start_unix_s:.3f}"
        new = await self._store.put_fields(key, {field: data}, kept_s)
        if new and (key, field) in self._written:
            self._emptied = True
        if closed:
            self._written.discard((key, field))
        else:
            self._written.add((key, field))

    def _start_unix_s(self, start_at_s: float) -> float:
        found = self._started.get(start_at_s)
        if found is None:
            found = self._started[start_at_s] = round(self._unix() - (self._clock() - start_at_s), 3)
            while len(self._started) > 400:
                del self._started[next(iter(self._started))]
        return found

    async def _pack(self, counted: Mapping[tuple[str, ...], Counts | bytes], *, remember: bool) -> dict[tuple[str, ...], bytes]:
        made: dict[tuple[str, ...], bytes] = {}
        known = self._packed if remember else {}
        kept: dict[tuple[str, ...], tuple[Counts, tuple[float, ...], bytes]] = {}
        until_s = perf_counter() + SLICE_S
        for key, counts in counted.items():
            if isinstance(counts, bytes):
                made[key] = counts
                continue
            figures = _figures(counts)
            before = known.get(key)
            if before is None or before[0] is not counts or before[1] != figures:
                before = (counts, figures, counts.pack())
            kept[key] = before
            made[key] = before[2]
            if perf_counter() >= until_s:
                await asyncio.sleep(0)
                until_s = perf_counter() + SLICE_S
        if remember:
            self._packed = kept
        return made


def _figures(counts: Counts) -> tuple[float, ...]:
    """Different when anything has been counted since."""
    lost = sum(counts.refused.values()) + sum(counts.failed.values()) + counts.client_gone + counts.client_error
    itl = counts.itl if isinstance(counts, Tally) else None
    return (counts.completed, lost, counts.output_tokens, counts.degraded, itl.sum_s if itl is not None else 0.0, itl.zeros if itl else 0)
