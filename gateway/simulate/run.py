"""One simulated run: the live decision core over simulated engines, on made-up time.

The core, its policy and its predictor are those of the gateway, unchanged; this module only tells the core what happens and does what it
says. The same fleet, jobs, policy and seed give the same run. What the run is worth is judged by score.py.
"""

from __future__ import annotations

import heapq
import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from gateway.config.catalog import Catalog
from gateway.core.decide import Core
from gateway.core.flow import (
    Action,
    Cancel,
    ClassPolicy,
    CoreSettings,
    Degrade,
    Endpoint,
    FailReason,
    Outcome,
    Placement,
    QueueLimits,
    Refuse,
    RefuseReason,
    Request,
    Result,
    SloTargets,
    Start,
    Tag,
    Ticket,
)
from gateway.core.policy import Policy, Predictor
from gateway.simulate.fleets import SimulatedFleet
from gateway.simulate.machine import Machine, Sequence
from gateway.simulate.workload import Job

TICK_S = 1.0
# After the last arrival a run goes on until everything has ended, but no longer than this; what is left then has missed.
DRAIN_S = 240.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong. `instance` is an index into the fleet."""

    kind: str  # slow, death
    at_s: float
    instance: int = 0
    ratio: float = 0.5  # of its speed, for slow
    until_s: float = math.inf


@dataclass(slots=True)
class Record:
    """How one job ended, by what its user saw. Durations in seconds; None = did not happen."""

    job: Job
    experience_class: str
    targets: SloTargets
    result: Result = Result.FAILED
    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_p95_s: float | None = None
    e2e_s: float | None = None
    output_tokens: int = 0
    instance_id: str = ""
    tier: str = ""
    queue_s: float = 0.0
    refuse_reason: RefuseReason | None = None
    degraded: bool = False
    expected_ttft_s: float = 0.0
    ended: bool = False

    @property
    def attained(self) -> bool:
        """Within every target, the gaps by their mean; of one that does not stream its user sees the end only."""
        targets = self.targets
        if not self.job.stream:
            return self.result is Result.COMPLETED and self.e2e_s is not None and self.e2e_s <= targets.e2e_s
        return (
            self.result is Result.COMPLETED
            and self.ttft_s is not None
            and self.e2e_s is not None
            and self.ttft_s <= targets.ttft_s
            and (self.tpot_s or 0.0) <= targets.itl_s
            and self.e2e_s <= targets.e2e_s
        )

    @property
    def attained_strict(self) -> bool:
        """Within every target, 95 % of the gaps too."""
        return self.attained and (not self.job.stream or (self.itl_p95_s or 0.0) <= self.targets.itl_s)


@dataclass(slots=True)
class Run:
    """A run's records and totals."""

    records: list[Record]
    span_s: float
    usd_per_hour: float
    gpus: int
    emitted_tokens: int = 0
    read_tokens: int = 0
    preempted: int = 0
    decisions: list[tuple[str, str]] = field(default_factory=list)  # (job, where it went or why it was refused), in order
    events: int = 0


def core_settings(catalog: Catalog, weights: dict[str, float] | None = None) -> CoreSettings:
    """What the core decides by, of a catalogue alone (a live gateway adds its settings)."""
    classes = tuple(
        ClassPolicy(
            name,
            class_.rank,
            class_.ceiling,
            class_.tiers,
            QueueLimits(class_.queue.max_requests, class_.queue.max_bytes, class_.queue.ttl_s),
            class_.refusable,
            catalog.class_targets(name),
            class_.worth,
        )
        for name, class_ in catalog.by_rank()
    )
    return CoreSettings(classes=classes, tenant_weights=weights or {}, trail_size=16)


def policy_named(name: str) -> Callable[[Random], Policy]:
    """A policy by its file name in gateway/policies, or by a path to such a file. ValueError when there is none."""
    if name.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        if spec is None or spec.loader is None or not Path(name).is_file():
            raise ValueError(f"{name}: no such policy file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(f"gateway.policies.{name}")
        except ModuleNotFoundError as error:
            raise ValueError(f"no policy named {name!r} in gateway/policies") from error
    made = getattr(module, "policy", None)
    if made is None:
        raise ValueError(f"{name}: a policy file offers `policy(chance) -> Policy`")
    return made  # type: ignore[no-any-return]


class Simulation:
    """Drives one run. Made anew for each."""

    def __init__(
        self,
        fleet: SimulatedFleet,
        jobs: list[Job],
        catalog: Catalog,
        policy: Callable[[Random], Policy],
        predictor: Callable[[dict[str, Machine]], Predictor | None],
        *,
        span_s: float,
        seed: int = 0,
        faults: tuple[Fault, ...] = (),
        settings: CoreSettings | None = None,
        lists_decisions: bool = False,
    ) -> None:
        self.fleet, self.jobs, self.catalog, self.span_s = fleet, jobs, catalog, span_s
        # Each engine has its own chance, so that what happens on one does not change another.
        self.machines = {
            spec.instance_id: Machine(facts, Random(f"{seed}/{spec.instance_id}"))  # noqa: S311
            for spec, facts in zip(fleet.specs, fleet.engines, strict=True)
        }
        self.core = Core(settings or core_settings(catalog), policy(Random(seed)), predictor(self.machines))  # noqa: S311
        self.models = {spec.model for spec in fleet.specs}
        self.dead: set[str] = set()
        self.inside: dict[Placement, tuple[Machine, Sequence]] = {}
        self.records: list[Record] = []
        self.decisions: list[tuple[str, str]] = []
        self.lists_decisions = lists_decisions
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = 0
        self._open = 0
        self._at(0.0, lambda now_s: self._do(self.core.instances_changed(list(fleet.specs), now_s), now_s))
        self._at(0.0, self._tick)
        for fault in faults:
            self._at(fault.at_s, partial(self._fault, fault))

    def run(self) -> Run:
        """To the end."""
        machines = list(self.machines.values())
        heap, jobs = self._heap, self.jobs
        next_job, count, events = 0, len(jobs), 0
        end_s = self.span_s + DRAIN_S
        while next_job < count or self._open:
            machine = min(machines, key=_next_at)
            at_s = machine.next_at_s
            due = 0
            if heap and heap[0][0] <= at_s:
                at_s, due = heap[0][0], 1
            if next_job < count and jobs[next_job].at_s < at_s:
                at_s, due = jobs[next_job].at_s, 2
            if at_s > end_s:
                break
            events += 1
            if due == 0:
                self._machine(machine, at_s)
            elif due == 1:
                heapq.heappop(heap)[2](at_s)
            else:
                self._arrival(jobs[next_job], at_s)
                next_job += 1
        return Run(
            self.records,
            self.span_s,
            self.fleet.usd_per_hour,
            len(self.fleet.specs),
            sum(machine.emitted_tokens for machine in machines),
            sum(machine.read_tokens for machine in machines),
            sum(machine.preempted for machine in machines),
            self.decisions,
            events,
        )

    # ---- what happens

    def _at(self, at_s: float, what: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at_s, self._order, what))

    def _arrival(self, job: Job, now_s: float) -> None:
        use_case = self.catalog.use_cases[job.use_case]
        targets = self.catalog.targets_for(job.use_case, job.experience_class)
        record = Record(job, job.experience_class or use_case.experience_class, targets)
        self.records.append(record)
        self._open += 1
        tag: Tag = self.catalog.tag_for(job.tagged, job.experience_class, "simulated")
        request = Request(
            request_id=job.job_id,
            endpoint=Endpoint.CHAT,
            model=job.model if job.model in self.models else self.fleet.specs[0].model,
            tenant=job.tenant,
            stream=job.stream,
            prompt_tokens=job.prompt_tokens,
            max_output_tokens=job.max_output_tokens,
            body_bytes=job.prompt_tokens * 4,
            arrived_at_s=now_s,
            app=job.app,
            prefix_hashes=job.hashes,
            may_degrade=job.may_degrade,
        )
        ticket = self.core.ticket(request, tag, record)
        self._do(self.core.submit(ticket, now_s), now_s)

    def _machine(self, machine: Machine, now_s: float) -> None:
        first, done = machine.run(now_s)
        if first or done:
            machine.tell(now_s)
            for sequence in first:
                placement: Placement = sequence.owner
                placement.first_token_at_s = now_s
                placement.output_tokens = 1
                placement.last_token_at_s = now_s
                if placement in self.inside:
                    self._do(self.core.first_token(placement, now_s), now_s)
            for sequence in done:
                if sequence.owner in self.inside:
                    self._finished(sequence, machine, now_s)
        machine.plan(now_s)

    def _finished(self, sequence: Sequence, machine: Machine, now_s: float) -> None:
        placement: Placement = sequence.owner
        del self.inside[placement]
        ticket = placement.ticket
        record: Record = ticket.handle
        tokens = sequence.output_tokens
        record.result = Result.COMPLETED
        record.ttft_s = sequence.first_at_s - ticket.request.arrived_at_s
        record.e2e_s = now_s - ticket.request.arrived_at_s
        record.tpot_s = (now_s - sequence.first_at_s) / (tokens - 1) if tokens > 1 else None
        record.itl_p95_s = machine.p95_gap_s(sequence) if tokens > 1 else None
        record.output_tokens = tokens
        record.queue_s = placement.started_at_s - ticket.request.arrived_at_s
        placement.output_tokens, placement.last_token_at_s = tokens, now_s
        self._ended(record)
        outcome = Outcome(
            Result.COMPLETED,
            queue_s=record.queue_s,
            ttft_s=record.ttft_s,
            tpot_s=record.tpot_s,
            itl_p95_s=record.itl_p95_s,
            e2e_s=record.e2e_s,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=sequence.cached_tokens,
            output_tokens=tokens,
            tokens_estimated=False,
        )
        self._do(self.core.finished(placement, outcome, now_s), now_s)

    def _tick(self, now_s: float) -> None:
        for machine in self.machines.values():
            machine.tell(now_s)
        self._do(self.core.tick(now_s), now_s)
        self._at(now_s + TICK_S, self._tick)

    def _wake(self, now_s: float) -> None:
        self._do(self.core.tick(now_s), now_s)

    def _fault(self, fault: Fault, now_s: float) -> None:
        spec = self.fleet.specs[fault.instance % len(self.fleet.specs)]
        machine = self.machines[spec.instance_id]
        if fault.kind == "slow":
            machine.change(machine.facts.slower(fault.ratio), now_s)
            if fault.until_s < math.inf:
                self._at(fault.until_s, lambda at_s: machine.change(machine.facts.slower(1 / fault.ratio), at_s))
            return
        self.dead.add(spec.instance_id)
        self._do(self.core.instance_health(spec.instance_id, False, now_s), now_s)
        for placement, (where, sequence) in list(self.inside.items()):
            if where is machine:
                machine.cancel(sequence, now_s)
                self._failed(placement, now_s)
        if fault.until_s < math.inf:
            self._at(fault.until_s, lambda at_s: self._revived(spec.instance_id, at_s))

    def _revived(self, instance_id: str, now_s: float) -> None:
        self.dead.discard(instance_id)
        self._do(self.core.instance_health(instance_id, True, now_s), now_s)

    def _failed(self, placement: Placement, now_s: float) -> None:
        if self.inside.pop(placement, None) is None:
            return
        retry = placement.first_token_at_s == 0.0
        if not retry:
            record: Record = placement.ticket.handle
            record.result = Result.FAILED
            record.output_tokens = placement.output_tokens
            self._ended(record)
        reason = FailReason.CLOSED_EARLY if retry else FailReason.CUT
        self._do(self.core.failed(placement, reason, now_s, retry), now_s)

    # ---- what the core wants done

    def _do(self, actions: list[Action], now_s: float) -> None:
        for action in actions:
            if isinstance(action, Start):
                self._start(action.placement, now_s)
            elif isinstance(action, Refuse):
                record: Record = action.ticket.handle
                record.result, record.refuse_reason = Result.REFUSED, action.reason
                record.queue_s = now_s - action.ticket.request.arrived_at_s
                if self.lists_decisions:
                    self.decisions.append((record.job.job_id, f"refused: {action.reason.value}"))
                self._ended(record)
            elif isinstance(action, Degrade):
                self._degraded(action.ticket, action.tag)
            elif isinstance(action, Cancel):
                found = self.inside.pop(action.placement, None)
                if found is not None:
                    found[0].cancel(found[1], now_s)
                    self._ended(action.placement.ticket.handle)
        wake_at_s = self.core.next_wake_at_s
        if wake_at_s is not None and now_s < wake_at_s < now_s + TICK_S and not (self._wake_at_s >= now_s and self._wake_at_s <= wake_at_s):
            self._wake_at_s = wake_at_s
            self._at(wake_at_s, self._wake)

    _wake_at_s = -1.0

    def _start(self, placement: Placement, now_s: float) -> None:
        record: Record = placement.ticket.handle
        record.instance_id, record.tier = placement.instance_id, placement.tier
        record.expected_ttft_s = placement.prediction.ttft_s if placement.prediction else 0.0
        if self.lists_decisions:
            self.decisions.append((record.job.job_id, placement.instance_id))
        machine = self.machines[placement.instance_id]
        job = record.job
        output = min(job.output_tokens, job.max_output_tokens or job.output_tokens)
        sequence = Sequence(placement, job.prompt_tokens, output, job.hashes)
        self.inside[placement] = (machine, sequence)
        if placement.instance_id in self.dead:
            self._at(now_s, lambda at_s: self._failed(placement, at_s))
        else:
            self._at(now_s + machine.facts.overhead_s, lambda at_s: self._reaches(machine, placement, sequence, at_s))

    def _reaches(self, machine: Machine, placement: Placement, sequence: Sequence, now_s: float) -> None:
        if placement in self.inside:
            machine.submit(sequence, now_s)

    def _degraded(self, ticket: Ticket, tag: Tag) -> None:
        record: Record = ticket.handle
        record.degraded, record.targets = True, tag.targets

    def _ended(self, record: Record) -> None:
        if record.ended:
            raise RuntimeError(f"job {record.job.job_id} ended twice")
        record.ended = True
        self._open -= 1


def _next_at(machine: Machine) -> float:
    return machine.next_at_s
