"""Runs a suite: each policy's highest rate at which 90 % and 95 % of offered requests attain, then all of them at the same overload.

For each case: the first policy's knee at one seed gives a reference; every other policy is tuned there to its best in-flight limit; then
knees are searched by bisection for each seed alone, so that the spread over seeds gives a confidence interval. Runs are spread over
processes; the same suite gives the same result whatever their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from gateway.config.catalog import Catalog
from gateway.core.flow import CoreSettings
from gateway.core.policy import Predictor
from gateway.predict.predictor import LearningPredictor
from gateway.simulate.bounds import ExactPredictor, flow_capacity
from gateway.simulate.fleets import SimulatedFleet, configured, fleet
from gateway.simulate.machine import Machine
from gateway.simulate.run import Fault, Run, Simulation, policy_named
from gateway.simulate.score import confidence, score
from gateway.simulate.suite import Entry, Suite
from gateway.simulate.workload import Workload, jobs

LOWEST_PER_S = 0.2
HIGHEST_PER_S = 400.0


@dataclass(frozen=True, slots=True)
class Point:
    """One run, as plain values that travel to another process."""

    fleet: str
    workload: Workload
    policy: str
    predictor: str
    limit: int | None
    rate_per_s: float
    seed: int
    span_s: float
    warm_up_s: float
    faults: tuple[Fault, ...] = ()
    misjudged: float = 1.0

    def command(self) -> str:
        """How to repeat this run alone."""
        limit = f" --limit {self.limit}" if self.limit else ""
        return (
            f"slo-gateway simulate --fleet '{self.fleet}' --policy {self.policy} --predictor {self.predictor}"
            f" --rate {self.rate_per_s:.4g} --span {self.span_s:g}s --seed {self.seed}{limit}"
        )


class RunFailed(Exception):
    """A run broke; says its seed and the command that repeats it."""


@cache
def shipped_catalog() -> Catalog:
    """The use cases and classes that come with the gateway."""
    from gateway.config.load import shipped_catalog as load_catalog

    return load_catalog()


@dataclass(frozen=True, slots=True)
class Site:
    """A fleet, and the promises made over it; `settings` None = those of the catalogue alone."""

    fleet: SimulatedFleet
    catalog: Catalog
    settings: CoreSettings | None = None


@cache
def site(text: str) -> Site:
    """Of a fleet's description, or of a gateway's configuration file. ValueError says what is wrong with either."""
    from gateway.config.gpus import shipped_gpus

    if not text.endswith((".yaml", ".yml")):
        return Site(fleet(text, shipped_catalog(), shipped_gpus()), shipped_catalog())
    from gateway.config.build import core_settings
    from gateway.config.load import load
    from gateway.config.loaded import ConfigError

    try:
        loaded = load(text)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    settings, catalog = loaded.settings, loaded.catalog
    return Site(configured(settings, catalog, shipped_gpus()), catalog, core_settings(settings, catalog))


def simulate(point: Point, *, lists_decisions: bool = False) -> Run:
    """One run. RunFailed when anything breaks in it."""
    place = site(point.fleet)
    described, catalog = place.fleet.limited(point.limit), place.catalog
    if point.misjudged != 1.0:
        described = described.misjudged(point.misjudged)
    sent = jobs(point.workload, catalog, point.rate_per_s, point.span_s, point.seed)

    def predictor(machines: dict[str, Machine]) -> Predictor | None:
        if point.predictor == "none":
            return None
        return ExactPredictor(machines) if point.predictor == "exact" else LearningPredictor(described.facts)

    try:
        return Simulation(
            described,
            sent,
            catalog,
            policy_named(point.policy),
            predictor,
            span_s=point.span_s,
            seed=point.seed,
            faults=point.faults,
            settings=place.settings,
            lists_decisions=lists_decisions,
        ).run()
    except Exception as error:
        raise RunFailed(f"{type(error).__name__}: {error}\nseed {point.seed}; repeat with: {point.command()}") from error


def measured(point: Point) -> dict[str, Any]:
    """One run's score."""
    return score(simulate(point), point.warm_up_s)


def knees(point: Point, guess_per_s: float, precision: float) -> dict[str, float]:
    """The highest rates at which 90 % and 95 % attain, for the point's seed: bisection on a logarithmic grid of rates, from a guess."""
    seen: dict[int, float] = {}

    def attained(index: int) -> float:
        if index not in seen:
            rate = LOWEST_PER_S * (1 + precision) ** index
            seen[index] = measured(replace(point, rate_per_s=rate))["attained_ratio"]
        return seen[index]

    most = int(math.log(HIGHEST_PER_S / LOWEST_PER_S) / math.log(1 + precision))
    start = min(max(round(math.log(max(guess_per_s, LOWEST_PER_S) / LOWEST_PER_S) / math.log(1 + precision)), 0), most)
    found: dict[str, float] = {}
    for name, share in (("rate_90", 0.90), ("rate_95", 0.95)):
        # Known points first: below `low` it attains, at `high` it does not.
        low = max((index for index, ratio in seen.items() if ratio >= share), default=-1)
        high = min((index for index, ratio in seen.items() if ratio < share and index > low), default=most + 1)
        step = 4
        if low < 0 and high > most:
            if attained(start) >= share:
                low = start
            else:
                high = start
        while low < 0 < high:  # down until it attains
            probe = max(high - step, 0)
            if attained(probe) >= share:
                low = probe
            elif probe == 0:
                break
            else:
                high, step = probe, step * 2
        while low >= 0 and high > most and low < most:  # up until it does not
            probe = min(low + step, most)
            if attained(probe) >= share:
                low, step = probe, step * 2
            else:
                high = probe
        while low >= 0 and high - low > 1:
            middle = (low + high) // 2
            if attained(middle) >= share:
                low = middle
            else:
                high = middle
        found[name] = _between(seen, low, high, share, precision) if low >= 0 else 0.0
    return found


def _between(seen: dict[int, float], low: int, high: int, share: float, precision: float) -> float:
    """Where the line between the last that attains and the first that does not crosses `share`."""
    rate = LOWEST_PER_S * (1 + precision) ** low
    if high not in seen:
        return rate
    part = (seen[low] - share) / max(seen[low] - seen[high], 1e-9)
    return float(rate * (1 + precision) ** min(max(part, 0.0), 1.0))


# ---- a whole suite


class InProcess(Executor):
    """Runs what it is given at once, here: for one process, and for tests."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def workers(count: int) -> Iterator[Executor]:
    """An executor of so many processes; with one, none at all."""
    if count <= 1:
        yield InProcess()
        return
    with ProcessPoolExecutor(count) as pool:
        yield pool


def run_suite(suite: Suite, pool: Executor, progress: Callable[[str, int, int], None]) -> list[dict[str, Any]]:
    """One object per (case, policy). `progress(what, done, of)` is told of every finished task. RunFailed when a run breaks."""
    results: list[dict[str, Any]] = []
    entries = suite.entries()
    for number, case in enumerate(suite.cases):
        text = suite.fleets.get(case.fleet, case.fleet)
        name = case.name or f"{case.fleet}, {case.workload}"

        def told(stage: str, done: int, of: int, name: str = name, number: int = number) -> None:
            progress(f"[{number + 1}/{len(suite.cases)}] {name}: {stage}", done, of)

        base = Point(
            text,
            suite.workload(case.workload),
            "",
            "",
            None,
            0.0,
            0,
            suite.span_s,
            suite.warm_up_s,
            tuple(fault.fault() for fault in case.faults),
            case.misjudged,
        )
        points = [replace(base, policy=entry.policy, predictor=entry.predictor) for entry in entries]
        if case.rate is not None or base.workload.arrivals == "raw":
            results += _fixed(suite, name, entries, points, case.rate or 0.0, pool, told)
        else:
            results += _searched(suite, name, entries, points, pool, told)
    return results


def _searched(
    suite: Suite, name: str, entries: list[Entry], points: list[Point], pool: Executor, told: Callable[[str, int, int], None]
) -> list[dict[str, Any]]:
    capacity = flow_capacity(site(points[0].fleet).fleet, site(points[0].fleet).catalog, points[0].workload.mix)
    [reference] = _all(pool, [(knees, (points[0], capacity / 2, suite.precision))], lambda done, of: told("first knee", done, of))
    guess = max(reference["rate_90"], 0.5)
    points = _tuned(entries, points, [guess * 0.8, guess], pool, told)
    tasks = [(knees, (replace(point, seed=seed), guess, suite.precision)) for point in points for seed in range(suite.seeds)]
    found = _all(pool, tasks, lambda done, of: told("knees", done, of))
    rates = [found[index * suite.seeds : (index + 1) * suite.seeds] for index in range(len(points))]
    unit = max(confidence([each["rate_90"] for each in rates[0]])[0], LOWEST_PER_S)
    curve = [
        (measured, (replace(point, seed=seed, rate_per_s=unit * x),))
        for point in points
        for x in suite.overload
        for seed in range(suite.seeds)
    ]
    scores = iter(_all(pool, curve, lambda done, of: told("overload", done, of)))
    results: list[dict[str, Any]] = []
    for entry, point, each in zip(entries, points, rates, strict=True):
        result: dict[str, Any] = {"case": name, "fleet": point.fleet, "workload": point.workload.name, "policy": entry.title}
        result |= {"limit": point.limit, "seeds": suite.seeds, "flow_capacity_per_s": capacity}
        for word in ("rate_90", "rate_95"):
            mean, half = confidence([one[word] for one in each])
            result[word], result[f"{word}_ci"], result[f"{word}_seeds"] = mean, half, [one[word] for one in each]
        fleet_ = site(point.fleet).fleet
        result["goodput_per_usd"] = result["rate_90"] * 0.9 * 3600 / fleet_.usd_per_hour
        result["goodput_per_gpu_hour"] = result["rate_90"] * 0.9 * 3600 / len(fleet_.specs)
        result["overload"] = [_point([next(scores) for _ in range(suite.seeds)], x) for x in suite.overload]
        results.append(result)
    return results


def _fixed(
    suite: Suite, name: str, entries: list[Entry], points: list[Point], rate: float, pool: Executor, told: Callable[[str, int, int], None]
) -> list[dict[str, Any]]:
    points = _tuned(entries, points, [rate], pool, told)
    tasks = [(measured, (replace(point, seed=seed, rate_per_s=rate),)) for point in points for seed in range(suite.seeds)]
    scores = iter(_all(pool, tasks, lambda done, of: told("runs", done, of)))
    results: list[dict[str, Any]] = []
    for entry, point in zip(entries, points, strict=True):
        each = [next(scores) for _ in range(suite.seeds)]
        result: dict[str, Any] = {"case": name, "fleet": point.fleet, "workload": point.workload.name, "policy": entry.title}
        result |= {"limit": point.limit, "seeds": suite.seeds, "rate_90": None, "rate_95": None}
        whole = _point(each, 1.0)
        mean, half = confidence([one["attained_ratio"] for one in each])
        result |= {"attained_ratio": mean, "attained_ratio_ci": half, "goodput_per_usd": whole["goodput_per_usd"]}
        result["goodput_per_gpu_hour"] = whole["goodput_per_gpu_hour"]
        result["overload"] = [whole]
        results.append(result)
    return results


def _point(scores: list[dict[str, Any]], x: float) -> dict[str, Any]:
    """The mean over seeds, and between which shares they lie."""
    attained = [each["attained_ratio"] for each in scores]
    return merged(scores) | {"x": x, "attained_ratio_low": min(attained), "attained_ratio_high": max(attained)}


def _tuned(
    entries: list[Entry], points: list[Point], rates: list[float], pool: Executor, told: Callable[[str, int, int], None]
) -> list[Point]:
    """Each policy at the limit of its grid that attains most at these rates."""
    tasks = [
        (measured, (replace(point, limit=limit, rate_per_s=rate),))
        for entry, point in zip(entries, points, strict=True)
        for limit in entry.limits
        for rate in rates
    ]
    scores = iter(_all(pool, tasks, lambda done, of: told("tuning limits", done, of)))
    tuned: list[Point] = []
    for entry, point in zip(entries, points, strict=True):
        attained = {limit: sum(next(scores)["attained"] for _ in rates) for limit in entry.limits}
        tuned.append(replace(point, limit=max(attained, key=lambda limit: attained[limit])) if attained else point)
    return tuned


def merged(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of runs that differ by seed only: numbers are averaged, groups merged name by name."""
    result: dict[str, Any] = {}
    for key in {key: None for each in scores for key in each}:
        values = [each[key] for each in scores if each.get(key) is not None]
        if values and isinstance(values[0], dict):
            result[key] = merged(values)
        elif values and isinstance(values[0], int | float):
            result[key] = sum(values) / (len(values) if key != "x" else 1)
        else:
            result[key] = None
    return result


def _all(pool: Executor, tasks: list[tuple[Callable[..., Any], tuple[Any, ...]]], progress: Callable[[int, int], None]) -> list[Any]:
    """Every task's result in the order given."""
    futures = {pool.submit(call, *arguments): index for index, (call, arguments) in enumerate(tasks)}
    results: list[Any] = [None] * len(tasks)
    progress(0, len(tasks))
    for done, future in enumerate(as_completed(futures), 1):
        results[futures[future]] = future.result()
        progress(done, len(tasks))
    return results
