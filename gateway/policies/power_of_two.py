"""Power of two choices: the less loaded, for its speed, of two open instances picked by chance."""

from __future__ import annotations

from gateway.core.flow import Ticket
from gateway.core.instance import Instance
from gateway.core.policy import WAIT, Chance, Fleet, Policy, Verdict


def arrival(ticket: Ticket) -> float:
    """First come, first served."""
    return ticket.request.arrived_at_s


def policy(chance: Chance) -> Policy:
    """Chance comes seeded."""

    def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
        found = fleet.open_instances(ticket)
        if not found:
            return WAIT
        pair = found if len(found) < 3 else chance.sample(list(found), 2)
        return min(pair, key=lambda i: (i.in_flight + 1) / i.spec.speed_per_s)

    return Policy(place, order=arrival, urgency=lambda ticket, now_s: ticket.request.arrived_at_s, plain=True)
