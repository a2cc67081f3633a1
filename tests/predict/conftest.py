"""Engines, placements and time for predictors, without a core: requests go to a random instance that has room."""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

import pytest

from gateway.core.flow import Endpoint, InstanceSpec, Outcome, Placement, Request, Result, SloTargets, Tag, Ticket
from gateway.core.instance import Instance
from gateway.predict.predictor import LearningPredictor
from gateway.simulate.machine import Machine, MachineFacts, Sequence

TARGETS = SloTargets(ttft_s=1.0, itl_s=0.05, e2e_s=60.0, e2e_limit_s=60.0)
PROFILES = (("chatbot", 512, 256), ("code_generation", 1024, 1024), ("document_rag", 4096, 512), ("summarization_long", 10240, 1536))


def ticket_of(prompt_tokens: int, use_case: str = "chatbot", profile: int = 256, hashes: tuple[int, ...] = (), tenant: str = "t") -> Ticket:
    request = Request("r", Endpoint.CHAT, "m", tenant, True, prompt_tokens, None, prompt_tokens * 4, 0.0, prefix_hashes=hashes)
    tag = Tag(use_case, "interactive", 2, TARGETS, ("balanced",), profile, "test")
    return Ticket(request, tag, 1e9, 1e9, float(profile))


@dataclass
class Seen:
    """What was predicted at a start and what came."""

    at_s: float
    instance_id: str
    ttft_predicted_s: float
    itl_predicted_s: float
    ttft_s: float = 0.0
    tpot_s: float = 0.0


@dataclass
class Gap:
    """What the next gap of an instance's residents was expected to be, and what its engine's step is without jitter."""

    at_s: float
    instance_id: str
    predicted_s: float
    true_s: float


def mape(pairs: Iterable[tuple[float, float]]) -> float:
    """Mean of |predicted / true - 1| over (predicted, true)."""
    return statistics.mean(abs(predicted / true - 1) for predicted, true in pairs)


@dataclass
class Bench:
    """Drives a predictor by engines of these facts; `run` may be called again to go on."""

    predictor: LearningPredictor
    engines: dict[str, MachineFacts]
    specs: dict[str, InstanceSpec]
    seed: int = 1
    limit: int = 12
    rate_per_s: float = 3.0
    output_ratio: float = 1.0
    now_s: float = 0.0
    seen: list[Seen] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = Random(self.seed)
        self.machines = {name: Machine(facts, Random(f"{self.seed}{name}")) for name, facts in self.engines.items()}
        self.instances = {name: Instance(spec) for name, spec in self.specs.items()}
        self.queue: list[tuple[float, int, Callable[[float], None]]] = []
        self.order = 0
        self.next_at_s = 0.0
        self.second_s = 0.0

    def second(self, now_s: float) -> None:
        """What the core does once a second."""
        for name, instance in self.instances.items():
            if instance.residents:
                self.machines[name].tell(now_s)
                self.predictor.passing(instance, now_s)
                self.compare(name, now_s)

    def run(self, requests: int) -> list[Seen]:
        """Send this many more; those of them that completed."""
        begin = len(self.seen)
        sent = 0
        while sent < requests:
            machine = min(self.machines.values(), key=lambda m: m.next_at_s)
            at_s = min(machine.next_at_s, self.next_at_s, self.queue[0][0] if self.queue else math.inf)
            while self.second_s < at_s:
                self.second_s += 1.0
                self.second(self.second_s)
            self.now_s = at_s
            if self.queue and self.queue[0][0] <= at_s:
                heapq.heappop(self.queue)[2](at_s)
            elif at_s == self.next_at_s:
                self.next_at_s += self.chance.expovariate(self.rate_per_s)
                sent += self.arrive(at_s)
            else:
                self.step(machine, at_s)
        return [seen for seen in self.seen[begin:] if seen.ttft_s]

    def arrive(self, now_s: float) -> int:
        free = [instance for instance in self.instances.values() if instance.in_flight < self.limit]
        if not free:
            return 0
        instance = self.chance.choice(free)
        self.machines[instance.spec.instance_id].tell(now_s)  # a live relay has counted every token that passed
        use_case, prompt, output = self.chance.choice(PROFILES)
        prompt_tokens = max(round(prompt * math.exp(self.chance.gauss(0, 0.3))), 1)
        output_tokens = max(round(output * self.output_ratio * math.exp(self.chance.gauss(0, 0.5))), 2)
        ticket = ticket_of(prompt_tokens, use_case, output)
        ticket.expected_output_tokens = self.predictor.expected_output_tokens(ticket)
        [(_, ttft_s, itl_s, *_)] = self.predictor.consider(ticket, (instance,), now_s)
        spec = instance.spec
        placement = Placement(ticket, spec.instance_id, spec.pool, spec.tier, spec.model, now_s)
        seen = Seen(now_s, spec.instance_id, ttft_s, itl_s)
        self.seen.append(seen)
        ticket.handle = seen
        self.compare(instance.spec.instance_id, now_s)
        instance.in_flight += 1
        instance.residents[placement] = None
        self.predictor.started(placement, instance, now_s)
        machine = self.machines[spec.instance_id]
        sequence = Sequence(placement, prompt_tokens, output_tokens)
        self.order += 1
        heapq.heappush(self.queue, (now_s + machine.facts.overhead_s, self.order, lambda at_s: machine.submit(sequence, at_s)))
        return 1

    def compare(self, instance_id: str, now_s: float) -> None:
        machine, load = self.machines[instance_id], self.predictor.latencies.loads[instance_id]
        if machine.decoding:
            load.advance(now_s)
            load.refresh(now_s)
            self.gaps.append(Gap(now_s, instance_id, load.step_s, machine.facts.step_s(machine.decoding, machine.context_tokens)))

    def step(self, machine: Machine, now_s: float) -> None:
        first, done = machine.run(now_s)
        machine.tell(now_s)
        for sequence in first:
            placement = sequence.owner
            placement.first_token_at_s = placement.last_token_at_s = now_s
            placement.output_tokens = 1
            placement.ticket.handle.ttft_s = now_s - placement.started_at_s
            self.predictor.first_token(placement, self.instances[placement.instance_id], now_s)
        for sequence in done:
            placement = sequence.owner
            instance = self.instances[placement.instance_id]
            instance.in_flight -= 1
            instance.residents.pop(placement, None)
            placement.output_tokens, placement.last_token_at_s = sequence.output_tokens, now_s
            tpot_s = (now_s - sequence.first_at_s) / max(sequence.output_tokens - 1, 1)
            placement.ticket.handle.tpot_s = tpot_s
            outcome = Outcome(Result.COMPLETED, tpot_s=tpot_s, output_tokens=sequence.output_tokens, tokens_estimated=False)
            self.predictor.finished(placement, instance, outcome, now_s)
        machine.plan(now_s, 8)  # no more steps at once, so that a change of the engine is felt soon


def spec_of(name: str, gpu: str = "L40S", config: str = "w8") -> InstanceSpec:
    return InstanceSpec(name, "pool", "balanced", 1, "m", gpu, 2.0, 16, engine_config=config)


@pytest.fixture
def bench() -> Callable[..., Bench]:
    """A bench of `count` engines alike, whose facts the predictor is told `misjudged` times over."""

    def made(
        count: int = 2,
        facts: MachineFacts | None = None,
        misjudged: float = 1.0,
        cautious: bool = False,
        seed: int = 1,
        rate_per_s: float = 2.5,
    ) -> Bench:
        engine = facts or MachineFacts(13.8, 0.004, 0.295, 110, chunk_tokens=1024)
        names = [f"pool/{index}" for index in range(count)]
        told = (engine.a * misjudged, engine.b * misjudged, engine.c * misjudged, engine.d * misjudged)
        predictor = LearningPredictor({"L40S|m|w8": told}, cautious=cautious)
        return Bench(predictor, dict.fromkeys(names, engine), {name: spec_of(name) for name in names}, seed=seed, rate_per_s=rate_per_s)

    return made
