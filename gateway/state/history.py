"""What the other workers' users got, read back: so that any worker can answer for the whole fleet.

Own counts are never read from here, they are exact in memory. What is read is merged in small steps (admin/slo.py asks for it). A worker
that was killed is still counted for as long as its windows are kept; that its last second is missing is told with the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from dataclasses import dataclass

from gateway.measure.attainment import MAX_CELLS, MAX_TENANTS
from gateway.measure.tally import Counts, Tally, TallyEdges
from gateway.measure.windows import LONG_S, SHORT_S, Merged
from gateway.state.blob import WindowBlob, add, unpack_all
from gateway.state.names import Names
from gateway.state.store import Store, StoreError
from gateway.state.telemetry import EVERY_S

SHORT_ANSWER_S = 660.0  # longer questions are answered from minutes, with ten-second windows at their end
MISSING_S = 1.1 * EVERY_S + 0.1
"""at most so much of what a killed worker counted was not told yet: the longest time between two flushes, and one that was under way"""
SILENT_S = 3.5 * EVERY_S
"""a worker that has not told anything for this long, nor said that it stops, was lost"""


@dataclass(frozen=True, slots=True)
class Heard:
    """A worker in an answer, this one left out. `lost`: it fell silent without a last word."""

    worker: str
    age_s: float
    lost: bool


class Others:
    """What others have told of some time; `unreachable` says why it could not be asked, "" when it could."""

    def __init__(self, blobs: Iterable[WindowBlob] = (), now_unix_s: float = 0.0, unreachable: str = "") -> None:
        self.unreachable = unreachable
        self.now_unix_s = now_unix_s
        self.blobs = list(blobs)
        newest: dict[str, WindowBlob] = {}
        for blob in self.blobs:
            known = newest.get(blob.worker)
            if known is None or blob.end_unix_s > known.end_unix_s or (blob.end_unix_s == known.end_unix_s and blob.closed):
                newest[blob.worker] = blob
        self.heard = [self._heard(blob) for blob in newest.values()]

    def _heard(self, newest: WindowBlob) -> Heard:
        age_s = max(self.now_unix_s - newest.end_unix_s, 0.0)
        return Heard(newest.worker, age_s, age_s > SILENT_S and not newest.closed)

    @property
    def present(self) -> list[Heard]:
        """Those that are there now."""
        return [heard for heard in self.heard if heard.age_s <= SILENT_S]

    @property
    def lost(self) -> list[Heard]:
        """Those that were killed, or cannot reach the store: what they counted after their last word is missing."""
        return [heard for heard in self.heard if heard.lost]

    def merging(self, merged: Merged, edges: TallyEdges) -> Generator[None, None, None]:
        """Add it all to an answer, in steps of some 50 us."""
        for blob in self.blobs:
            merged.covered_s = max(merged.covered_s, self.now_unix_s - blob.start_unix_s)
            theirs = blob.tally_edges()
            for key, packed in blob.cells:
                read = Tally(theirs)
                if add(read, packed, theirs) and (key in merged.cells or len(merged.cells) < MAX_CELLS):
                    tally = merged.cells.get(key)
                    if tally is None:
                        tally = merged.cells[key] = Tally(edges)
                    tally.merge(read)
                yield
            for tenant, packed in blob.tenants:
                counts = merged.tenants.get(tenant)
                if counts is None:
                    if len(merged.tenants) > MAX_TENANTS:
                        continue
                    counts = merged.tenants[tenant] = Counts()
                add(counts, packed, theirs)
            yield


class History:
    """Reads for one worker."""

    def __init__(self, store: Store, names: Names, worker: str) -> None:
        self._store = store
        self._names = names
        self._worker = worker

    async def others(self, window_s: float, now_unix_s: float) -> Others:
        """What others counted in the last `window_s` seconds, to the width of a window. Never fails: it says so instead."""
        since_unix_s = now_unix_s - window_s
        try:
            if window_s <= SHORT_ANSWER_S:
                blobs = await self._read(SHORT_S, since_unix_s, now_unix_s)
            else:
                blobs = await self._long(since_unix_s, now_unix_s)
        except StoreError as error:
            return Others(now_unix_s=now_unix_s, unreachable=str(error))
        return Others([blob for blob in blobs if blob.end_unix_s > since_unix_s], now_unix_s)

    async def _long(self, since_unix_s: float, now_unix_s: float) -> list[WindowBlob]:
        """Minutes, and for each worker the ten-second windows that come after its last minute."""
        minutes = await self._read(LONG_S, since_unix_s, now_unix_s)
        short = await self._read(SHORT_S, max(now_unix_s - SHORT_ANSWER_S, since_unix_s), now_unix_s)
        until_unix_s: dict[str, float] = {}
        unfinished: dict[str, bool] = {}
        for blob in minutes:
            if blob.end_unix_s > until_unix_s.get(blob.worker, 0.0):
                until_unix_s[blob.worker], unfinished[blob.worker] = blob.end_unix_s, not blob.closed
        # A worker that was killed longer ago has left a minute unfinished: its last ten seconds stand beside it.
        old_unix_s = now_unix_s - SHORT_ANSWER_S + LONG_S
        for at_unix_s in {until_unix_s[worker] for worker, open_ in unfinished.items() if open_ and until_unix_s[worker] < old_unix_s}:
            short += await self._read(SHORT_S, at_unix_s, at_unix_s + SHORT_S)
        seen: set[tuple[str, float]] = set()
        for blob in short:
            # Half a second: wall time of starts and ends is written to the millisecond, and drifts.
            if blob.start_unix_s >= until_unix_s.get(blob.worker, 0.0) - 0.5 and (blob.worker, blob.start_unix_s) not in seen:
                seen.add((blob.worker, blob.start_unix_s))
                minutes.append(blob)
        return minutes

    async def _read(self, length_s: float, since_unix_s: float, until_unix_s: float) -> list[WindowBlob]:
        """Windows that begin within that time, or reach into it; of wall clocks that are a window apart as well."""
        first, last = int(since_unix_s // length_s) - 1, int(until_unix_s // length_s) + 1
        keys = [self._names.window(length_s, number * length_s) for number in range(first, last + 1)]
        mine = f"{self._worker} "
        found = [data for fields in await self._store.fields(keys) for field, data in fields.items() if not field.startswith(mine)]
        return await asyncio.to_thread(unpack_all, found)
