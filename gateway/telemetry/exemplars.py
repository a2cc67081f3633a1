"""For each histogram's buckets one request that landed there and whose span was told: the way from a slow bucket to a trace.

Every request that missed its SLO has a span, so slow buckets have one as soon as there is a collector. Kept by value and not by bucket:
which edges there are is known when it is told (openmetrics.py, points.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log2

from gateway.core.flow import Outcome, Placement, Result, Ticket
from gateway.measure.attainment import CellKey

MAX_KEPT = 4096  # some 1 MB; those that were replaced longest ago go first
STEPS_PER_OCTAVE = 4  # finer than any two targets of a class lie apart

# What a request adds to each histogram of a cell, by its name in instruments.py; only streamed ones have the first three.
STREAMED: Mapping[str, Callable[[Outcome], float | None]] = {
    "slo_gateway_ttft_seconds": lambda outcome: outcome.ttft_s,
    "slo_gateway_itl_seconds": lambda outcome: outcome.itl_p95_s,
    "slo_gateway_tpot_seconds": lambda outcome: outcome.tpot_s,
}
ALWAYS: Mapping[str, Callable[[Outcome], float | None]] = {
    "slo_gateway_e2e_seconds": lambda outcome: outcome.e2e_s,
    "slo_gateway_queue_seconds": lambda outcome: outcome.queue_s,
}


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One request in a histogram."""

    value_s: float
    trace_id: int
    span_id: int
    at_unix_s: float


ByHistogram = Mapping[tuple[str, CellKey], Sequence[Exemplar]]


class Exemplars:
    """The latest of each histogram's stretch of values."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, CellKey, int], Exemplar] = {}

    def note(self, subject: Placement | Ticket, outcome: Outcome, trace_id: int, span_id: int, at_unix_s: float) -> None:
        """A request has got a span."""
        if outcome.result is not Result.COMPLETED or not isinstance(subject, Placement):
            return
        ticket = subject.ticket
        request, tag = ticket.request, ticket.tag
        cell = CellKey(tag.experience_class, tag.use_case, subject.pool, request.model, request.endpoint.value)
        kept = self._kept
        for name, of in (*STREAMED.items(), *ALWAYS.items()) if request.stream else ALWAYS.items():
            value_s = of(outcome)
            if value_s is not None and value_s > 0.0:
                key = (name, cell, floor(log2(value_s) * STEPS_PER_OCTAVE))
                kept.pop(key, None)
                kept[key] = Exemplar(value_s, trace_id, span_id, at_unix_s)
        while len(kept) > MAX_KEPT:
            del kept[next(iter(kept))]

    def by_histogram(self) -> ByHistogram:
        """All of them, the newest last; some 1 ms when as many are kept as may be."""
        found: dict[tuple[str, CellKey], list[Exemplar]] = {}
        for (name, cell, _), exemplar in self._kept.items():
            found.setdefault((name, cell), []).append(exemplar)
        return found


def by_bucket(exemplars: Iterable[Exemplar], edges_s: Sequence[float]) -> dict[int, Exemplar]:
    """The newest in each bucket; bucket `i` holds what is at or below edge `i` and above the one before, the last what is above all."""
    return {bisect_left(edges_s, exemplar.value_s): exemplar for exemplar in exemplars}
