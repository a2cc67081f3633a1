"""Earliest deadline first, on whatever instance is least full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.core.fleet import Instance
from gateway.core.flow import Ticket
from gateway.core.policy import WAIT, Fleet, Policy, Verdict

if TYPE_CHECKING:
    from random import Random


def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
    """Least full; the order is the default one, by deadline."""
    return min(fleet.open_instances(ticket), key=lambda i: i.saturation_ratio, default=WAIT)


def policy(chance: Random) -> Policy:
    """Holds nothing."""
    return Policy(place, plain=True)
