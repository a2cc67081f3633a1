"""Lowest latency: the instance whose last ten answers took the least time for each token, as some proxies route."""

from __future__ import annotations

from gateway.core.flow import Outcome, Placement, Result, Ticket
from gateway.core.instance import Instance
from gateway.core.policy import WAIT, Chance, Fleet, Policy, Verdict


def arrival(ticket: Ticket) -> float:
    """First come, first served."""
    return ticket.request.arrived_at_s


def policy(chance: Chance) -> Policy:
    """Keeps the last ten of each instance."""
    last: dict[str, list[float]] = {}

    def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
        def mean_s(instance: Instance) -> float:
            seen = last.get(instance.spec.instance_id)
            return sum(seen) / len(seen) if seen else 0.0

        return min(fleet.open_instances(ticket), key=mean_s, default=WAIT)

    def learn(placement: Placement, outcome: Outcome) -> None:
        if outcome.result is Result.COMPLETED and outcome.e2e_s is not None and outcome.output_tokens:
            seen = last.setdefault(placement.instance_id, [])
            seen.append(outcome.e2e_s / outcome.output_tokens)
            del seen[:-10]

    return Policy(place, order=arrival, urgency=lambda ticket, now_s: ticket.request.arrived_at_s, learn=learn, plain=True)
