"""A span for every sampled request and for every one that missed its SLO, made when it has ended.

Names are the GenAI semantic conventions' where they have one; the rest is under `slo_gateway.` in the words of the request log. A span
continues the caller's `traceparent`. Nothing of OpenTelemetry is needed here: otlp.py turns what waits into its objects, in a thread.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from os import urandom
from random import Random

from gateway.core.flow import Outcome, Placement, Result, Ticket
from gateway.measure.attainment import judge
from gateway.telemetry.exemplars import Exemplars
from gateway.telemetry.instruments import OPERATIONS, PROVIDER

MAX_WAITING = 2048  # spans, some 2 MB; what OTel's batch processor keeps by default
SAMPLED = 1
Attribute = str | int | float | bool

# https://www.w3.org/TR/trace-context/: a later version may add fields behind these, `ff` is no version.
_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class Parent:
    """What a `traceparent` says."""

    trace_id: int
    span_id: int
    sampled: bool


@dataclass(slots=True)
class Span:
    """One request, as it will be told. Times are wall time."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int  # 0 = none
    start_unix_s: float
    end_unix_s: float
    attributes: dict[str, Attribute]
    events: tuple[tuple[str, float], ...]
    error: str  # "" = none


def read_traceparent(sent: bytes) -> Parent | None:
    """None when it is not one: the request then begins a trace of its own."""
    match = _TRACEPARENT.fullmatch(sent)
    if match is None or (match[1] == b"00" and match[5] is not None):
        return None
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    return Parent(trace_id, span_id, bool(int(match[4], 16) & SAMPLED)) if trace_id and span_id else None


class Spans:
    """An observer of outcomes. `sample_ratio` (0..1) is the share of requests without a sampled `traceparent` that get a span;
    `traceparent_of` finds the header that came with a ticket (b"" = none). `unix_s` and `now_s` tell the same moment on both clocks."""

    def __init__(
        self,
        sample_ratio: float,
        unix_s: Callable[[], float],
        now_s: Callable[[], float],
        traceparent_of: Callable[[Ticket], bytes],
        chance: Random,
    ) -> None:
        self.sample_ratio = sample_ratio
        self.waiting: deque[Span] = deque()
        self.exemplars = Exemplars()
        self.dropped = 0
        self._epoch_unix_s = unix_s() - now_s()
        self._traceparent_of = traceparent_of
        self._chance = chance
        self._secret = urandom(16)

    def observe(self, subject: Placement | Ticket, outcome: Outcome, now_s: float) -> None:
        """Note one ended request, if it is to have a span."""
        ticket = subject.ticket if isinstance(subject, Placement) else subject
        verdict = judge(outcome, ticket.tag.targets, ticket.request.stream)
        missed = verdict.offered and not verdict.attained
        sent = self._traceparent_of(ticket)
        parent = read_traceparent(sent) if sent else None
        if not (missed or (parent is not None and parent.sampled) or self._chance.random() < self.sample_ratio):
            return
        if len(self.waiting) >= MAX_WAITING:
            self.dropped += 1
            return
        span = self._span(subject, ticket, outcome, parent, now_s, verdict.attained if verdict.offered else None)
        self.waiting.append(span)
        self.exemplars.note(subject, outcome, span.trace_id, span.span_id, span.end_unix_s)

    def onward(self, traceparent: bytes, request_id: str) -> bytes:
        """The `traceparent` for the engine: with our span as the parent when that will surely be told, else the caller's own."""
        parent = read_traceparent(traceparent)
        if parent is None or not parent.sampled:
            return traceparent
        return b"00-%032x-%016x-01" % (parent.trace_id, self._child_id(parent, request_id))

    def _child_id(self, parent: Parent, request_id: str) -> int:
        # A function of the request, so that the header to the engine and the span written afterwards agree without being remembered.
        data = b"%016x%016x%b" % (parent.trace_id & 0xFFFFFFFFFFFFFFFF, parent.span_id, request_id.encode())
        return int.from_bytes(blake2b(data, digest_size=8, key=self._secret).digest()) or 1

    def _span(
        self, subject: Placement | Ticket, ticket: Ticket, outcome: Outcome, parent: Parent | None, now_s: float, attained: bool | None
    ) -> Span:
        arrived_at_s = ticket.request.arrived_at_s
        ended_at_s = arrived_at_s + outcome.e2e_s if outcome.e2e_s is not None else max(now_s, arrived_at_s)
        events: list[tuple[str, float]] = []
        if isinstance(subject, Placement):
            events.append(("started", self._epoch_unix_s + subject.started_at_s))
            if outcome.ttft_s is not None:
                events.append(("first token", self._epoch_unix_s + arrived_at_s + outcome.ttft_s))
        return Span(
            name=f"{OPERATIONS[ticket.request.endpoint]} {ticket.request.model}",
            trace_id=parent.trace_id if parent is not None else self._chance.getrandbits(128) or 1,
            span_id=self._child_id(parent, ticket.request.request_id) if parent is not None else self._chance.getrandbits(64) or 1,
            parent_id=parent.span_id if parent is not None else 0,
            start_unix_s=self._epoch_unix_s + arrived_at_s,
            end_unix_s=self._epoch_unix_s + ended_at_s,
            attributes=_attributes(subject, ticket, outcome, attained),
            events=tuple(events),
            error=_error(outcome),
        )


def _error(outcome: Outcome) -> str:
    reason = outcome.fail_reason or outcome.refuse_reason
    return reason.value if reason is not None else ""


def _attributes(subject: Placement | Ticket, ticket: Ticket, outcome: Outcome, attained: bool | None) -> dict[str, Attribute]:
    request, tag = ticket.request, ticket.tag
    every: dict[str, Attribute | None] = {
        "gen_ai.operation.name": OPERATIONS[request.endpoint],
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": request.model,
        "gen_ai.request.max_tokens": request.max_output_tokens,
        "gen_ai.request.choice.count": request.n if request.n != 1 else None,
        "gen_ai.request.stream": request.stream,
        "gen_ai.response.time_to_first_chunk": outcome.ttft_s,
        "gen_ai.usage.input_tokens": outcome.prompt_tokens or None,
        "gen_ai.usage.cache_read.input_tokens": outcome.cached_tokens or None,
        "gen_ai.usage.output_tokens": outcome.output_tokens or None,
        "http.response.status_code": outcome.status,
        "error.type": _error(outcome) or None,
        "slo_gateway.request_id": request.request_id,
        "slo_gateway.tenant": request.tenant,
        "slo_gateway.use_case": tag.use_case,
        "slo_gateway.experience_class": tag.experience_class,
        "slo_gateway.why": tag.why,
        "slo_gateway.result": outcome.result.value,
        "slo_gateway.attained": attained,
        "slo_gateway.degraded_from": ticket.degraded_from or None,
        "slo_gateway.tries": ticket.tries or None,
        "slo_gateway.ttft_target_s": tag.targets.ttft_s,
        "slo_gateway.itl_target_s": tag.targets.itl_s,
        "slo_gateway.e2e_target_s": tag.targets.e2e_s,
        "slo_gateway.queue_s": outcome.queue_s if outcome.result in (Result.COMPLETED, Result.REFUSED) else None,
        "slo_gateway.tpot_s": outcome.tpot_s,
        "slo_gateway.itl_p95_s": outcome.itl_p95_s,
    }
    if isinstance(subject, Placement):
        every["slo_gateway.pool"], every["slo_gateway.tier"] = subject.pool, subject.tier
        every["slo_gateway.instance"] = subject.instance_id
        if subject.prediction is not None:
            every["slo_gateway.predicted_ttft_s"] = subject.prediction.ttft_s
            every["slo_gateway.predicted_itl_s"] = subject.prediction.itl_s
            every["slo_gateway.predicted_e2e_s"] = subject.prediction.e2e_s
    return {name: value for name, value in every.items() if value is not None}
