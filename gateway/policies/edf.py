"""Earliest deadline first, on whatever instance is least full."""

from __future__ import annotations

from gateway.core.flow import Ticket
from gateway.core.instance import Instance
from gateway.core.policy import WAIT, Chance, Fleet, Policy, Verdict


def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
    """Least full; the order is the default one, by deadline."""
    return min(fleet.open_instances(ticket), key=lambda i: i.saturation_ratio, default=WAIT)


def policy(chance: Chance) -> Policy:
    """Holds nothing."""
    return Policy(place, plain=True)
