"""Round robin by speed: turns in proportion to what each GPU can do, spread evenly (smooth weighted round robin, as proxies do it)."""

from __future__ import annotations

from gateway.core.fleet import Instance
from gateway.core.flow import Ticket
from gateway.core.policy import WAIT, Chance, Fleet, Policy, Verdict


def arrival(ticket: Ticket) -> float:
    """First come, first served."""
    return ticket.request.arrived_at_s


def policy(chance: Chance) -> Policy:
    """Each open instance earns its speed at every turn; the richest is taken and pays what all have earned."""
    credit: dict[str, float] = {}

    def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
        found = fleet.open_instances(ticket)
        if not found:
            return WAIT
        for instance in found:
            name = instance.spec.instance_id
            credit[name] = credit.get(name, 0.0) + instance.spec.speed_per_s
        best = max(found, key=lambda i: (credit[i.spec.instance_id], i.spec.instance_id))
        credit[best.spec.instance_id] -= sum(instance.spec.speed_per_s for instance in found)
        return best

    return Policy(place, order=arrival, urgency=lambda ticket, now_s: ticket.request.arrived_at_s, plain=True)
