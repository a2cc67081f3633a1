"""How much of what a promise may miss has been missed of late: while little has, a cheaper card that is likely enough to keep it will do.

A promise at p95 leaves one in twenty. As long as answers miss far less often than that, likelihood beyond "enough" is worth no dearer
hardware; when misses grow, for whatever reason (load, bursts, a slow card, a wrong prediction), every point of it counts again. And when
twice as many miss as a p95 leaves, there is not enough for everybody, and an engine's time is better kept for who makes most of it.
"""

from __future__ import annotations

from math import exp
from typing import Final

from gateway.core.flow import Outcome, Placement, Result, Ticket

FAILED, CLIENT_GONE = Result.FAILED, Result.CLIENT_GONE  # to look a member up costs as much as a whole line here

MEMORY_S: Final = 30.0
# The share of misses at which likelihood counts in full: well before the twentieth that a p95 leaves is used up.
SPENT_RATIO: Final = 0.02
# The share of misses at which not everybody can be served: the other end of the same scale, where a fleet is past its knee.
SHORT_RATIO: Final = 0.1
# Nothing is known at the start, and one miss of three answers says little.
PRIOR_ANSWERS: Final = 20.0


def missed(ticket: Ticket, outcome: Outcome) -> bool:
    """Did it break a promise of its own? Of one that does not stream its user sees the end only."""
    targets, streams = ticket.tag.targets, ticket.request.stream
    return (
        outcome.result is FAILED
        or (outcome.e2e_s or 0.0) > targets.e2e_s
        or (streams and ((outcome.ttft_s or 0.0) > targets.ttft_s or (outcome.tpot_s or 0.0) > targets.itl_s))
    )


class Budget:
    """Of all models. `learn` is told every outcome."""

    __slots__ = ("_by_model",)

    def __init__(self) -> None:
        self._by_model: dict[str, list[float]] = {}  # answers and misses, fading, and as of when

    def learn(self, placement: Placement, outcome: Outcome) -> None:
        """It is over."""
        ticket = placement.ticket
        if outcome.result is CLIENT_GONE:
            return
        now_s = ticket.request.arrived_at_s + (outcome.e2e_s or 0.0)
        if now_s < placement.started_at_s:
            now_s = placement.started_at_s
        known = self._by_model.get(ticket.model)
        if known is None:
            known = self._by_model[ticket.model] = [0.0, 0.0, now_s]
        passed_s = now_s - known[2]
        if passed_s > 0.0:
            keep = exp(-passed_s / MEMORY_S)
            known[0] *= keep
            known[1] *= keep
            known[2] = now_s
        known[0] += 1.0
        if missed(ticket, outcome):
            known[1] += 1.0

    def left_ratios(self, model: str) -> tuple[float, float]:
        """Of what gives to think, and of what leaves not enough for everybody: 1 = hardly anything has missed of late, 0 = as much."""
        known = self._by_model.get(model)
        if known is None or not known[1]:
            return 1.0, 1.0
        missed_ratio = known[1] / (known[0] + PRIOR_ANSWERS)
        return max(1.0 - missed_ratio / SPENT_RATIO, 0.0), max(1.0 - missed_ratio / SHORT_RATIO, 0.0)
