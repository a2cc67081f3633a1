"""The text of /metrics, written by hand in small pieces: rendering it at once would hold every stream up.

The format is Prometheus' text format 0.0.4. What is in it is instruments.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from gateway.core.flow import Endpoint
from gateway.measure.attainment import Attainment, CellKey
from gateway.measure.histogram import Histogram
from gateway.measure.tally import Tally
from gateway.telemetry.instruments import METRICS, OPERATIONS, PROVIDER, CellCounter, CellHistogram, GenAiHistogram
from gateway.telemetry.readings import Reading, Samples
from gateway.telemetry.sources import Sources

MAX_LABEL_CHARS = 256


class Counted(Protocol):
    """A cell's counts since the start; measure/attainment.Cell is one."""

    @property
    def key(self) -> CellKey: ...

    def total(self) -> Tally: ...


def render(attainment: Attainment, sources: Sources) -> Iterator[str]:
    """All metrics of one worker, in pieces that take well under a millisecond each."""
    return written(attainment.cells, lambda reading, keys: reading.of(sources, keys))


def written(cells: Mapping[Any, Counted], samples_of: Callable[[Reading, Iterable[CellKey]], Samples]) -> Iterator[str]:
    """All metrics from counts and readings, whosever they are. Labels come from configuration and catalogue, never from a caller's
    words, so their number is bounded."""
    totals: list[tuple[CellKey, str, Tally]] = []
    for cell in list(cells.values()):
        totals.append((cell.key, labels_of(CellKey._fields, cell.key), cell.total()))
        yield ""
    by_operation: dict[str, list[Tally]] = {}
    for key, _, tally in totals:
        by_operation.setdefault(_gen_ai_labels(key), []).append(tally)
    for metric in METRICS:
        yield f"# HELP {metric.name} {metric.about}\n# TYPE {metric.name} {metric.kind}\n"
        match metric:
            case CellCounter():
                for _, labels, tally in totals:
                    yield _counter(metric, labels, tally)
            case CellHistogram():
                for _, labels, tally in totals:
                    yield _histogram(metric.name, labels, metric.of(tally))
            case GenAiHistogram():
                for labels, tallies in by_operation.items():
                    merged = metric.of(tallies[0]).copy()
                    for tally in tallies[1:]:
                        merged.merge(metric.of(tally))
                        yield ""
                    yield _histogram(metric.name, labels, merged, metric.edges_s)
            case Reading():
                samples = samples_of(metric, (key for key, _, _ in totals))
                yield "".join(f"{metric.name}{_braced(labels_of(metric.labels, values))} {figure:.15g}\n" for values, figure in samples)


def _counter(metric: CellCounter, labels: str, tally: Tally) -> str:
    if not metric.by:
        return "".join(f"{metric.name}{{{labels}}} {count}\n" for count in metric.of(tally).values())
    return "".join(f'{metric.name}{{{labels},{metric.by}="{value}"}} {count}\n' for value, count in metric.of(tally).items())


def _histogram(name: str, labels: str, histogram: Histogram, edges_s: tuple[float, ...] | None = None) -> str:
    if not histogram:
        return ""
    head = f'{name}_bucket{{{labels},le="'
    lines = [
        f'{head}{edge}"}} {count}\n'
        for edge, count in zip(histogram.edges.values_s, histogram.cumulative(), strict=True)
        if edges_s is None or edge in edges_s
    ]
    count = histogram.count
    lines.append(f'{head}+Inf"}} {count}\n{name}_sum{{{labels}}} {histogram.sum_s:.9g}\n{name}_count{{{labels}}} {count}\n')
    return "".join(lines)


def _gen_ai_labels(key: CellKey) -> str:
    names = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
    return labels_of(names, (OPERATIONS[Endpoint(key.endpoint)], PROVIDER, key.model))


def labels_of(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """As they stand between a sample's braces."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _escaped(value: str) -> str:
    return value[:MAX_LABEL_CHARS].replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
