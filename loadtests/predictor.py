"""How far predictions lie from the truth, on simulated engines whose form differs from the predictor's: after the first 500 requests,
under the default policy, told the right facts, half and twice of them; and on an engine that has just begun to run at half its speed.

    python loadtests/predictor.py [--fleet '3xH100 + 4xL40S:w8 + 4xA10:w4'] [--rate 4] [--span 400] [--json]

First token: expected at the start against what came. Gap now: the expected next gap of an engine's residents against the engine's own
step without jitter. Gap of the answer: expected at the start against the mean of the whole answer, which also holds what came later; known:
the same, said by one who knows the engine's exact state and the true length at the start, but not what comes later either.
Slowed: first token and gap now of engines at half speed, by seconds since then (four slow-downs of each of the first engines, a run each).
"""

from __future__ import annotations

import argparse
import json
import statistics
from random import Random

from gateway.core.flow import Outcome, Placement, Result
from gateway.core.instance import Instance
from gateway.predict.kinds import StepFacts
from gateway.predict.predictor import LearningPredictor
from gateway.simulate.bounds import ExactPredictor
from gateway.simulate.fleets import fleet
from gateway.simulate.knee import shipped_catalog
from gateway.simulate.machine import Machine
from gateway.simulate.run import Fault, Simulation, policy_named
from gateway.simulate.workload import Workload, jobs


class Watched(LearningPredictor):
    """Keeps (expected, true) of every kind of figure, from the 500th request on."""

    def __init__(self, facts: dict[str, StepFacts], machines: dict[str, Machine], after: int) -> None:
        super().__init__(facts)
        self.machines, self.after, self.begun = machines, after, 0
        self.figures: dict[str, list[tuple[float, float]]] = {"first_token": [], "gap_now": [], "gap_of_the_answer": [], "known": []}
        self.slowed: tuple[str, float] = ("", 0.0)
        self.since: dict[str, list[tuple[float, float, float]]] = {"first_token": [], "gap_now": []}
        self.exact = ExactPredictor(machines)
        self.believed: dict[Placement, float] = {}

    def started(self, placement: Placement, instance: Instance, now_s: float) -> None:
        name = placement.instance_id
        machine, load = self.machines[name], self.latencies.loads.get(name)
        self.begun += 1
        if self.begun > self.after and load is not None and machine.decoding == load.decoding > 0 and machine.emitted_tokens:
            load.advance(now_s)
            load.refresh(now_s)
            pair = load.step_s, machine.facts.step_s(machine.decoding, machine.context_tokens)
            self.figures["gap_now"].append(pair)
            if name == self.slowed[0]:
                self.since["gap_now"].append((now_s - self.slowed[1], *pair))
        if self.begun > self.after:
            planned, true = placement.ticket.expected_output_tokens, placement.ticket.handle.job.output_tokens
            placement.ticket.expected_output_tokens = true
            self.believed[placement] = self.exact.consider(placement.ticket, (instance,), now_s)[0][2]
            placement.ticket.expected_output_tokens = planned
        super().started(placement, instance, now_s)

    def passing(self, instance: Instance, now_s: float) -> None:
        super().passing(instance, now_s)
        name = instance.spec.instance_id
        machine, load = self.machines[name], self.latencies.loads.get(name)
        if name == self.slowed[0] and load is not None and machine.decoding == load.decoding > 0:
            load.advance(now_s)
            load.refresh(now_s)
            pair = load.step_s, machine.facts.step_s(machine.decoding, machine.context_tokens)
            self.since["gap_now"].append((now_s - self.slowed[1], *pair))

    def first_token(self, placement: Placement, instance: Instance, now_s: float) -> None:
        if self.begun > self.after and placement.features is not None:
            expected_s = placement.features.expected_first_at_s - placement.started_at_s
            self.figures["first_token"].append((expected_s, now_s - placement.started_at_s))
            if placement.instance_id == self.slowed[0]:
                pair = expected_s, now_s - placement.started_at_s
                self.since["first_token"].append((placement.started_at_s - self.slowed[1], *pair))
        self.exact.first_token(placement, instance, now_s)
        super().first_token(placement, instance, now_s)

    def finished(self, placement: Placement, instance: Instance, outcome: Outcome, now_s: float) -> None:
        if self.begun > self.after and outcome.result is Result.COMPLETED and outcome.tpot_s:
            self.figures["gap_of_the_answer"].append((placement.prediction.itl_s, outcome.tpot_s))
            if placement in self.believed:
                self.figures["known"].append((self.believed.pop(placement), outcome.tpot_s))
        super().finished(placement, instance, outcome, now_s)


def measured(text: str, rate: float, span_s: float, misjudged: float, seed: int, after: int) -> dict[str, object]:
    from gateway.config.gpus import shipped_gpus

    catalog = shipped_catalog()
    described = fleet(text, catalog, shipped_gpus()).misjudged(misjudged)
    made: list[Watched] = []

    def predictor(machines: dict[str, Machine]) -> Watched:
        made.append(Watched(described.facts, machines, after))
        return made[0]

    sent = jobs(Workload(), catalog, rate, span_s, seed)
    Simulation(described, sent, catalog, policy_named("best_value"), predictor, span_s=span_s, seed=seed).run()
    result: dict[str, object] = {"fleet": text, "rate_per_s": rate, "seed": seed, "misjudged": misjudged}
    for name, pairs in made[0].figures.items():
        errors = [abs(expected / true - 1) for expected, true in pairs if true > 0]
        result[f"{name}_mape"] = statistics.mean(errors) if errors else None
        result[f"{name}_samples"] = len(errors)
    return result


def recovery(text: str, rate: float, seed: int) -> list[dict[str, object]]:
    """MAPE by seconds since an engine runs at half its speed."""
    from gateway.config.gpus import shipped_gpus

    catalog, at_s = shipped_catalog(), 200.0
    described = fleet(text, catalog, shipped_gpus())
    kinds = {spec.gpu: index for index, spec in reversed(list(enumerate(described.specs)))}
    since: dict[str, list[tuple[float, float, float]]] = {"first_token": [], "gap_now": []}
    for index in kinds.values():
        for run in range(4):
            made: list[Watched] = []

            def predictor(machines: dict[str, Machine], made: list[Watched] = made, index: int = index) -> Watched:
                made.append(Watched(described.facts, machines, 0))
                made[0].slowed = (described.specs[index].instance_id, at_s)
                return made[0]

            faults = (Fault("slow", at_s, index, 0.5),)
            sent = jobs(Workload(), catalog, rate, at_s + 40.0, seed + run)
            Simulation(
                described, sent, catalog, policy_named("best_value"), predictor, span_s=at_s + 40.0, seed=seed + run, faults=faults
            ).run()
            for name, triples in made[0].since.items():
                since[name] += triples
    told: list[dict[str, object]] = []
    for from_s, until_s in ((-20.0, 0.0), (0.0, 1.0), (1.0, 2.0), (2.0, 5.0), (5.0, 10.0), (10.0, 20.0), (20.0, 40.0)):
        row: dict[str, object] = {"from_s": from_s, "until_s": until_s}
        for name, triples in since.items():
            errors = [abs(expected / true - 1) for at, expected, true in triples if from_s <= at < until_s and true > 0]
            row[f"{name}_mape"], row[f"{name}_samples"] = (statistics.mean(errors) if errors else None), len(errors)
        told.append(row)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fleet", default="3xH100 + 4xL40S:w8 + 4xA10:w4")
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--span", type=float, default=400.0)
    parser.add_argument("--after", type=int, default=500)
    parser.add_argument("--seed", type=int, default=Random().randrange(1_000))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not given.json:
        print(f"{given.fleet}, {given.rate:g}/s for {given.span:g} s, seed {given.seed}, after {given.after} requests")
        print(f"{'facts told':>12} {'first token':>12} {'gap now':>9} {'gap of the answer':>18} {'known':>9}")
    for misjudged in (1.0, 0.5, 2.0):
        told = measured(given.fleet, given.rate, given.span, misjudged, given.seed, given.after)
        if given.json:
            print(json.dumps(told))
        else:
            first, now, answer, known = (_percent(told[f"{n}_mape"]) for n in ("first_token", "gap_now", "gap_of_the_answer", "known"))
            print(f"{misjudged:>11g}x {first:>12} {now:>9} {answer:>18} {known:>9}")
    rows = recovery(given.fleet, given.rate, given.seed)
    if given.json:
        print(json.dumps({"slowed": rows}))
        return
    print(f"{'slowed, s':>12} {'first token':>12} {'gap now':>9}")
    for row in rows:
        first, now = (f"{_percent(row[f'{n}_mape'])} ({row[f'{n}_samples']})" for n in ("first_token", "gap_now"))
        print(f"{row['from_s']:>5g} .. {row['until_s']:<4g} {first:>12} {now:>12}")


def _percent(figure: object) -> str:
    return f"{figure:.1%}" if isinstance(figure, float) else "-"


if __name__ == "__main__":
    main()
