"""More than a fleet can serve: what is kept then, whose it is, and what is never done."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from gateway.core.flow import RefuseReason
from gateway.simulate.knee import Point, measured, simulate
from gateway.simulate.workload import Workload

SEED = 91
MIXED = Point("3xH100 + 4xL40S:w8 + 4xA10:w4", Workload(), "best_value", "learning", None, 6.0, SEED, 60.0, 15.0)


@cache
def at(rate: float, policy: str = "best_value", limit: int | None = None) -> dict[str, Any]:
    return measured(replace(MIXED, rate_per_s=rate, policy=policy, limit=limit))


def test_twice_what_a_fleet_can_serve_takes_nothing_from_what_it_keeps() -> None:
    knee, twice = at(6.0), at(12.0)
    assert knee["attained_ratio"] >= 0.85
    assert twice["goodput_per_s"] >= knee["goodput_per_s"]


@pytest.mark.parametrize(("policy", "limit"), [("cheapest_feasible", 32), ("headroom", 32)])
def test_too_much_is_met_better_than_by_whoever_plans_with_the_same_predictions(policy: str, limit: int) -> None:
    assert at(12.0)["goodput_per_s"] >= 1.2 * at(12.0, policy, limit)["goodput_per_s"]


def test_in_overload_tight_answers_are_kept_and_the_long_ones_wait() -> None:
    classes = at(12.0)["by_class"]
    for name in ("instant", "conversational", "interactive"):
        assert classes[name]["attained_ratio"] >= 0.8
    assert classes["batch"]["attained_ratio"] < classes["interactive"]["attained_ratio"]


def test_what_is_not_refusable_is_never_refused_for_load() -> None:
    run = simulate(replace(MIXED, rate_per_s=14.0))
    loose = [record for record in run.records if record.experience_class in ("deferred", "batch")]
    assert {record.refuse_reason for record in loose} <= {None, RefuseReason.EXPIRED}


def test_a_tenant_that_sends_ten_times_as_much_pays_for_it_itself() -> None:
    noisy = Workload("noisy", tenants={"loud": 10, "quiet": 1})
    runs = [measured(replace(MIXED, workload=noisy, rate_per_s=9.0, span_s=240.0, seed=SEED + more))["by_tenant"] for more in range(3)]
    quiet, loud = (sum(run[who]["attained"] for run in runs) / sum(run[who]["offered"] for run in runs) for who in ("quiet", "loud"))
    assert quiet >= 0.95
    assert quiet > loud
