"""Cheapest feasible: the cheapest tier that still meets every target, and in it the fullest instance."""

from __future__ import annotations

from gateway.core.flow import Ticket
from gateway.core.instance import Instance
from gateway.core.policy import LATE, WAIT, Chance, Fleet, Policy, Verdict


def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
    """Feasible: this request would keep every promise there, and the residents would keep their gaps."""
    if ticket.late:
        # Nothing is left to lose but other people's gaps: wherever it ends soonest without breaking them.
        best: Instance | None = None
        best_s = float("inf")
        for instance in fleet.open_instances(ticket):
            prediction = fleet.predict(ticket, instance, now_s)
            if prediction.itl_s <= instance.tightest_itl_s and prediction.e2e_s < best_s:
                best, best_s = instance, prediction.e2e_s
        return best or WAIT
    if not fleet.savable(ticket, now_s):
        return LATE
    chosen: Instance | None = None
    chosen_key = (0.0, 0.0)
    for instance in fleet.open_instances(ticket):
        key = (instance.usd_per_hour, -instance.saturation_ratio)
        if chosen is not None and key >= chosen_key:
            continue
        prediction = fleet.predict(ticket, instance, now_s)
        if prediction.meets(ticket, now_s) and prediction.itl_s <= instance.tightest_itl_s:
            chosen, chosen_key = instance, key
    return chosen or WAIT


def policy(chance: Chance) -> Policy:
    """Its urgency is slack against the promise."""
    return Policy(place=place, urgency=lambda ticket, now_s: ticket.slack_s(now_s) / ticket.tag.targets.ttft_s)
