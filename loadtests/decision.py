"""What decisions cost: the core in a simulated run with 50 engines and about 1,000 requests in its queues, and the CPU of every event.

    python loadtests/decision.py [--instances 50] [--queued 1000] [--rate 45] [--span 40] [--policy best_value] [--runs 5]

`arrival`, `first_token` and `end` are whole events with everything they cause: the books, the predictor, the look at the queues, the
starts. `decision` is one look for a place: the policy and all its predictions. `predictor` is what a request costs in keeping predictions
up to date: start, first token and end. Only what happens while at least half of the queue stands is counted. CPU time of this thread,
and of several runs, which do the same to the last decision, the least of each: what else the machine does is not in it, nor what looking at
that clock takes. `settled`: the predictor once its models have learnt what they will (SETTLED_SAMPLES of each kind), as it goes on for
days; before, it learns from every sample. An empty call, timed beside them, is taken off both. `second`: its look at an instance once a
second, beside requests.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import time
from collections.abc import Callable
from random import Random
from typing import Any

from gateway.config.gpus import shipped_gpus
from gateway.core.decide import Core
from gateway.core.flow import Action, Outcome, Placement, Ticket
from gateway.core.instance import Instance
from gateway.core.policy import Policy
from gateway.predict.hearing import SETTLED_SAMPLES
from gateway.predict.predictor import LearningPredictor
from gateway.simulate.fleets import MODEL, fleet
from gateway.simulate.knee import shipped_catalog
from gateway.simulate.run import Simulation, core_settings, policy_named
from gateway.simulate.workload import Workload, jobs

clock = time.thread_time
LOOK_S = min(-clock() + clock() for _ in range(10_000))
# Never refused for load, so a burst of them is the queue.
PATIENT = {"research_legal": 1.0, "summarization_long": 1.0}


class Timer:
    """Durations by name, microseconds."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = {}
        self.counts = False

    def of(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        began_s = clock()
        result = call(*arguments)
        if self.counts:
            self.taken.setdefault(name, []).append((clock() - began_s - LOOK_S) * 1e6)
        return result

    def least(self, other: Timer) -> None:
        """The same was done again: of each duration the smaller one counts."""
        for name, values in other.taken.items():
            mine = self.taken.setdefault(name, values)
            assert len(mine) == len(values), "two runs differ"
            self.taken[name] = [min(pair) for pair in zip(mine, values, strict=True)]

    def figures(self) -> dict[str, dict[str, float]]:
        told = {}
        for name, values in self.taken.items():
            values.sort()
            count = len(values)
            told[name] = {f"p{share}_us": round(values[min(count * share // 100, count - 1)], 1) for share in (50, 99)}
            told[name] |= {"mean_us": round(sum(values) / count, 2), "events": count}
        return told


class TimedPredictor(LearningPredictor):
    """Times what being told of events costs, and what telling nobody does."""

    timer = Timer()

    def name(self, instance: Instance) -> str:
        load = instance.load
        known = load is not None and min(load.key.step.samples, load.key.first.samples) >= SETTLED_SAMPLES
        return "settled" if known else "predictor"

    def nothing(self, placement: Placement, instance: Instance, now_s: float) -> None:
        """An empty call."""

    def started(self, placement: Placement, instance: Instance, now_s: float) -> None:
        self.timer.of("nothing", self.nothing, placement, instance, now_s)
        self.timer.of(self.name(instance), super().started, placement, instance, now_s)

    def first_token(self, placement: Placement, instance: Instance, now_s: float) -> None:
        self.timer.of(self.name(instance), super().first_token, placement, instance, now_s)

    def finished(self, placement: Placement, instance: Instance, *more: Any) -> None:
        self.timer.of(self.name(instance), super().finished, placement, instance, *more)

    def passing(self, instance: Instance, now_s: float) -> None:
        self.timer.of("second", super().passing, instance, now_s)


class TimedCore(Core):
    """Times events, while enough requests wait."""

    timer = Timer()
    least = 500

    def submit(self, ticket: Ticket, now_s: float) -> list[Action]:
        self.timer.counts = self.queues.of(MODEL).waiting >= self.least
        return self.timer.of("arrival", super().submit, ticket, now_s)  # type: ignore[no-any-return]

    def first_token(self, placement: Placement, now_s: float) -> list[Action]:
        return self.timer.of("first_token", super().first_token, placement, now_s)  # type: ignore[no-any-return]

    def finished(self, placement: Placement, outcome: Outcome, now_s: float) -> list[Action]:
        return self.timer.of("end", super().finished, placement, outcome, now_s)  # type: ignore[no-any-return]


def simulation(instances: int, queued: int, rate: float, span_s: float, named: str) -> Simulation:
    """A run whose core is timed."""
    catalog = shipped_catalog()
    third = instances // 3
    described = fleet(f"{instances - 2 * third}xH100 + {third}xL40S:w8 + {third}xA10:w4", catalog, shipped_gpus())
    nominal = jobs(Workload(), catalog, rate, span_s, 1)
    burst = jobs(Workload(name="burst", mix=PATIENT), catalog, queued * 1.2, 1.0, 1)
    for job in burst:
        job.job_id = f"burst-{job.job_id}"
    timer = TimedCore.timer = TimedPredictor.timer = Timer()
    TimedCore.least = queued // 2

    def policy(chance: Random) -> Policy:
        made = policy_named(named)(chance)
        place = made.place
        made.place = lambda ticket, fleet_, now_s: timer.of("decision", place, ticket, fleet_, now_s)
        return made

    made = Simulation(
        described,
        sorted(burst + nominal, key=lambda job: job.at_s),
        catalog,
        policy,
        lambda machines: TimedPredictor(described.facts),
        span_s=span_s,
    )
    told = made.core.predictor
    made.core = TimedCore(core_settings(catalog), policy(Random(0)), told)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=50)
    parser.add_argument("--queued", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=45.0)
    parser.add_argument("--span", type=float, default=40.0)
    parser.add_argument("--policy", default="best_value")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    run = simulation(given.instances, given.queued, given.rate, given.span, given.policy)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)  # as serve does
    if given.profile:
        profile = cProfile.Profile()
        profile.runcall(run.run)
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        return
    run.run()
    timer = TimedCore.timer
    for _ in range(given.runs - 1):
        run = simulation(given.instances, given.queued, given.rate, given.span, given.policy)
        gc.collect()
        run.run()
        timer.least(TimedCore.timer)
    figures = timer.figures()
    told = {"instances": given.instances, "queued": given.queued, "rate_per_s": given.rate, "policy": given.policy, "figures": figures}
    nothing_us = figures.pop("nothing")["mean_us"]
    for name in {"predictor", "settled"} & figures.keys():  # a request is three events
        mean_us = (figures[name]["mean_us"] - nothing_us) * 3
        figures[name] = {"mean_us": round(mean_us, 1), "events": round(figures[name]["events"] / 3)}
    if given.json:
        print(json.dumps(told))
        return
    print(f"{given.policy}, {given.instances} instances, about {given.queued} waiting, {given.rate:g} more a second")
    for name in ("arrival", "first_token", "end", "decision", "predictor", "settled", "second"):
        row = figures.get(name, {})
        print(f"{name:>12}  " + "  ".join(f"{key} {value:g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
