"""One queue, fastest first: first come, first served, on the fastest instance that has room."""

from __future__ import annotations

from gateway.core.fleet import Instance
from gateway.core.flow import Ticket
from gateway.core.policy import WAIT, Chance, Fleet, Policy, Verdict


def arrival(ticket: Ticket) -> float:
    """First come, first served."""
    return ticket.request.arrived_at_s


def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
    """Fastest first."""
    return min(fleet.open_instances(ticket), key=lambda i: (-i.spec.speed_per_s, i.in_flight), default=WAIT)


def policy(chance: Chance) -> Policy:
    """Holds nothing."""
    return Policy(place, order=arrival, urgency=lambda ticket, now_s: ticket.request.arrived_at_s, plain=True)
