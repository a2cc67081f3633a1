"""What a simulated run promises: the same from the same seed, nobody lost, and figures that mean what they say."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway.config.gpus import shipped_gpus
from gateway.config.reading import read_as
from gateway.core.flow import RefuseReason, Result, SloTargets
from gateway.simulate.bounds import flow_capacity
from gateway.simulate.fleets import SimulatedFleet, fleet
from gateway.simulate.knee import LOWEST_PER_S, InProcess, Point, RunFailed, knees, measured, run_suite, shipped_catalog, simulate
from gateway.simulate.machine import Machine, MachineFacts, Sequence
from gateway.simulate.run import Fault, Record, Run, policy_named
from gateway.simulate.score import confidence, jain, percentiles, score
from gateway.simulate.suite import Suite
from gateway.simulate.workload import Job, Workload

CATALOG = shipped_catalog()
POINT = Point("1xH100 + 1xA10:w4", Workload(), "best_value", "learning", None, 2.0, 7, 40.0, 5.0)
FAULTS = (Fault("death", 15.0, 0, until_s=25.0), Fault("slow", 5.0, 1, 0.5, 30.0))


def made(text: str, **more: Any) -> SimulatedFleet:
    return fleet(text, CATALOG, shipped_gpus(), **more)


# ---- runs


@pytest.mark.parametrize("policy", ["best_value", "power_of_two"])
def test_the_same_seed_gives_the_same_run_to_the_last_decision_and_another_seed_another(policy: str) -> None:
    point = replace(POINT, policy=policy, faults=FAULTS)
    first, again, other = (simulate(p, lists_decisions=True) for p in (point, point, replace(point, seed=8)))
    assert first.decisions == again.decisions != other.decisions
    assert first.records == again.records


@pytest.mark.parametrize("policy", ["best_value", "static_pools", "edf_fastest"])
@pytest.mark.parametrize("rate", [1.0, 12.0])
@pytest.mark.parametrize("faults", [(), FAULTS], ids=["well", "faults"])
def test_everybody_who_came_is_counted_once_whatever_became_of_them(policy: str, rate: float, faults: tuple[Fault, ...]) -> None:
    run = simulate(replace(POINT, policy=policy, rate_per_s=rate, faults=faults))
    assert len({record.job.job_id for record in run.records}) == len(run.records)
    ends = Counter(record.result for record in run.records)
    attained = sum(record.attained for record in run.records)
    missed = ends[Result.COMPLETED] - attained
    assert missed >= 0
    assert attained + missed + ends[Result.REFUSED] + ends[Result.FAILED] + ends[Result.CLIENT_GONE] == len(run.records)
    told = score(run)
    assert told["offered"] == len(run.records)
    for group in ("by_class", "by_use_case", "by_tenant"):
        assert sum(part["offered"] for part in told[group].values()) == told["offered"]
        assert sum(part["attained"] for part in told[group].values()) == attained


def test_a_dead_engine_costs_what_it_had_begun_to_say_and_nothing_else() -> None:
    run = simulate(replace(POINT, fleet="3xH100", rate_per_s=3.0, faults=(Fault("death", 20.0, 0),)))
    failed = [record for record in run.records if record.result is Result.FAILED]
    assert failed
    assert all(record.instance_id == "h100/0" and record.job.at_s < 20.0 for record in failed)
    assert not [record for record in run.records if record.job.at_s > 20.0 and record.instance_id == "h100/0"]


def test_a_slow_engine_is_given_less() -> None:
    point = replace(POINT, fleet="3xH100", rate_per_s=3.0, span_s=80.0)
    well, slow = (simulate(p) for p in (point, replace(point, faults=(Fault("slow", 10.0, 0, 0.3),))))
    share = [sum(record.instance_id == "h100/0" for record in run.records) for run in (well, slow)]
    assert share[1] < 0.8 * share[0]


def test_a_run_that_breaks_says_its_seed_and_the_command_that_repeats_it(tmp_path: Any) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("from gateway.core.policy import Policy\ndef policy(chance):\n    return Policy(lambda t, f, n: 1 / 0)\n")
    with pytest.raises(RunFailed, match=r"ZeroDivisionError.*\nseed 7; repeat with: slo-gateway simulate --fleet '1xH100"):
        simulate(replace(POINT, policy=str(broken)))


def test_a_policy_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="no policy named 'magic'"):
        policy_named("magic")


# ---- engines


def test_many_steps_at_once_end_when_single_steps_would() -> None:
    facts = MachineFacts(10.0, 0.1, 0.2, 100.0, jitter_ratio=0.0)
    ends = []
    for most in (1, 1_000_000):
        machine = Machine(facts, Random(1))
        for prompt, output in ((500, 40), (3_000, 90), (100, 7)):
            machine.submit(Sequence(None, prompt, output), 0.0)
        machine.run(0.0)
        machine.plan(0.0, most)
        over = []
        while not math.isinf(machine.next_at_s):
            now_s = machine.next_at_s
            over += [(sequence.prompt_tokens, pytest.approx(now_s)) for sequence in machine.run(now_s)[1]]
            machine.plan(now_s, most)
        ends.append(over)
        assert (machine.in_flight, machine.kv_used_tokens, machine.context_tokens) == (0, 0, 0)
    assert ends[0] == [(prompt, at_s) for prompt, at_s in ends[1]]


def test_an_engine_that_slows_down_does_so_at_its_next_step_however_far_it_had_planned() -> None:
    facts = MachineFacts(10.0, 0.0, 0.0, 100.0, jitter_ratio=0.0)
    machine = Machine(facts, Random(1))
    machine.submit(Sequence(None, 100, 1_001), 0.0)
    machine.run(0.0)
    machine.plan(0.0)
    first_at_s = machine.next_at_s
    machine.run(first_at_s)
    machine.plan(first_at_s)
    assert machine.next_at_s == pytest.approx(first_at_s + 10.0)
    machine.change(facts.slower(0.5), first_at_s + 2.005)
    now_s = machine.next_at_s
    assert now_s == pytest.approx(first_at_s + 2.01)
    assert machine.run(now_s) == ([], [])
    machine.plan(now_s)
    assert machine.next_at_s == pytest.approx(now_s + 799 * 0.02)


def test_an_engine_without_room_for_context_starts_over_and_loses_nobody() -> None:
    machine = Machine(MachineFacts(10.0, 0.1, 0.2, 100.0, kv_tokens=2_000), Random(1))
    for _ in range(6):
        machine.submit(Sequence(None, 300, 200), 0.0)
    done, now_s = 0, 0.0
    machine.run(now_s)
    machine.plan(now_s)
    while not math.isinf(machine.next_at_s):
        now_s = machine.next_at_s
        done += len(machine.run(now_s)[1])
        machine.plan(now_s)
        assert machine.kv_used_tokens <= 2_000 + 6
    assert done == 6
    assert machine.preempted


# ---- fleets


def test_a_fleet_is_what_it_says_and_engines_differ_within_their_spread() -> None:
    described = made("2xH100 + 3xA10:w4")
    assert [spec.instance_id for spec in described.specs] == ["h100/0", "h100/1", "a10-w4/0", "a10-w4/1", "a10-w4/2"]
    told = described.facts[described.specs[0].predictor_key][0]
    assert all(0.92 <= engine.a / told <= 1.08 for engine in described.engines[:2])
    assert described.engines[0].a != described.engines[1].a
    assert described == made("2xH100 + 3xA10:w4")
    assert described.usd_per_hour == pytest.approx(sum(spec.usd_per_hour for spec in described.specs))


@pytest.mark.parametrize(
    ("text", "said"),
    [("H100", "expected COUNTxGPU"), ("1xZ9", "no GPU named Z9"), ("1xT4", "does not run"), ("2xH100 + ", "expected COUNTxGPU")],
)
def test_a_fleet_that_cannot_be_read_says_which_part(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(text)


def test_limits_and_wrong_facts_change_what_the_gateway_is_told_and_not_the_engines() -> None:
    described = made("2xH100")
    limited, misjudged = described.limited(9), described.misjudged(2.0)
    assert {spec.limit_start for spec in limited.specs} == {9}
    assert misjudged.engines == described.engines
    assert misjudged.facts["H100|model-8b|"][0] == pytest.approx(2 * described.facts["H100|model-8b|"][0])


# ---- figures


def record(at_s: float = 10.0, tenant: str = "a", result: Result = Result.COMPLETED, ttft_s: float = 0.1, **more: Any) -> Record:
    job = Job("j", at_s, "chatbot", "chatbot", tenant, 100, 10)
    given = {"tpot_s": 0.01, "itl_p95_s": 0.01, "e2e_s": 1.0, "output_tokens": 10} | more
    return Record(job, "conversational", SloTargets(0.3, 0.03, 5.0, 5.0), result, ttft_s, **given)


def test_attained_is_within_every_target_and_over_everybody_who_came() -> None:
    refused = record(result=Result.REFUSED, refuse_reason=RefuseReason.EXPIRED, output_tokens=0)
    late = [record(ttft_s=0.31), record(tpot_s=0.031), record(e2e_s=5.1)]
    told = score(Run([record(), record(itl_p95_s=0.2), *late, refused, record(result=Result.FAILED)], 20.0, 7.2, 2))
    assert (told["offered"], told["attained"]) == (7, 2)
    assert told["attained_strict_ratio"] == pytest.approx(1 / 7)
    assert told["missed"] == {"ttft": 1, "itl": 1, "e2e": 1}
    assert told["refused"] == {"expired": 1}
    assert told["goodput_per_s"] == pytest.approx(0.1)
    assert told["goodput_per_usd"] == pytest.approx(0.1 * 3600 / 7.2)
    assert told["goodput_per_gpu_hour"] == pytest.approx(180)
    assert told["wasted_tokens_ratio"] == pytest.approx(1 - 20 / 60)


def test_what_came_during_the_warm_up_does_not_count() -> None:
    told = score(Run([record(1.0, ttft_s=9.0), record(12.0)], 20.0, 1.0, 1), warm_up_s=10.0)
    assert (told["offered"], told["attained_ratio"], told["goodput_per_s"]) == (1, 1.0, 0.1)


def test_jains_index_is_one_among_equals_and_a_share_where_one_has_all() -> None:
    assert jain([0.5, 0.5, 0.5]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([3.0, 1.0]) == pytest.approx(16 / 20)
    run = Run([record(tenant="a"), record(tenant="b", ttft_s=9.0)], 20.0, 1.0, 1)
    assert score(run)["jain_index"] == pytest.approx(0.5)


def test_percentiles_are_values_that_occurred_and_intervals_those_of_student() -> None:
    assert percentiles(float(n) for n in range(1, 101)) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert percentiles([None]) is None
    assert confidence([4.0]) == (4.0, 0.0)
    mean, half = confidence([4.0, 5.0, 6.0])
    assert (mean, half) == (5.0, pytest.approx(4.303 / math.sqrt(3)))


# ---- knees


def test_bisection_finds_a_knee_that_single_runs_confirm() -> None:
    point = replace(POINT, fleet="1xH100", workload=Workload(mix={"chatbot": 1.0}), span_s=60.0)
    found = knees(point, 3.0, 0.04)
    again = knees(point, 1.5, 0.04)
    assert found["rate_95"] <= found["rate_90"]
    assert again["rate_90"] == pytest.approx(found["rate_90"], rel=0.15)
    below, above = (measured(replace(point, rate_per_s=found["rate_90"] * x))["attained_ratio"] for x in (0.8, 1.35))
    assert below > 0.9 > above


def test_a_fleet_that_never_attains_has_no_knee() -> None:
    assert knees(replace(POINT, fleet="1xT4:w4", span_s=30.0), 5.0, 0.1)["rate_90"] <= LOWEST_PER_S * 1.1


def test_no_policy_passes_the_flow_bound() -> None:
    mix = {"chatbot": 1.0}
    point = replace(POINT, fleet="1xH100", workload=Workload(mix=mix), span_s=60.0)
    bound = flow_capacity(made("1xH100"), CATALOG, mix)
    assert knees(point, 3.0, 0.04)["rate_90"] < bound
    assert flow_capacity(made("2xH100"), CATALOG, mix) == pytest.approx(2 * bound, rel=0.1)


def test_a_suite_gives_one_object_for_each_case_and_policy_with_the_promised_words() -> None:
    suite = read_as(
        Suite,
        {
            "span": "20s",
            "warm_up": "4s",
            "seeds": 2,
            "limits": [16],
            "overload": [0.5, 2.0],
            "precision": 0.2,
            "cases": [{"fleet": "1xH100"}, {"fleet": "1xH100", "rate": 2, "name": "fixed"}],
            "policies": ["best_value", "edf"],
        },
        Path(),
    )
    stages: list[str] = []
    results = run_suite(suite, InProcess(), lambda what, done, of: stages.append(what))
    assert [(each["case"], each["policy"]) for each in results] == [
        ("1xH100, nominal", "best_value"),
        ("1xH100, nominal", "edf"),
        ("fixed", "best_value"),
        ("fixed", "edf"),
    ]
    for each in results:
        assert {"rate_90", "rate_95", "goodput_per_usd", "overload"} <= each.keys()
        for point in each["overload"]:
            assert {"x", "goodput_per_s", "attained_ratio", "by_class", "refused_ratio"} <= point.keys()
    assert results[0]["rate_90"] >= results[0]["rate_95"] > 0
    assert [point["x"] for point in results[0]["overload"]] == [0.5, 2.0]
    assert results[1]["limit"] == 16
    assert results[2]["rate_90"] is None
    assert any("knees" in stage for stage in stages)


def test_a_suite_is_drawn_with_every_policy_and_class(tmp_path: Any) -> None:
    from gateway.simulate.picture import draw

    point = replace(POINT, fleet="1xH100", span_s=20.0)
    results = []
    for policy in ("best_value", "edf"):
        curve = [measured(replace(point, policy=policy, rate_per_s=rate)) | {"x": rate} for rate in (1.0, 4.0)]
        results.append({"case": "one GPU", "policy": policy, "rate_90": curve[0]["attained_ratio"], "overload": curve})
    draw(results, str(tmp_path / "knees.svg"))
    text = (tmp_path / "knees.svg").read_text()
    for word in ("one GPU", "best_value", "edf", "conversational", "batch", "offered requests/s"):
        assert word in text
    draw(results, str(tmp_path / "knees.png"))
    assert (tmp_path / "knees.png").read_bytes().startswith(b"\x89PNG")


def test_who_is_still_on_the_way_to_an_engine_that_dies_is_given_up_like_the_others() -> None:
    machine = Machine(MachineFacts(10.0, 0.0, 0.0, 100.0), Random(1))
    on_its_way = Sequence(None, 100, 10)
    machine.cancel(on_its_way, 1.0)
    assert machine.in_flight == 0
    machine.cancel(on_its_way, 1.0)
