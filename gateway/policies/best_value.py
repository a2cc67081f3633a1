"""Best value: the instance where keeping this promise is worth most beside what it takes from the promises already made there.

Worth is the likelihood that first token, gaps and end are all in time; the price is the engine time it takes, at what a delay costs those
there, or the class an instance is kept for. What is worth less waits while it can be saved, then takes what nobody misses."""

from __future__ import annotations

from gateway.core.budget import Budget
from gateway.core.flow import Outcome, Placement, Ticket
from gateway.core.instance import Instance
from gateway.core.policy import LATE, WAIT, Chance, Fleet, Policy, Verdict
from gateway.core.reserve import Reserve

TOLL, EASE = 2.5, 0.35  # delays breed delays: who is held up stays in the way of those who come next; fewer while there is room for all
ENOUGH = 0.9  # odds of the end, which are wide: on a calm fleet 99 in 100 of what is predicted so are in time
LEAST, IDLE = 0.3, 0.05  # value for which an engine's time is kept once there is not enough of it; what serving somebody late is worth
USD = 0.005  # likelihood that a dollar an hour has to be worth


def policy(chance: Chance) -> Policy:
    """It remembers where a class that is worth more streams, and what has missed."""
    reserve, budget = Reserve(), Budget()

    def place(ticket: Ticket, fleet: Fleet, now_s: float) -> Instance | Verdict:
        # Odds against the end: (predicted / time left)^2, as lengths spread. Against a gap of x times its promise: x^6 to 9; against such a
        # first token x^6 + x^24 to 9: who comes after it may still delay it a little, and well beyond its promise nothing saves it.
        late, weight, itl_target_s = ticket.late, ticket.weight, ticket.itl_target_s or ticket.tag.targets.itl_s
        left_s, ttft_left_s = max(ticket.e2e_deadline_at_s - now_s, 1e-3), max(ticket.ttft_deadline_at_s - now_s, 1e-3)
        calm_ratio, room_ratio = budget.left_ratios(ticket.model)
        kept = ticket.kept = reserve.kept_from(ticket, fleet, room_ratio, now_s)
        toll, most_s = TOLL * (1.0 - EASE * room_ratio), 1e9 if late else itl_target_s
        best: Instance | None = None
        best_value, best_odds = 0.0 if late else weight * LEAST * (1.0 - room_ratio), (1.0, 1.0, 1.0)
        for instance, ttft_s, itl_s, e2e_s, work_s, _, tightest_itl_s in fleet.consider(ticket, now_s):
            if itl_s > most_s or itl_s > tightest_itl_s:
                continue
            end = (e2e_s - ttft_s) / (left_s - ttft_s if left_s > ttft_s else 1e-6)
            gap, first = itl_s / itl_target_s, ttft_s / ttft_left_s
            gap, first = gap * gap * gap, first * first * first
            first, ends, flows = first * first, 1.0 + end * end, 1.0 + gap * gap / 9.0
            likely = weight / (ends * flows * (1.0 + first * (1.0 + first * first * first) / 9.0))
            worth = likely * (1.0 - calm_ratio * (1.0 - ENOUGH * ends)) if ENOUGH * ends < 1.0 else likely
            cost = toll * instance.stake_per_s * work_s
            value = worth - (cost if kept is None else kept.cost(instance, cost, work_s, ttft_s, TOLL)) - USD * instance.usd_per_hour
            value += max(weight * IDLE - likely, 0.0) - 1e-5 * e2e_s if late else 0.0
            if value > best_value:
                best, best_value, best_odds = instance, value, (likely, ends, flows)
        if best is None:
            return WAIT if late or fleet.savable(ticket, now_s) else LATE
        likely, ends, flows = best_odds
        gaps_s = max(ticket.expected_output_tokens, 4.0) * itl_target_s
        ticket.stake_per_s = likely * (2.0 * (1.0 - 1.0 / ends) / left_s + 6.0 * (1.0 - 1.0 / flows) / gaps_s)
        return best

    def learn(placement: Placement, outcome: Outcome) -> None:
        reserve.learn(placement, outcome)
        budget.learn(placement, outcome)

    return Policy(place, urgency=lambda ticket, now_s: ticket.slack_s(now_s) / ticket.tag.targets.ttft_s, learn=learn)
