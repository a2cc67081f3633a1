"""What a request costs in the core, event by event, with a predictor that knows its engines and without one.

    python loadtests/events.py [--instances 1] [--rate 8] [--requests 1000] [--whole] [--runs 4] [--policy best_value]

Requests of one class arrive at engines whose pace does not change, `--rate` a second at each; after some hundreds that are not counted,
each event with everything it causes is timed: CPU of this thread, of several runs that do the same to the last decision the least of each,
less what looking at that clock takes. `--whole`: answers that are not streamed, of which the core is told the end only. What the predictor
costs, its predictions for every decision among it, is what is left when the row without one is taken off. Nothing is subclassed, so it runs
on a compiled gateway too: PYTHONPATH=.venv-compiled/lib/python3.11/site-packages.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from gateway.core.decide import Core
from gateway.core.flow import (
    ClassPolicy,
    CoreSettings,
    Endpoint,
    InstanceSpec,
    Outcome,
    Placement,
    Request,
    Result,
    SloTargets,
    Start,
    Tag,
)
from gateway.predict.predictor import LearningPredictor
from gateway.simulate.run import policy_named

clock = time.thread_time
LOOK_S = min(-clock() + clock() for _ in range(10_000))
FACTS = (8.0, 0.01, 0.1, 25.0)  # an H100's
STEP_S = 0.0095
TARGETS = SloTargets(1.0, 0.1, 60.0, 60.0)
CLASS = ClassPolicy("interactive", 0, 1.0, ("premium",), targets=TARGETS)
TAG = Tag("chatbot", "interactive", 0, TARGETS, ("premium",), 128, "made up")
KNOWN = 300  # requests an instance that are not counted


class Run:
    """One core, its engines, and the time of every event."""

    def __init__(self, given: argparse.Namespace, predicts: bool) -> None:
        self.given, self.chance = given, Random(5)
        predictor = LearningPredictor({"H100|m|": FACTS}) if predicts else None
        self.core = Core(CoreSettings((CLASS,)), policy_named(given.policy)(Random(0)), predictor)
        specs = [InstanceSpec(f"p/{i}", "p", "premium", 0, "m", "H100", 3.0, 64) for i in range(given.instances)]
        self.core.instances_changed(specs, 0.0)
        self.streams: dict[str, set[Placement]] = {spec.instance_id: set() for spec in specs}
        self.taken: dict[str, list[float]] = {}
        self.counts = False
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = 0
        self._left = given.requests + KNOWN * given.instances
        self._tick_s = 1.0

    def run(self) -> dict[str, list[float]]:
        """Microseconds of each event, by name."""
        self._at(0.001, self._arrives)
        while self._heap:
            now_s, _, what = heapq.heappop(self._heap)
            while self._tick_s < now_s:
                for name in self.streams:
                    self._count(name, self._tick_s)
                self._time("second", self.core.tick, self._tick_s)
                self._tick_s += 1.0
            what(now_s)
        return self.taken

    def _at(self, at_s: float, what: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at_s, self._order, what))

    def _time(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        began_s = clock()
        result = call(*arguments)
        if self.counts:
            self.taken.setdefault(name, []).append((clock() - began_s - LOOK_S) * 1e6)
        return result

    def _count(self, instance_id: str, now_s: float) -> None:
        """What a relay does as tokens pass."""
        for placement in self.streams[instance_id]:
            steps = int((now_s - placement.first_token_at_s) / STEP_S)
            placement.output_tokens = 1 + steps
            placement.last_token_at_s = placement.first_token_at_s + steps * STEP_S

    def _arrives(self, now_s: float) -> None:
        self._left -= 1
        self.counts = self._left < self.given.requests
        chance, streams = self.chance, not self.given.whole
        prompt_tokens = chance.randrange(100, 1_500)
        hashes = tuple(chance.randrange(1 << 40) for _ in range(prompt_tokens // 256))
        request = Request("r", Endpoint.CHAT, "m", "t", streams, prompt_tokens, 256, prompt_tokens * 4, now_s, prefix_hashes=hashes)
        ticket = self._time("ticket", self.core.ticket, request, TAG)
        for action in self._time("arrival", self.core.submit, ticket, now_s):
            assert isinstance(action, Start), "more than the engines take"
            placement, output_tokens = action.placement, chance.randrange(16, 160)
            first_at_s = now_s + 0.02 + prompt_tokens * 25e-6 * chance.uniform(0.9, 1.1)
            if streams:
                self._at(first_at_s, partial(self._answers, placement))
            self._at(first_at_s + (output_tokens - 1) * STEP_S, partial(self._ends, placement, output_tokens))
        if self._left:
            self._at(now_s + chance.expovariate(self.given.rate * self.given.instances), self._arrives)

    def _answers(self, placement: Placement, now_s: float) -> None:
        self._count(placement.instance_id, now_s)
        placement.first_token_at_s = placement.last_token_at_s = now_s
        placement.output_tokens = 1
        self.streams[placement.instance_id].add(placement)
        self._time("first_token", self.core.first_token, placement, now_s)

    def _ends(self, placement: Placement, output_tokens: int, now_s: float) -> None:
        self._count(placement.instance_id, now_s)
        self.streams[placement.instance_id].discard(placement)
        if placement.first_token_at_s:
            placement.output_tokens, placement.last_token_at_s = output_tokens, now_s
        e2e_s = now_s - placement.started_at_s
        outcome = Outcome(Result.COMPLETED, ttft_s=0.05, tpot_s=STEP_S, e2e_s=e2e_s, output_tokens=output_tokens, tokens_estimated=False)
        self._time("end", self.core.finished, placement, outcome, now_s)


def measured(given: argparse.Namespace, predicts: bool) -> dict[str, float]:
    """Microseconds a request by event, and a second by `second`."""
    least: dict[str, list[float]] = {}
    for _ in range(given.runs):
        for name, values in Run(given, predicts).run().items():
            least[name] = [min(pair) for pair in zip(least.get(name, values), values, strict=True)]
    seconds = least.pop("second")
    told = {name: round(sum(values) / given.requests, 2) for name, values in least.items()}
    return told | {"request": round(sum(told.values()), 2), "second": round(sum(seconds) / len(seconds), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--rate", type=float, default=8.0)
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--policy", default="best_value")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)  # as serve does
    rows = {name: measured(given, predicts) for name, predicts in (("with", True), ("without", False))}
    rows["predictor"] = {name: round(figure - rows["without"][name], 2) for name, figure in rows["with"].items()}
    if given.json:
        print(json.dumps(rows))
        return
    print(f"{given.policy}, {given.instances} instances at {given.rate:g}/s each, {'whole' if given.whole else 'streamed'} answers; us")
    names = list(rows["with"])
    print(f"{'':>10}" + "".join(f"{name:>12}" for name in names))
    for row, figures in rows.items():
        print(f"{row:>10}" + "".join(f"{figures[name]:>12g}" for name in names))


if __name__ == "__main__":
    main()
