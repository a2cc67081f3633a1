"""Least request: the open instance with the fewest requests, first come, first served."""

from __future__ import annotations

from gateway.core.flow import Ticket
from gateway.core.instance import Instance
from gateway.core.policy import WAIT, Chance, Fleet, Policy, Verdict


def arrival(ticket: Ticket) -> float:
    """First come, first served."""
    return ticket.request.arrived_at_s


def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
    """Fewest in flight."""
    return min(fleet.open_instances(ticket), key=lambda i: i.in_flight, default=WAIT)


def policy(chance: Chance) -> Policy:
    """Holds nothing."""
    return Policy(place, order=arrival, urgency=lambda ticket, now_s: ticket.request.arrived_at_s, plain=True)
