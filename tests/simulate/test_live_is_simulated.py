"""The same requests to a gateway that serves and to the simulator: the same decisions, the same promises kept.

A gateway on real sockets before three simulated engines is driven through a surge that it cannot serve whole. Its own request log then goes
into the simulator, with its own configuration file as the fleet, and shares are compared: of each use case, how many went to which pool,
how many were refused, how many attained.

What differs by nature is noise of the machine (timers, sockets, a busy host) and the jitter of engine steps. Both move single requests
from one pool to another near a tie, so shares are compared, not requests: live against the median of five simulated seeds. NOISE is twice
the largest difference of any share in twelve runs on two cores with up to nine other jobs (loadtests/README.md). Targets are seconds and
engines slow, so that a machine that loses 20 ms here and there breaks no promise by itself.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import pytest

from gateway.load.bodies import Shot
from gateway.load.client import Gun, Shown
from gateway.predict.predictor import LearningPredictor
from gateway.simulate.knee import site
from gateway.simulate.run import Simulation, policy_named
from gateway.simulate.workload import trace_rows
from tests.conftest import MODEL, Place

NOISE = 0.12
SPAN_S = 7.0
SURGE_S = (2.5, 4.5)
USE_CASES = {
    "quick": {"experience_class": "conversational", "targets": {"ttft": "1s", "itl": "30ms", "e2e": "4s"}},
    "patient": {"experience_class": "interactive", "targets": {"ttft": "3s", "itl": "90ms", "e2e": "10s"}},
}

Shares = dict[tuple[str, str], float]
"""(use case, pool or reason of refusal or "attained") -> share of that use case's requests"""


def shots() -> list[Shot]:
    """Six a second, three times as many in the surge."""
    chance, at_s, made = Random(5), 0.0, list[Shot]()
    while True:
        at_s += chance.expovariate(18.0 if SURGE_S[0] <= at_s < SURGE_S[1] else 6.0)
        if at_s >= SPAN_S:
            return made
        use_case, prompt, output = chance.choice((("quick", 300, 40), ("quick", 300, 40), ("patient", 900, 60)))
        words = round(prompt * math.exp(chance.gauss(0.0, 0.4)) * 4 / 5)
        tokens = max(round(output * math.exp(chance.gauss(0.0, 0.4))), 4)
        message = {"role": "user", "content": f"{len(made)} " + "word " * words}
        body = {"model": MODEL, "stream": True, "max_tokens": tokens, "messages": [message]}
        made.append(Shot(at_s, "/v1/chat/completions", json.dumps(body).encode(), use_case, tokens))


def shares(rows: Iterable[tuple[str, str, bool]]) -> Shares:
    counts, totals = Counter[tuple[str, str]](), Counter[str]()
    for use_case, where, attained in rows:
        totals[use_case] += 1
        counts[use_case, where] += 1
        counts[use_case, "attained"] += attained
    return {key: count / totals[key[0]] for key, count in counts.items()}


def differences(live: Shares, simulated: list[Shares]) -> dict[tuple[str, str], float]:
    keys = {key for one in (live, *simulated) for key in one}
    return {key: abs(live.get(key, 0.0) - median(one.get(key, 0.0) for one in simulated)) for key in keys}


@dataclass
class Lived:
    """A run on real sockets: the configuration it ran by, its request log, and what that says."""

    config: str
    log: str
    lines: list[dict[str, Any]]
    shown: list[Shown]

    @property
    def shares(self) -> Shares:
        return shares((line["use_case"], line.get("pool") or line["reason"], bool(line["attained"])) for line in self.lines)

    def simulated(self, policy: str = "best_value", seeds: int = 5) -> list[Shares]:
        place = site(self.config)
        rows = trace_rows(self.log, place.catalog)
        told = []
        for seed in range(seeds):
            predictor = LearningPredictor(place.fleet.facts)
            run = Simulation(
                place.fleet,
                rows,
                place.catalog,
                policy_named(policy),
                lambda machines, predictor=predictor: predictor,
                span_s=SPAN_S,
                seed=seed,
                settings=place.settings,
            ).run()
            assert len(run.records) == len(self.lines)
            told.append(shares((r.job.use_case, r.instance_id.split("/")[0] or str(r.refuse_reason), r.attained) for r in run.records))
        return told


@pytest.fixture(scope="module")
def lived(shared_place: Place) -> Lived:
    log = shared_place.folder / "requests.jsonl"
    fast = shared_place.engine("L40S", "--engine-config", "w8")
    slow = [shared_place.engine("L4", "--engine-config", "w8", "--seed", str(seed)) for seed in (1, 2)]
    made = {"engine_config": "w8", "model": MODEL}
    pools = {
        "fast": made | {"tier": "premium", "gpu": "L40S", "instances": [fast.url], "limit": {"start": 6, "pinned": True}},
        "slow": made
        | {"tier": "cost", "gpu": "L4", "instances": [e.url for e in slow], "limit": {"start": 4, "pinned": True}, "batch_window": "0s"},
    }
    use_cases = {name: {"title": name, "profile": "medium_short"} | promise for name, promise in USE_CASES.items()}
    config = shared_place.config(pools, use_cases=use_cases, telemetry={"request_log": str(log)})
    gateway = shared_place.gateway(config)
    shown: list[Shown] = []

    async def fire() -> None:
        await Gun(gateway.url, shown.append, tagged=True).fire(shots(), SPAN_S)

    asyncio.run(fire())
    gateway.stop()  # the log is complete
    lines = [json.loads(line) for line in Path(log).read_text().splitlines()]
    [file] = shared_place.folder.glob("gateway-*.yaml")
    return Lived(str(file), str(log), lines, shown)


def test_the_simulator_decides_and_keeps_promises_as_the_gateway_that_serves_does(lived: Lived) -> None:
    assert len(lived.lines) == len(lived.shown) > 50
    told = differences(lived.shares, lived.simulated())
    assert max(told.values()) <= NOISE, (told, lived.shares)


def test_the_comparison_is_about_something_both_pools_are_used_and_some_are_refused(lived: Lived) -> None:
    live = lived.shares
    assert live["patient", "slow"] > NOISE
    assert live["patient", "fast"] > 0
    assert live["quick", "fast"] > 0.5
    refused = sum(line["result"] == "refused" for line in lived.lines)
    assert refused > 0.03 * len(lived.lines)
    assert refused == sum(shown.status == 429 for shown in lived.shown)


@pytest.mark.parametrize("policy", ["round_robin", "static_pools", "least_request"])
def test_another_policy_would_be_told_from_noise(lived: Lived, policy: str) -> None:
    told = differences(lived.shares, lived.simulated(policy, seeds=3))
    assert max(told.values()) > 2 * NOISE
