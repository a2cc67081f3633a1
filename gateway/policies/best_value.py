"""Best value: the instance where keeping this promise is worth most beside what it takes from the promises already made there.

Worth is the likelihood that first token, gaps and end are all in time. The price is the engine time the request takes, at what a second of
delay costs the residents: a toll by congestion, so that long prompts keep away from where tight answers stream, and in overload those who
ask for least are served. What is worth less than its price waits while it can be saved, and then takes only what nobody misses.
"""

from __future__ import annotations

from gateway.core.fleet import Instance
from gateway.core.flow import Ticket
from gateway.core.policy import LATE, WAIT, Chance, Fleet, Policy, Verdict

# All flat in the simulator (docs/simulate.md): half or twice of each moves no knee by more than 3 %.
TOLL = 3.0  # delays breed delays: who is held up stays longer, in the way of those who come next
LEAST = 0.3  # likelihood below which an engine's time is better kept for somebody else
IDLE = 0.02  # what serving somebody late is worth
USD = 0.005  # likelihood that a dollar an hour has to be worth


def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
    """Lengths spread as in traces: the end is in time with odds (time left / time predicted)^2. First tokens and gaps are known better:
    the odds are 9 to 1 where the cautious prediction just holds, and change with its sixth power."""
    late, weight, output_tokens = ticket.late, ticket.weight, max(ticket.expected_output_tokens, 4.0)
    left_s, ttft_left_s = max(ticket.e2e_deadline_at_s - now_s, 1e-3), max(ticket.ttft_deadline_at_s - now_s, 1e-3)
    itl_target_s = ticket.itl_target_s or ticket.tag.targets.itl_s
    best, best_value = None, -1e9
    for instance in fleet.open_instances(ticket):
        prediction = fleet.predict(ticket, instance, now_s)
        ttft_s, itl_s, rest_s = prediction.ttft_s, prediction.itl_s, prediction.e2e_s - prediction.ttft_s
        if itl_s > instance.tightest_itl_s or (itl_s > itl_target_s and not late):
            continue
        spare_s = left_s - ttft_s
        ends = spare_s * spare_s / (spare_s * spare_s + rest_s * rest_s) if spare_s > 0.0 else 0.0
        ratio, gap_ratio = (ttft_s / ttft_left_s) ** 2, (itl_s / itl_target_s) ** 2
        flows = 9.0 / (9.0 + gap_ratio * gap_ratio * gap_ratio)
        likely = weight * ends * flows * 9.0 / (9.0 + ratio * ratio * ratio)
        toll = TOLL * instance.stake_per_s * prediction.work_s
        if (max(likely, weight * IDLE) if late else likely - weight * LEAST) <= toll:
            continue
        value = likely - toll - USD * instance.usd_per_hour - (1e-4 * prediction.e2e_s if late else 0.0)
        if value > best_value:
            best, best_value = instance, value
            ticket.stake_per_s = likely * (2.0 * (1.0 - ends) / left_s + 6.0 * (1.0 - flows) / (output_tokens * itl_target_s))
    if best is not None:
        return best
    return WAIT if late or fleet.savable(ticket, now_s) else LATE


def policy(chance: Chance) -> Policy:
    """Its urgency is slack against the promise."""
    return Policy(place=place, urgency=lambda ticket, now_s: ticket.slack_s(now_s) / ticket.tag.targets.ttft_s)
