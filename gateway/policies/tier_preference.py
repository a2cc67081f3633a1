"""Tier preference: the class's preferred tier that has room, in it the fullest instance; no predictions."""

from __future__ import annotations

from gateway.core.flow import Ticket
from gateway.core.instance import Instance
from gateway.core.policy import LATE, WAIT, Chance, Fleet, Policy, Verdict


def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
    """Late ones take whatever is open once nobody else wants it."""
    if now_s > ticket.ttft_deadline_at_s and not ticket.late:
        return LATE
    tiers = ticket.tag.tiers

    def preference(instance: Instance) -> tuple[int, float]:
        tier = instance.spec.tier
        return tiers.index(tier) if tier in tiers else len(tiers), -instance.saturation_ratio

    return min(fleet.open_instances(ticket), key=preference, default=WAIT)


def policy(chance: Chance) -> Policy:
    """Its urgency is slack against the promise, so that a class with a long promise does not look patient for ever."""
    return Policy(place=place, urgency=lambda ticket, now_s: ticket.slack_s(now_s) / ticket.tag.targets.ttft_s)
