"""Least predicted latency with headroom: the instance predicted to keep the promise with the most to spare, else the least late."""

from __future__ import annotations

from gateway.core.flow import Ticket
from gateway.core.instance import Instance
from gateway.core.policy import WAIT, Chance, Fleet, Policy, Verdict


def arrival(ticket: Ticket) -> float:
    """First come, first served."""
    return ticket.request.arrived_at_s


def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
    """As llm-d's scheduler does for one pool, here over all of them."""
    best: Instance | None = None
    best_key = (2, 0.0)
    targets = ticket.tag.targets
    for instance in fleet.open_instances(ticket):
        prediction = fleet.predict(ticket, instance, now_s)
        late = max((now_s + prediction.ttft_s - ticket.ttft_deadline_at_s) / targets.ttft_s, prediction.itl_s / targets.itl_s - 1.0)
        key = (0 if late <= 0 else 1, late)
        if key < best_key:
            best, best_key = instance, key
    return best or WAIT


def policy(chance: Chance) -> Policy:
    """Holds nothing."""
    return Policy(place, order=arrival, urgency=lambda ticket, now_s: ticket.request.arrived_at_s, plain=True)
