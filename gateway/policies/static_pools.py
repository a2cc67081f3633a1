"""Static pools: each class has its first tier and no other; a class whose tier is not there takes the next one."""

from __future__ import annotations

from gateway.core.flow import Ticket
from gateway.core.instance import Instance
from gateway.core.policy import WAIT, Chance, Fleet, Policy, Verdict


def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
    """The least full of the class's own tier."""
    there = {i.spec.tier for i in fleet.instances(ticket)}
    own = next((tier for tier in ticket.tag.tiers if tier in there), "")
    found = [i for i in fleet.open_instances(ticket) if i.spec.tier == own or not own]
    return min(found, key=lambda i: (i.in_flight + 1) / i.spec.speed_per_s, default=WAIT)


def policy(chance: Chance) -> Policy:
    """Earliest deadline first inside a pool."""
    return Policy(place, plain=True)
