"""Closed windows of ten seconds and of a minute, so that "the last 5 minutes" and "the last hour" can be answered.

A closed window is packed (about 1 kB a cell), a share at each tick, and answers are made in small steps, so that neither holds the loop
for longer than a millisecond. What is counted in them is attainment.py's business; keeping them beyond this process is state/'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping
from math import floor
from typing import TYPE_CHECKING, Final

from gateway.measure.tally import Counts, Tally, TallyEdges

if TYPE_CHECKING:
    from gateway.measure.attainment import Cell

SHORT_S: Final = 10.0
LONG_S: Final = 60.0
SHORT_KEPT: Final = 66  # eleven minutes of ten-second windows
LONG_KEPT: Final = 125  # two hours and a little of minutes
LONGEST_S: Final = 7200.0  # the longest question
TICKS_TO_PACK: Final = 5  # a closed window is packed within this many ticks
CACHED_ANSWERS: Final = 4


class Window:
    """What was counted from `start_at_s` to `end_at_s`. A CellKey (five words) leads to a tally, one word to that tenant's counts;
    packed once there was time for it."""

    __slots__ = ("counted", "end_at_s", "start_at_s")

    def __init__(self, start_at_s: float, end_at_s: float) -> None:
        self.start_at_s = start_at_s
        self.end_at_s = end_at_s
        self.counted: dict[tuple[str, ...], Counts | bytes] = {}


class Merged:
    """An answer: what every cell and tenant had in the last `covered_s` seconds."""

    __slots__ = ("cells", "covered_s", "tenants")

    def __init__(self, cells: dict[tuple[str, ...], Tally], tenants: dict[str, Counts], covered_s: float) -> None:
        self.cells = cells
        self.tenants = tenants
        self.covered_s = covered_s


class Windows:
    """The rings of closed windows. `close` ends the open ones, `work` packs, `merging` answers."""

    def __init__(self, edges: TallyEdges, now_s: float) -> None:
        self.edges = edges
        self.short: deque[Window] = deque(maxlen=SHORT_KEPT)
        self.long: deque[Window] = deque(maxlen=LONG_KEPT)  # complete minutes; the open one is `_minute`
        self.started_at_s = self.opened_at_s = now_s
        self.next_close_at_s = _next_boundary(now_s, SHORT_S)
        self._minute = Window(now_s, _next_boundary(now_s, LONG_S))
        # What is still to be packed, oldest first; with the minute it also counts in.
        self._to_pack: deque[tuple[tuple[str, ...], Window, Window | None]] = deque()
        self._share = 1
        self._answers: dict[float, dict[tuple[str, ...], Counts]] = {}  # closed windows merged, by length of the question

    def close(self, cells: Mapping[tuple[str, ...], Cell], tenants: Mapping[str, Counts], now_s: float) -> None:
        """End the open window, with every cell's and tenant's counts that are not empty. The caller forgets the tenants'."""
        minute = self._minute
        window = Window(self.opened_at_s, now_s)
        for key, cell in cells.items():
            if cell.now:
                window.counted[key] = cell.close()
        for tenant, counts in tenants.items():
            window.counted[(tenant,)] = counts
        self._to_pack.extend((key, window, minute) for key in window.counted)
        self.short.append(window)
        self.opened_at_s = now_s
        self.next_close_at_s = _next_boundary(now_s, SHORT_S)
        self._answers.clear()
        if now_s >= minute.end_at_s:
            minute.end_at_s = now_s
            self.long.append(minute)
            unpacked = {key for key, _, counts_in in self._to_pack if counts_in is minute}
            self._to_pack.extend((key, minute, None) for key in {*minute.counted, *unpacked})
            self._minute = Window(now_s, _next_boundary(now_s, LONG_S))
        self._share = -(-len(self._to_pack) // TICKS_TO_PACK)

    @property
    def minute(self) -> Window:
        """The open minute: what its ten-second windows had, those that are `settled`."""
        return self._minute

    @property
    def settled(self) -> bool:
        """Is everything that was closed packed, and counted in its minute?"""
        return not self._to_pack

    def change_edges(self, edges: TallyEdges) -> None:
        """Answers from now on have these."""
        self.edges = edges
        self._answers.clear()

    def work(self) -> None:
        """Pack a share of what was closed."""
        for _ in range(min(self._share, len(self._to_pack))):
            self._pack_one()

    def _pack_one(self) -> None:
        key, window, minute = self._to_pack.popleft()
        counted = window.counted[key]
        if isinstance(counted, bytes):
            return
        if minute is not None:
            whole = minute.counted.get(key)
            if whole is None:
                whole = minute.counted[key] = self._empty(key)
            if not isinstance(whole, bytes):
                whole.merge(counted)
        window.counted[key] = counted.pack()

    def _empty(self, key: tuple[str, ...]) -> Counts:
        return Counts() if len(key) == 1 else Tally(self.edges)

    def merging(
        self, cells: Mapping[tuple[str, ...], Cell], tenants: Mapping[str, Counts], now_s: float, window_s: float
    ) -> Generator[None, None, Merged]:
        """Merge the last `window_s` seconds, to the width of a window, the open one included. Yields after every small step (some
        50 us), and returns the answer; whoever runs it decides when to let others go first. `cells` and `tenants` are the live
        mappings: a window may close between two steps."""
        window_s = min(window_s, LONGEST_S)
        while True:
            opened_at_s = self.opened_at_s
            while self._to_pack:
                self._pack_one()
                yield
            windows = self._of_the_last(window_s, now_s)
            closed = self._answers.get(window_s)
            if closed is None:
                closed = {}
                for window in windows:
                    for key, packed in list(window.counted.items()):
                        whole = closed.get(key)
                        if whole is None:
                            whole = closed[key] = self._empty(key)
                        whole.merge_packed(packed) if isinstance(packed, bytes) else whole.merge(packed)
                        yield
            if opened_at_s == self.opened_at_s:
                break  # else a window was closed meanwhile, and its samples are in neither half
        # The open half as it is at this very moment: a tally that is closed while we go on takes no more samples, and stays ours to read.
        open_cells = {key: cell.now for key, cell in cells.items() if cell.now}
        open_tenants = dict(tenants)
        if len(self._answers) >= CACHED_ANSWERS:
            self._answers.clear()
        self._answers[window_s] = closed
        start_at_s = windows[0].start_at_s if windows else self.opened_at_s
        answer = Merged({}, {}, max(now_s - start_at_s, 1e-9))
        for key in {*(key for key in closed if len(key) > 1), *open_cells}:
            tally = answer.cells[key] = Tally(self.edges)
            if key in closed:
                tally.merge(closed[key])
            if key in open_cells:
                tally.merge(open_cells[key])
            yield
        for tenant in {*(key[0] for key in closed if len(key) == 1), *open_tenants}:
            counts = answer.tenants[tenant] = Counts()
            if (tenant,) in closed:
                counts.merge(closed[(tenant,)])
            if tenant in open_tenants:
                counts.merge(open_tenants[tenant])
        return answer

    def _of_the_last(self, window_s: float, now_s: float) -> list[Window]:
        """The fewest closed windows that cover the time asked for, oldest first."""
        since_at_s = now_s - window_s
        short = [window for window in self.short if window.end_at_s > since_at_s]
        if not self.short or self.short[0].start_at_s <= since_at_s or not self.long:
            return short
        long = [window for window in self.long if window.end_at_s > since_at_s]
        newest_minute_at_s = self.long[-1].end_at_s
        return long + [window for window in short if window.start_at_s >= newest_minute_at_s]


def _next_boundary(now_s: float, length_s: float) -> float:
    return (floor(now_s / length_s) + 1) * length_s
