"""The share of promises that missed of late: what is left of it may be spent on cheaper cards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.budget import MEMORY_S, PRIOR_ANSWERS, SHORT_RATIO, SPENT_RATIO, Budget
from gateway.core.flow import Outcome, Placement, Result
from tests.core.conftest import MODEL, core_with, instance, request, tag


def placed(at_s: float = 10.0, stream: bool = True) -> Placement:
    ticket = core_with(instance()).ticket(replace(request(), arrived_at_s=at_s, stream=stream), tag(), at_s)
    ticket.model = MODEL
    return Placement(ticket, "premium/a", "premium", "premium", MODEL, at_s)


TARGETS = tag().targets
KEPT = Outcome(Result.COMPLETED, ttft_s=TARGETS.ttft_s / 2, tpot_s=TARGETS.itl_s / 2, e2e_s=TARGETS.e2e_s / 2)
LATE = replace(KEPT, ttft_s=TARGETS.ttft_s * 2)


def test_a_fleet_that_keeps_its_promises_may_use_cheaper_cards() -> None:
    budget = Budget()
    assert budget.left_ratios(MODEL)[0] == 1.0
    for _ in range(50):
        budget.learn(placed(), KEPT)
    assert budget.left_ratios(MODEL)[0] == 1.0


@pytest.mark.parametrize(
    "outcome",
    [
        LATE,
        replace(KEPT, tpot_s=TARGETS.itl_s * 2),
        replace(KEPT, e2e_s=TARGETS.e2e_s * 2),
        Outcome(Result.FAILED),
    ],
)
def test_each_broken_promise_takes_of_it(outcome: Outcome) -> None:
    budget = Budget()
    budget.learn(placed(), outcome)
    assert budget.left_ratios(MODEL)[0] < 1.0


def test_it_is_used_up_long_before_one_in_twenty_has_missed() -> None:
    budget = Budget()
    answers = round(PRIOR_ANSWERS * 20)
    for number in range(answers):
        budget.learn(placed(), LATE if number % 40 == 0 else KEPT)
    assert budget.left_ratios(MODEL)[0] == 0.0
    assert SPENT_RATIO < 1 / 20


def test_one_that_does_not_stream_is_judged_by_its_end_and_one_that_left_not_at_all() -> None:
    budget = Budget()
    budget.learn(placed(stream=False), LATE)
    budget.learn(placed(), Outcome(Result.CLIENT_GONE))
    assert budget.left_ratios(MODEL)[0] == 1.0


def test_misses_are_forgotten_and_those_of_one_model_are_not_another_s() -> None:
    budget = Budget()
    for _ in range(10):
        budget.learn(placed(), LATE)
    assert budget.left_ratios(MODEL)[0] == 0.0
    assert budget.left_ratios("another")[0] == 1.0
    for number in range(200):
        budget.learn(placed(10.0 + 10 * MEMORY_S + number / 10), KEPT)
    assert budget.left_ratios(MODEL)[0] > 0.95


def test_there_is_room_for_everybody_until_twice_as_many_miss_as_a_p95_leaves() -> None:
    budget = Budget()
    assert budget.left_ratios(MODEL)[1] == 1.0
    for number in range(400):
        budget.learn(placed(), LATE if number % 20 == 0 else KEPT)
    assert 0.4 < budget.left_ratios(MODEL)[1] < 0.6  # one in twenty: half of what leaves not enough
    for number in range(400):
        budget.learn(placed(), LATE if number % 5 == 0 else KEPT)
    assert budget.left_ratios(MODEL)[1] == 0.0
    assert pytest.approx(2 / 20) == SHORT_RATIO
