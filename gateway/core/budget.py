"""How much of what a promise may miss has been missed of late: while little has, a cheaper card that is likely enough to keep it will do.

A promise at p95 leaves one in twenty. As long as answers miss far less often than that, likelihood beyond "enough" is worth no dearer
hardware; when misses grow, for whatever reason (load, bursts, a slow card, a wrong prediction), every point of it counts again. And when
twice as many miss as a p95 leaves, there is not enough for everybody, and an engine's time is better kept for who makes most of it.
"""

from __future__ import annotations

from math import exp

from gateway.core.flow import Outcome, Placement, Result

MEMORY_S = 30.0
# The share of misses at which likelihood counts in full: well before the twentieth that a p95 leaves is used up.
SPENT_RATIO = 0.02
# The share of misses at which not everybody can be served: the other end of the same scale, where a fleet is past its knee.
SHORT_RATIO = 0.1
# Nothing is known at the start, and one miss of three answers says little.
PRIOR_ANSWERS = 20.0


def missed(placement: Placement, outcome: Outcome) -> bool:
    """Did it break a promise of its own? Of one that does not stream its user sees the end only."""
    targets, streams = placement.ticket.tag.targets, placement.ticket.request.stream
    return (
        outcome.result is Result.FAILED
        or (outcome.e2e_s or 0.0) > targets.e2e_s
        or (streams and ((outcome.ttft_s or 0.0) > targets.ttft_s or (outcome.tpot_s or 0.0) > targets.itl_s))
    )


class Budget:
    """Of all models. `learn` is told every outcome."""

    __slots__ = ("_by_model",)

    def __init__(self) -> None:
        self._by_model: dict[str, tuple[float, float, float]] = {}  # answers and misses, fading, and as of when

    def learn(self, placement: Placement, outcome: Outcome) -> None:
        """It is over."""
        ticket = placement.ticket
        if outcome.result is Result.CLIENT_GONE:
            return
        now_s = max(ticket.request.arrived_at_s + (outcome.e2e_s or 0.0), placement.started_at_s)
        answers, misses, at_s = self._by_model.get(ticket.model, (0.0, 0.0, now_s))
        keep = exp(min(at_s - now_s, 0.0) / MEMORY_S)
        self._by_model[ticket.model] = answers * keep + 1.0, misses * keep + missed(placement, outcome), max(now_s, at_s)

    def left_ratios(self, model: str) -> tuple[float, float]:
        """Of what gives to think, and of what leaves not enough for everybody: 1 = hardly anything has missed of late, 0 = as much."""
        answers, misses, _ = self._by_model.get(model, (0.0, 0.0, 0.0))
        missed_ratio = misses / (answers + PRIOR_ANSWERS)
        return max(1.0 - missed_ratio / SPENT_RATIO, 0.0), max(1.0 - missed_ratio / SHORT_RATIO, 0.0)
