"""Under every policy, through overload, deaths and slow engines: no limit is passed, nobody is in two places, time never goes back. And
the checks themselves are checked: each of several plausible mistakes in the core is noticed by them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from gateway import policies
from gateway.config.gpus import shipped_gpus
from gateway.core import decide
from gateway.core.decide import Core
from gateway.core.fleet import Fleet, Instance
from gateway.core.flow import Placement, RefuseReason, Result, Ticket
from gateway.core.queues import Lane
from gateway.predict.predictor import LearningPredictor
from gateway.simulate.fleets import fleet
from gateway.simulate.knee import shipped_catalog
from gateway.simulate.run import Fault, Run, Simulation, core_settings, policy_named
from gateway.simulate.workload import Workload, jobs
from tests.core.test_properties import EVENT_KINDS, World

CATALOG = shipped_catalog()
# It looks from inside, and makes mistakes there: what is compiled lets nobody do either.
pytestmark = pytest.mark.skipif(not decide.__file__.endswith(".py"), reason="the core is compiled")
FAULTS = (Fault("slow", 8.0, 0, 0.4, 16.0), Fault("death", 12.0, 1, until_s=20.0), Fault("death", 14.0, 4))


class Audited(Core):
    """Looks at its own books after every event."""

    last_s = 0.0

    def audit(self, now_s: float) -> None:
        assert now_s >= self.last_s, "time goes back"
        self.last_s = now_s
        seen: set[int] = set()
        for instance in (*self.fleet.by_id.values(), *self.fleet.leaving):
            held = sum(placement.ticket.request.n for placement in instance.residents)
            assert instance.in_flight == held, "slots and residents differ"
            # A limit may have been lowered under residents: those finish in peace.
            assert held <= max(instance.limit, instance.spec.limit_max), "above its limit"
            for placement in instance.residents:
                ticket = placement.ticket
                assert placement.instance is instance
                assert ticket.placement is placement, "in two places"
                assert ticket.lane is None, "runs and waits"
                assert id(ticket) not in seen, "in two places"
                seen.add(id(ticket))
        for ticket in self.queues.tickets():
            assert id(ticket) not in seen, "runs and waits"
            assert not ticket.gone
        for queues in self.queues.by_model.values():
            assert queues.waiting == sum(lane.requests for lane in (*queues.lanes, queues.late))


def _checked(name: str) -> Callable[..., Any]:
    plain = getattr(Core, name)

    def call(self: Audited, *arguments: Any, **more: Any) -> Any:
        told = plain(self, *arguments, **more)
        now_s = more.get("now_s", next(value for value in reversed(arguments) if isinstance(value, float)))
        self.audit(now_s)
        return told

    return call


for _name in ("submit", "first_token", "finished", "gone", "tick", "instances_changed", "instance_health"):
    setattr(Audited, _name, _checked(_name))


def audited(policy: str, rate: float = 9.0, span_s: float = 24.0) -> Run:
    made = fleet("2xH100 + 2xL40S:w8 + 2xA10:w4", CATALOG, shipped_gpus())
    sent = jobs(Workload(tenants={"a": 3.0, "b": 1.0}), CATALOG, rate, span_s, 5)
    predictor = LearningPredictor(made.facts)
    run = Simulation(made, sent, CATALOG, policy_named(policy), lambda machines: predictor, span_s=span_s, faults=FAULTS)
    run.core = Audited(core_settings(CATALOG), policies.load(policy)(Random(0)), predictor)
    return run.run()


@pytest.mark.parametrize("policy", policies.names())
def test_no_limit_is_passed_and_nobody_is_in_two_places_under_any_policy(policy: str) -> None:
    run = audited(policy)
    assert len(run.records) > 150
    assert all(record.ended for record in run.records if record.result is not Result.FAILED)
    # Patient work is refused for the length of its queue and of its wait, never for load.
    patient = {record.refuse_reason for record in run.records if record.experience_class in ("deferred", "batch")}
    assert patient <= {None, RefuseReason.QUEUE_FULL, RefuseReason.QUEUE_BYTES, RefuseReason.EXPIRED, RefuseReason.NO_CAPACITY}


def test_the_same_input_gives_the_same_output_in_every_process() -> None:
    """Hashes of strings differ from process to process: whoever walks a set decides by them."""
    told = [
        subprocess.run(
            [sys.executable, "-c", "from tests.core.test_audit import digest; print(digest())"],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1] != ""


def digest() -> str:
    """Of every record of a run."""
    made = fleet("2xH100 + 2xL40S:w8 + 2xA10:w4", CATALOG, shipped_gpus())
    sent = jobs(Workload(tenants={"a": 3.0, "b": 1.0}), CATALOG, 9.0, 24.0, 5)
    predictor = LearningPredictor(made.facts)
    run = Simulation(made, sent, CATALOG, policy_named("best_value"), lambda machines: predictor, span_s=24.0, faults=FAULTS).run()
    return hashlib.sha256(repr(run.records).encode()).hexdigest()


# ---- would they notice?


def gives_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Fleet.give_back

    def give_back(self: Fleet, placement: Placement) -> Instance | None:
        instance = plain(self, placement)
        if instance is not None:
            instance.in_flight += 1
        return instance

    monkeypatch.setattr(Fleet, "give_back", give_back)


def offers_the_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fleet, "open_instances", lambda self, ticket: self.instances(ticket))


def leaves_the_placed_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lane, "took", lambda self, ticket: None)


def forgets_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Lane.heads
    monkeypatch.setattr(Lane, "heads", lambda self, most: plain(self, most) if self.rank < 3 else [])


def starts_those_that_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Core, ticket: Ticket, now_s: float) -> list[Any]:
        return []

    monkeypatch.setattr(Core, "gone", gone)


def promises_memory_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.core import fleet as module

    monkeypatch.setattr(module, "kv_needs_tokens", lambda ticket: 0)


def decides_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = Random()
    plain = Fleet.open_instances
    monkeypatch.setattr(Fleet, "open_instances", lambda self, ticket: chance.sample(list(found := plain(self, ticket)), len(found)))


def noticed(policy: str, runs: int = 150) -> bool:
    """Does any of so many random sequences of events break a promise that tests/core/test_properties.py checks?"""
    chance = Random(11)
    for _ in range(runs):
        events = [(chance.choice(EVENT_KINDS), chance.randrange(1000), chance.random() / 2) for _ in range(40)]
        told = []
        for _ in range(2):
            world = World(policy)
            try:
                for event in events:
                    world.play(*event)
                world.end()
                assert len(world.over) == len(world.tickets)
            except Exception:
                return True
            told.append(world.told)
        if told[0] != told[1]:
            return True
    return False


@pytest.mark.parametrize(
    "mistake",
    [
        gives_nothing_back,
        offers_the_full,
        leaves_the_placed_in_line,
        forgets_who_waits,
        starts_those_that_have_left,
        promises_memory_twice,
        decides_by_chance,
    ],
)
def test_a_core_that_makes_this_mistake_is_caught(monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]) -> None:
    assert not noticed("edf", runs=20)
    mistake(monkeypatch)
    assert noticed("edf")
