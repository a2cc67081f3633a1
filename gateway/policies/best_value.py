"""Best value: the instance where this promise is most likely kept, less what its hardware costs and what its residents would lose.

Hard bounds are the first token and the gaps (this request's and all residents'). Whether the whole answer ends in time depends on a length
nobody knows: with r = time left / time predicted it is taken for 1 / (1 + r^-SPREAD), which is what lengths that spread as traces do give.
A dearer card has to be worth its price in likelihood, and a long prompt is charged for the time it holds up everyone who streams there.
"""

from __future__ import annotations

from gateway.core.fleet import Instance
from gateway.core.flow import Ticket
from gateway.core.policy import LATE, WAIT, Chance, Fleet, Policy, Verdict

# Chosen in the simulator (docs/simulate.md): a mixed fleet's knee is flat around them.
SPREAD = 2.0
USD = 0.02  # likelihood that a dollar an hour has to be worth
HOLD_UP = 0.03  # likelihood lost per resident and second of prefill


def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
    """Late ones go wherever they end soonest without breaking anybody's gaps."""
    late = ticket.late
    best: Instance | None = None
    best_value = -1e9
    left_s = ticket.e2e_deadline_at_s - now_s
    ttft_left_s = ticket.ttft_deadline_at_s - now_s
    itl_target_s = ticket.itl_target_s or ticket.tag.targets.itl_s
    for instance in fleet.open_instances(ticket):
        prediction = fleet.predict(ticket, instance, now_s)
        ttft_s, itl_s = prediction.ttft_s, prediction.itl_s
        if itl_s > instance.tightest_itl_s:
            continue
        if late:
            value = -prediction.e2e_s
        elif ttft_s > ttft_left_s or itl_s > itl_target_s:
            continue
        else:
            rest_s = prediction.e2e_s - ttft_s
            ratio = (left_s - ttft_s) / rest_s if rest_s > 1e-6 else 100.0
            likely = 1.0 / (1.0 + max(ratio, 1e-3) ** -SPREAD)
            value = likely - USD * instance.usd_per_hour - HOLD_UP * instance.in_flight * ttft_s
        if value > best_value:
            best, best_value = instance, value
    if best is not None:
        return best
    return WAIT if late or fleet.savable(ticket, now_s) else LATE


def policy(chance: Chance) -> Policy:
    """Its urgency is slack against the promise."""
    return Policy(place=place, urgency=lambda ticket, now_s: ticket.slack_s(now_s) / ticket.tag.targets.ttft_s)
