"""Round robin: each open instance in its turn, first come, first served."""

from __future__ import annotations

from gateway.core.flow import Ticket
from gateway.core.instance import Instance
from gateway.core.policy import WAIT, Chance, Fleet, Policy, Verdict


def arrival(ticket: Ticket) -> float:
    """First come, first served."""
    return ticket.request.arrived_at_s


def policy(chance: Chance) -> Policy:
    """The turn goes on over all that is open."""
    turn = 0

    def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
        nonlocal turn
        found = fleet.open_instances(ticket)
        if not found:
            return WAIT
        turn += 1
        return sorted(found, key=lambda i: i.spec.instance_id)[turn % len(found)]

    return Policy(place, order=arrival, urgency=lambda ticket, now_s: ticket.request.arrived_at_s, plain=True)
