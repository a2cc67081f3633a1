"""What all workers of one gateway have counted since it started, as one: counters and histograms add up exactly.

Each worker tells its cells' totals once a second, and whenever somebody asks (`Teller`); here the latest word of each is kept and summed.
What a worker counted stays when it has ended, however it ended: a counter never falls. Totals are whole numbers without a bound, unlike
the windows of shared state (state/blob.py), and what has not changed is not told again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from gateway.measure.attainment import Cell, CellKey
from gateway.measure.histogram import Edges
from gateway.measure.tally import COUNTERS, HISTOGRAMS, Tally, TallyEdges
from gateway.telemetry.readings import READINGS, OverWorkers, Reading, Samples

Told = Sequence[Any]  # [cell's key, packed total]
Figures = dict[str, list[tuple[tuple[str, ...], float]]]  # samples of readings, by the metric's name


def packed(tally: Tally) -> list[Any]:
    """Plain values, exact."""
    histograms = [[one.zeros, one.sum_s, one.counts, one.below] for one in tally.histograms]
    return [[getattr(tally, name) for name in COUNTERS], tally.refused, tally.failed, histograms]


def unpacked(data: Sequence[Any], edges: TallyEdges) -> Tally:
    """What `packed` made, at the edges it was counted at."""
    tally = Tally(edges)
    for name, figure in zip(COUNTERS, data[0], strict=True):
        setattr(tally, name, figure)
    tally.refused, tally.failed = dict(data[1]), dict(data[2])
    for name, (zeros, sum_s, counts, below) in zip(HISTOGRAMS, data[3], strict=True):
        histogram = getattr(tally, name)
        histogram.zeros, histogram.sum_s, histogram.counts, histogram.below = zeros, sum_s, dict(counts), list(below)
    return tally


class Teller:
    """A worker's side: which cells have changed since they were last told."""

    def __init__(self) -> None:
        self._told: dict[CellKey, tuple[Tally, tuple[float, ...]]] = {}

    def changed(self, cells: Mapping[Any, Cell]) -> Iterator[Told | None]:
        """Those, with their totals; None where there is nothing to tell. In steps of some 100 us."""
        for cell in list(cells.values()):
            now = cell.now
            figures = _figures(now)
            before = self._told.get(cell.key)
            # An open window that is empty again says nothing new: all that was in the one before it was told, or it is another object.
            if before is not None and before[0] is now and before[1] == figures:
                yield None
                continue
            self._told[cell.key] = (now, figures)
            yield [cell.key, packed(cell.total())]


def _figures(tally: Tally) -> tuple[float, ...]:
    lost = sum(tally.refused.values()) + sum(tally.failed.values()) + tally.client_gone + tally.client_error
    return (tally.completed, lost, tally.output_tokens, tally.degraded, tally.itl.sum_s, tally.itl.zeros, tally.e2e.sum_s)


class Whole:
    """One cell over all workers; made to be read by telemetry/exposition."""

    __slots__ = ("_tally", "key")

    def __init__(self, key: CellKey, tallies: Iterable[Tally], edges: TallyEdges) -> None:
        self.key = key
        self._tally = Tally(edges)
        for tally in tallies:
            self._tally.merge(tally)

    def total(self) -> Tally:
        return self._tally


class Accounts:
    """The supervisor's side. Workers are known by any word that is theirs alone."""

    def __init__(self, edges: TallyEdges) -> None:
        self.edges = edges
        self._by_worker: dict[str, dict[CellKey, Tally]] = {}
        self._ended: dict[CellKey, Tally] = {}
        self._whole: dict[CellKey, Whole] = {}
        self._stale: set[CellKey] = set()  # sums to make anew when somebody asks
        self._figures: dict[str, Figures] = {}
        self._ended_figures: dict[str, dict[tuple[str, ...], float]] = {}

    def take(self, worker: str, edges_s: Sequence[Sequence[float]], told: Iterable[Told]) -> None:
        """A worker's totals, of the cells that have changed."""
        edges = TallyEdges(*(Edges(values_s) for values_s in edges_s))
        if edges.key == self.edges.key:
            edges = self.edges
        known = self._by_worker.setdefault(worker, {})
        for words, data in told:
            key = CellKey(*words)
            known[key] = unpacked(data, edges)
            self._stale.add(key)

    def take_figures(self, worker: str, figures: Mapping[str, Sequence[tuple[Sequence[str], float]]]) -> None:
        """A worker's readings, those that were told; the others stay as they were."""
        known = self._figures.setdefault(worker, {})
        for name, samples in figures.items():
            known[name] = [(tuple(labels), figure) for labels, figure in samples]

    def end(self, worker: str) -> None:
        """It has ended: what it counted stays."""
        for key, tally in self._by_worker.pop(worker, {}).items():
            kept = self._ended.get(key)
            if kept is None:
                kept = self._ended[key] = Tally(self.edges)
            kept.merge(tally)
            self._stale.add(key)
        for name, samples in self._figures.pop(worker, {}).items():
            if COUNTERS_READ.get(name) is not None:
                sums = self._ended_figures.setdefault(name, {})
                for labels, figure in samples:
                    sums[labels] = sums.get(labels, 0.0) + figure

    def change_edges(self, edges: TallyEdges) -> None:
        """Sums are at these from now on."""
        if edges.key == self.edges.key:
            return
        self.edges = edges
        self._stale.update(self._whole)
        for key, tally in self._ended.items():
            moved = self._ended[key] = Tally(edges)
            moved.merge(tally)

    def cells(self) -> Iterator[None]:
        """Bring every sum up to date, in small steps; then `whole` is to be read."""
        for key in list(self._stale):
            self._stale.discard(key)
            tallies = [known[key] for known in self._by_worker.values() if key in known]
            if key in self._ended:
                tallies.append(self._ended[key])
            self._whole[key] = Whole(key, tallies, self.edges)
            yield

    @property
    def whole(self) -> Mapping[CellKey, Whole]:
        """Every cell, as `cells` left it."""
        return self._whole

    def samples_of(self, reading: Reading) -> Samples:
        """One reading over all workers, by the reading's own rule; of counters, with those that have ended."""
        found: dict[tuple[str, ...], list[float]] = {}
        for figures in self._figures.values():
            for labels, figure in figures.get(reading.name, ()):
                found.setdefault(labels, []).append(figure)
        merge = _MERGE[reading.over_workers]
        merged = {labels: float(merge(every)) for labels, every in found.items()}
        for labels, figure in self._ended_figures.get(reading.name, {}).items():
            merged[labels] = merged.get(labels, 0.0) + figure
        return merged.items()


_MERGE: dict[OverWorkers, Callable[[list[float]], float]] = {"sum": sum, "max": max, "min": min, "mean": fmean}
COUNTERS_READ = {metric.name: metric for metric in READINGS if metric.kind == "counter"}
