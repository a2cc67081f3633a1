"""The same core on every kind of fleet: one GPU, a dozen alike, a mix, several models, little memory, somebody's API."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from gateway.config.build import step_facts
from gateway.config.gpus import shipped_gpus
from gateway.core.flow import EngineKind, InstanceSpec, RefuseReason, Result
from gateway.predict.predictor import LearningPredictor
from gateway.simulate.fleets import MODEL, SimulatedFleet, fleet
from gateway.simulate.knee import shipped_catalog
from gateway.simulate.machine import MachineFacts
from gateway.simulate.run import Run, Simulation, policy_named
from gateway.simulate.score import part_ratio, score
from gateway.simulate.workload import Workload, jobs

CATALOG = shipped_catalog()
CHAT = {"chatbot": 3.0, "content_generation": 1.0}
LONG = {"document_rag": 1.0, "chatbot": 1.0}
# Time to the first token and between tokens as of a large provider; whoever else is served there is not seen.
REMOTE = MachineFacts(12.0, 0.0, 0.0, 0.0, max_num_seqs=4096, overhead_s=0.12, attention=0.0, crowd=0.0)


def described(text: str) -> SimulatedFleet:
    return fleet(text, CATALOG, shipped_gpus())


def with_remote(text: str, limit: int = 256) -> SimulatedFleet:
    own = described(text)
    spec = InstanceSpec("api/0", "api", "premium", 0, MODEL, "", 20.0, limit, engine=EngineKind.REMOTE)
    facts = own.facts | step_facts([spec])
    return replace(own, specs=(*own.specs, spec), engines=(*own.engines, REMOTE), facts=facts)


def with_kv(made: SimulatedFleet, tokens: list[int]) -> SimulatedFleet:
    specs = tuple(replace(spec, kv_tokens=kv) for spec, kv in zip(made.specs, tokens, strict=True))
    engines = tuple(replace(engine, kv_tokens=kv) for engine, kv in zip(made.engines, tokens, strict=True))
    return replace(made, specs=specs, engines=engines)


def run_of(made: SimulatedFleet, rate: float, mix: dict[str, float] | None = None, policy: str = "best_value", **more: Any) -> Run:
    span_s = more.pop("span_s", 60.0)
    sent = jobs(Workload(mix=mix), CATALOG, rate, span_s, seed=3)
    return Simulation(
        made, sent, CATALOG, policy_named(policy), lambda machines: LearningPredictor(made.facts), span_s=span_s, **more
    ).run()


def attained(run: Run) -> float:
    return part_ratio([record for record in run.records if record.job.at_s > 10.0])


def test_one_gpu_keeps_its_promises_and_turns_away_early_what_it_cannot_keep() -> None:
    easy, hard = run_of(described("1xH100"), 1.5, CHAT), run_of(described("1xH100"), 40.0, CHAT)
    assert attained(easy) >= 0.95
    refused = [record for record in hard.records if record.refuse_reason is RefuseReason.CANNOT_MEET_SLO]
    assert len(refused) > 0.1 * len(hard.records)
    assert max(record.queue_s for record in refused) == 0.0  # on arrival, not after a wait in vain
    # What is served of too much is served well: not everybody a little late.
    served = [record for record in hard.records if record.result is Result.COMPLETED and record.job.use_case == "chatbot"]
    assert part_ratio(served) >= 0.8


def test_twelve_alike_carry_twelve_times_as_much_and_each_of_them_works() -> None:
    run = run_of(described("12xH100"), 18.0, CHAT)
    assert attained(run) >= 0.95
    placed = Counter(record.instance_id for record in run.records if record.instance_id)
    assert len(placed) == 12


def test_a_mixed_fleet_gives_tight_work_to_fast_cards_and_keeps_more_than_static_pools() -> None:
    made = described("2xH100 + 2xL40S:w8 + 3xA10:w4")
    run, static = run_of(made, 3.0), run_of(made, 3.0, policy="static_pools")
    assert attained(run) >= attained(static) + 0.1
    tier = {name: Counter(r.tier for r in run.records if r.job.use_case == name) for name in ("document_rag", "research_legal")}
    assert tier["document_rag"]["premium"] > 0.9 * tier["document_rag"].total()
    assert tier["research_legal"]["premium"] < tier["research_legal"].total()


def test_little_kv_memory_is_never_promised_twice() -> None:
    # By slots alone both would take 16; by memory about three long documents.
    made = with_kv(described("2xH100").limited(16), [16_000, 16_000])
    run = run_of(made, 3.0, LONG)
    blind = with_kv(made, [16_000, 16_000])
    blind = replace(blind, specs=tuple(replace(spec, kv_tokens=0) for spec in blind.specs))
    unaware = run_of(blind, 3.0, LONG)
    assert run.preempted <= unaware.preempted / 3
    assert attained(run) >= attained(unaware) + 0.2


def test_a_prompt_that_one_instance_could_never_hold_goes_to_the_other() -> None:
    made = with_kv(described("2xH100"), [3_000, 400_000])
    run = run_of(made, 1.5, LONG)
    where = {name: Counter(r.instance_id for r in run.records if r.job.use_case == name and r.job.prompt_tokens > 3_000) for name in LONG}
    assert where["document_rag"]["h100/0"] == 0 < where["document_rag"]["h100/1"]
    assert any(record.instance_id == "h100/0" for record in run.records)
    assert attained(run) >= 0.9


@pytest.mark.parametrize("policy", ["best_value", "cheapest_feasible", "headroom"])
def test_a_remote_api_takes_what_own_gpus_cannot_and_is_not_believed_to_slow_down_with_load(policy: str) -> None:
    alone, helped = (run_of(made, 8.0, CHAT, policy=policy) for made in (described("2xL40S:w8"), with_remote("2xL40S:w8")))
    assert attained(helped) >= attained(alone) + 0.2
    there = [record for record in helped.records if record.instance_id == "api/0"]
    assert len(there) > 50
    assert part_ratio(there) >= 0.95


def test_own_gpus_are_used_before_an_api_that_costs_more() -> None:
    run = run_of(with_remote("2xH100"), 1.0, CHAT)
    assert sum(record.instance_id == "api/0" for record in run.records) < 0.1 * len(run.records)


def test_what_an_api_takes_is_learnt_without_a_batch_in_it() -> None:
    made = with_remote("1xL40S:w8")
    kept: list[LearningPredictor] = []

    def predictor(machines: Any) -> LearningPredictor:
        kept.append(LearningPredictor(made.facts))
        return kept[0]

    sent = jobs(Workload(mix=CHAT), CATALOG, 8.0, 60.0, seed=3)
    Simulation(made, sent, CATALOG, policy_named("best_value"), predictor, span_s=60.0).run()
    load = kept[0].latencies.loads["api/0"]
    load.advance(400.0)
    load.refresh(400.0)
    assert load.per_sequence_s == load.per_context_s == 0.0
    assert load.gap_s == pytest.approx(0.012, rel=0.05)
    assert load.base_s + 0.5 * load.per_new_s == pytest.approx(0.132, rel=0.1)


def test_a_fleet_never_works_worse_for_being_larger() -> None:
    few, many = (score(run_of(described(text), 4.0, CHAT), 10.0) for text in ("1xH100 + 2xL40S:w8", "2xH100 + 3xL40S:w8 + 2xA10:w4"))
    assert many["attained_ratio"] >= few["attained_ratio"] - 0.01
