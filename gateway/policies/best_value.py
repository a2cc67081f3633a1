"""Best value: the instance where keeping this promise is worth most beside what it takes from the promises already made there.

Worth is the likelihood that first token, gaps and end are all in time. The price is the engine time the request takes, at what a second of
delay costs the residents: a toll by congestion, so that long prompts keep away from where tight answers stream, and in overload those who
ask for least are served. What is worth less than its price waits while it can be saved, and then takes only what nobody misses.
"""

from __future__ import annotations

from gateway.core.flow import Ticket
from gateway.core.instance import Instance
from gateway.core.policy import LATE, WAIT, Chance, Fleet, Policy, Verdict

# All flat in the simulator (docs/simulate.md).
TOLL = 3.0  # delays breed delays: who is held up stays longer, in the way of those who come next
LEAST = 0.3  # likelihood below which an engine's time is better kept for somebody else
IDLE = 0.05  # what serving somebody late is worth
EDGE = 9.0 ** (1 / 6)  # of a promise: where the odds that it is kept are even
USD = 0.005  # likelihood that a dollar an hour has to be worth


def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
    """Lengths spread as in traces: the end is in time with odds (time left / time predicted)^2. First tokens and gaps are known better:
    the odds are 9 to 1 where the cautious prediction just holds, and change with its sixth power."""
    late, weight = ticket.late, ticket.weight
    left_s, ttft_left_s = ticket.e2e_deadline_at_s - now_s, ticket.ttft_deadline_at_s - now_s
    left_s, ttft_left_s = left_s if left_s > 1e-3 else 1e-3, ttft_left_s if ttft_left_s > 1e-3 else 1e-3
    itl_target_s = ticket.itl_target_s or ticket.tag.targets.itl_s
    most_s, even_ttft_s, even_itl_s = 1e9 if late else itl_target_s, ttft_left_s * EDGE, itl_target_s * EDGE
    best: Instance | None = None
    best_value, best_odds = 0.0 if late else weight * LEAST, (1.0, 1.0, 1.0)
    for instance, ttft_s, itl_s, e2e_s, work_s, _, tightest_itl_s in fleet.consider(ticket, now_s):
        if itl_s > most_s or itl_s > tightest_itl_s:
            continue
        end = (e2e_s - ttft_s) / (left_s - ttft_s if left_s > ttft_s else 1e-6)
        gap, first = itl_s / even_itl_s, ttft_s / even_ttft_s
        gap, first = gap * gap * gap, first * first * first
        ends, flows = 1.0 + end * end, 1.0 + gap * gap
        likely = weight / (ends * flows * (1.0 + first * first))
        value = likely - TOLL * instance.stake_per_s * work_s - USD * instance.usd_per_hour
        if late:
            value += max(weight * IDLE - likely, 0.0) - 1e-5 * e2e_s
        if value > best_value:
            best, best_value, best_odds = instance, value, (likely, ends, flows)
    if best is None:
        return WAIT if late or fleet.savable(ticket, now_s) else LATE
    likely, ends, flows = best_odds
    gaps_s = max(ticket.expected_output_tokens, 4.0) * itl_target_s
    ticket.stake_per_s = likely * (2.0 * (1.0 - 1.0 / ends) / left_s + 6.0 * (1.0 - 1.0 / flows) / gaps_s)
    return best


def policy(chance: Chance) -> Policy:
    """Its urgency is slack against the promise."""
    return Policy(place=place, urgency=lambda ticket, now_s: ticket.slack_s(now_s) / ticket.tag.targets.ttft_s)
