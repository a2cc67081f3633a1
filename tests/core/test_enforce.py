"""The controller: how limits follow the measured gaps, and how much less they have to where predictions decide."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from gateway import policies
from gateway.core.decide import Core
from gateway.core.flow import Start
from gateway.core.instance import Instance
from gateway.predict.predictor import LearningPredictor
from tests.core.conftest import instance, request, settings, tag

SPEC = replace(instance(limit=8), limit_max=64, limit_pinned=False)
DECIDES = {  # by what the policy decides: predictions, a policy that asks for none, one that would but has no predictor
    "predictions": ("best_value", True),
    "counts": ("least_request", True),
    "nothing known": ("best_value", False),
}


def after_a_second(decides: str, *, running: int, gap_ratio: float, limit: int = 8) -> Instance:
    """`running` answers have streamed for a second, at a mean gap of so much of what was promised them."""
    policy, predicts = DECIDES[decides]
    predictor = LearningPredictor({SPEC.predictor_key: (7.7, 0.004, 0.076, 24.0)}) if predicts else None
    core = Core(settings(), policies.load(policy)(Random(0)), predictor)
    core.instances_changed([SPEC], 0.0)
    [one] = core.fleet.by_id.values()
    core.tick(10.0)
    promised = tag(0)
    for _ in range(running):
        [start] = core.arrived(request(), promised, 10.0)
        assert isinstance(start, Start)
        start.placement.first_token_at_s, start.placement.output_tokens = 10.1, 1
        core.first_token(start.placement, 10.1)
    core.fleet.set_limit(one, limit)
    tokens = 0.9 / (gap_ratio * promised.targets.itl_s)
    for placement in one.residents:
        placement.output_tokens, placement.last_token_at_s = 1 + round(tokens), 11.0
    core.tick(11.0)
    return one


def test_where_predictions_decide_a_limit_is_ahead_of_demand() -> None:
    assert after_a_second("predictions", running=4, gap_ratio=0.5).limit == 12
    assert after_a_second("predictions", running=2, gap_ratio=0.5).limit == 8  # there is room for a burst already


@pytest.mark.parametrize("decides", ["counts", "nothing known"])
def test_where_nobody_predicts_a_limit_grows_only_once_it_is_used(decides: str) -> None:
    assert after_a_second(decides, running=4, gap_ratio=0.5).limit == 8
    assert after_a_second(decides, running=7, gap_ratio=0.5).limit == 12
    assert after_a_second(decides, running=7, gap_ratio=0.95).limit == 8


@pytest.mark.parametrize(("decides", "limit"), [("predictions", 20), ("counts", 10), ("nothing known", 10)])
def test_a_gap_a_little_over_its_promise_closes_no_instance_that_predictions_would_not(decides: str, limit: int) -> None:
    assert after_a_second(decides, running=6, gap_ratio=1.1, limit=20).limit == limit


@pytest.mark.parametrize("decides", DECIDES)
def test_promises_broken_by_more_than_predictions_err_lower_the_limit_whoever_decides(decides: str) -> None:
    assert after_a_second(decides, running=6, gap_ratio=1.4, limit=20).limit == 10
    assert after_a_second(decides, running=6, gap_ratio=1.4, limit=9).limit == 8  # never below what the site began with


@pytest.mark.parametrize("decides", DECIDES)
def test_a_pinned_limit_stays(decides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.core.test_enforce.SPEC", replace(SPEC, limit_pinned=True))
    assert after_a_second(decides, running=7, gap_ratio=0.2).limit == 8
    assert after_a_second(decides, running=7, gap_ratio=2.0).limit == 8
