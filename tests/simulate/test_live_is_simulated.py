"""The same requests to a gateway that serves and to the simulator: the same decisions, the same promises kept.

A gateway on real sockets before three simulated engines is driven through a surge that it cannot serve whole. Its own request log then goes
into the simulator, with its own configuration file as the fleet, and shares are compared: of each use case, how many went to which pool,
how many were refused, how many attained.

The live side runs on made-up time (made_up_time.py), so that a busy machine has no part in it. What is left is the jitter of engine steps
and the moment of the first request between two ticks of the gateway (limits move once a second). Both move single requests from one pool
to another near a tie, and with them what comes after: so shares are compared, not requests, and live has to lie within what the simulator
itself gives over ten seeds and moments, give or take NOISE. Twenty live runs (four traces, five jitters each) lay at most 0.09 outside,
half of them 0.01; policies of another kind lie 0.40 and more outside. loadtests/README.md has the same on real time.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway.predict.predictor import LearningPredictor
from gateway.simulate.knee import site
from gateway.simulate.run import Simulation, policy_named
from gateway.simulate.workload import trace_rows

MODEL = "llama-8b"
NOISE = 0.10
SPAN_S = 30.0
SURGE_S = (10.0, 16.0)
ENGINES = [{"pool": pool, "gpu": gpu, "engine_config": "w8"} for pool, gpu in (("fast", "L40S"), ("slow", "L4"), ("slow", "L4"))]
POOLS = {
    "fast": {"tier": "premium", "gpu": "L40S", "limit": {"start": 6, "pinned": True}},
    "slow": {"tier": "cost", "gpu": "L4", "limit": {"start": 3, "max": 12}},
}
USE_CASES = {
    "quick": {"experience_class": "conversational", "targets": {"ttft": "500ms", "itl": "30ms", "e2e": "4s"}},
    "patient": {"experience_class": "interactive", "targets": {"ttft": "2s", "itl": "90ms", "e2e": "10s"}},
    "whenever": {"experience_class": "batch", "targets": {"ttft": "5s", "itl": "90ms", "e2e": "30s"}},
}
# use case, mean prompt tokens, mean output tokens
KINDS = (("quick", 300, 40), ("quick", 300, 40), ("patient", 900, 60), ("whenever", 600, 90))

Shares = dict[tuple[str, str], float]
"""(use case, pool or reason of refusal or "attained") -> share of that use case's requests"""


def config() -> dict[str, Any]:
    return {
        "listen": {"port": 0},
        "admin": {"port": 0},
        "policy": "best_value",
        "models": [{"name": MODEL}],
        "pools": {name: pool | {"engine_config": "w8", "model": MODEL} for name, pool in POOLS.items()},
        "use_cases": {name: {"title": name, "profile": "medium_short"} | promise for name, promise in USE_CASES.items()},
    }


def shots(seed: int) -> list[dict[str, Any]]:
    """Six a second, three times as many in the surge."""
    chance, at_s = Random(seed), 0.0
    made: list[dict[str, Any]] = []
    while True:
        at_s += chance.expovariate(18.0 if SURGE_S[0] <= at_s < SURGE_S[1] else 6.0)
        if at_s >= SPAN_S:
            return made
        use_case, prompt, output = chance.choice(KINDS)
        words = round(prompt * math.exp(chance.gauss(0.0, 0.4)) * 4 / 5)
        tokens = max(round(output * math.exp(chance.gauss(0.0, 0.4))), 4)
        message = {"role": "user", "content": f"{len(made)} " + "word " * words}
        body = {"model": MODEL, "stream": True, "max_tokens": tokens, "messages": [message]}
        made.append({"at_s": at_s, "body": json.dumps(body), "use_case": use_case, "tokens": tokens})


def shares(rows: Iterable[tuple[str, str, bool]]) -> Shares:
    counts, totals = Counter[tuple[str, str]](), Counter[str]()
    for use_case, where, attained in rows:
        totals[use_case] += 1
        counts[use_case, where] += 1
        counts[use_case, "attained"] += attained
    return {key: count / totals[key[0]] for key, count in counts.items()}


def outside(live: Shares, simulated: list[Shares]) -> dict[tuple[str, str], float]:
    """How far each share of `live` lies outside of what the simulated ones span."""
    told = {}
    for key in {key for one in (live, *simulated) for key in one}:
        values = [one.get(key, 0.0) for one in simulated]
        told[key] = max(min(values) - live.get(key, 0.0), live.get(key, 0.0) - max(values), 0.0)
    return told


@dataclass
class Lived:
    """A run on real sockets: its folder with configuration and request log, what that says, and what callers saw."""

    folder: Path
    lines: list[dict[str, Any]]
    shown: list[dict[str, Any]]

    @property
    def shares(self) -> Shares:
        return shares((line["use_case"], line.get("pool") or line["reason"], bool(line["attained"])) for line in self.lines)

    def simulated(self, policy: str = "best_value", seeds: int = 10) -> list[Shares]:
        place = site(str(self.folder / "gateway.yaml"))
        trace = trace_rows(str(self.folder / "requests.jsonl"), place.catalog)
        told = []
        for seed in range(seeds):
            # Nobody knows at which moment between two of its ticks the gateway got its first request.
            rows = [replace(job, at_s=job.at_s + seed / seeds) for job in trace]
            predictor = LearningPredictor(place.fleet.facts)
            run = Simulation(
                place.fleet,
                rows,
                place.catalog,
                policy_named(policy),
                lambda machines, predictor=predictor: predictor,
                span_s=SPAN_S + 1.0,
                seed=seed,
                settings=place.settings,
            ).run()
            assert len(run.records) == len(self.lines)
            told.append(shares((r.job.use_case, r.instance_id.split("/")[0] or str(r.refuse_reason), r.attained) for r in run.records))
        return told


def live(folder: Path, seed: int = 5, jitter_seed: int = 0) -> Lived:
    said = {"engines": ENGINES, "model": MODEL, "config": config(), "shots": shots(seed), "span_s": SPAN_S, "jitter_seed": jitter_seed}
    driver = Path(__file__).with_name("made_up_time.py")
    told = subprocess.run([sys.executable, str(driver), str(folder)], input=json.dumps(said), capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-2000:]
    lines = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    return Lived(folder, lines, json.loads(told.stdout))


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    return live(tmp_path_factory.mktemp("lived"))


def test_the_simulator_decides_and_keeps_promises_as_the_gateway_that_serves_does(lived: Lived) -> None:
    assert len(lived.lines) == len(lived.shown) > 200
    told = outside(lived.shares, lived.simulated())
    assert max(told.values()) <= NOISE, (told, lived.shares)


def test_the_comparison_is_about_something_both_pools_are_used_and_some_are_refused(lived: Lived) -> None:
    told = lived.shares
    assert told["patient", "slow"] > NOISE
    assert told["patient", "fast"] > NOISE
    assert told["quick", "fast"] > 0.5
    refused = sum(line["result"] == "refused" for line in lived.lines)
    assert refused > 0.03 * len(lived.lines)
    assert refused == sum(shown["status"] == 429 for shown in lived.shown)
    assert not [line for line in lived.lines if line["result"] == "failed"]


def test_who_cannot_be_served_in_time_is_told_so_at_once_and_when_to_come_back(lived: Lived) -> None:
    refused = [line for line in lived.lines if line.get("reason") == "cannot_meet_slo"]
    assert refused
    assert max(line.get("queue_s", 0.0) for line in refused) <= 0.005


@pytest.mark.parametrize("policy", ["round_robin", "static_pools", "least_request", "headroom"])
def test_another_policy_would_be_told_from_noise(lived: Lived, policy: str) -> None:
    told = outside(lived.shares, lived.simulated(policy, seeds=5))
    assert max(told.values()) > 3 * NOISE
