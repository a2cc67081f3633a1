"""Prefix affinity: the instance that read this prompt's beginning last, unless it is twice as loaded as the least; else the least."""

from __future__ import annotations

from gateway.core.flow import Ticket
from gateway.core.instance import Instance
from gateway.core.policy import WAIT, Chance, Fleet, Policy, Verdict


def arrival(ticket: Ticket) -> float:
    """First come, first served."""
    return ticket.request.arrived_at_s


def policy(chance: Chance) -> Policy:
    """Remembers, in a bounded table, where each beginning went."""
    went: dict[int, str] = {}

    def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
        found = fleet.open_instances(ticket)
        if not found:
            return WAIT
        best = min(found, key=lambda i: (i.in_flight + 1) / i.spec.speed_per_s)
        hashes = ticket.request.prefix_hashes
        key = hashes[min(len(hashes), 4) - 1] if hashes else ticket.request.app
        home = next((i for i in found if i.spec.instance_id == went.get(key)), None)
        if home is not None and (home.in_flight + 1) / home.spec.speed_per_s <= 2.0 * (best.in_flight + 1) / best.spec.speed_per_s:
            best = home
        if len(went) > 20_000:
            del went[next(iter(went))]
        went[key] = best.spec.instance_id
        return best

    return Policy(place, order=arrival, urgency=lambda ticket, now_s: ticket.request.arrived_at_s, plain=True)
