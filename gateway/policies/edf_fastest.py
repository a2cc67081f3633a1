"""Earliest deadline first, on the fastest instance that has room."""

from __future__ import annotations

from gateway.core.flow import Ticket
from gateway.core.instance import Instance
from gateway.core.policy import WAIT, Chance, Fleet, Policy, Verdict


def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
    """Fastest first."""
    return min(fleet.open_instances(ticket), key=lambda i: (-i.spec.speed_per_s, i.in_flight), default=WAIT)


def policy(chance: Chance) -> Policy:
    """Holds nothing."""
    return Policy(place, plain=True)
