"""Why a request went as it did: the last decisions, kept as they were made and told when somebody asks.

A decision costs a few appends here; words are found only in `tell`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from gateway.core.flow import FailReason, Outcome, Placement, Prediction, Refuse, Ticket

MAX_CANDIDATES = 12


@dataclass(slots=True)
class Step:
    """One thing that happened to a request. `candidates`: (instance id, tier, in flight, prediction) as they were looked at."""

    at_s: float
    what: str  # queued, late, started, refused, failed, degraded, gone, held, finished
    instance_id: str = ""
    reason: str = ""
    candidates: list[tuple[str, str, int, Prediction]] = field(default_factory=list)
    prediction: Prediction | None = None
    more: float = 0.0
    outcome: Outcome | None = None


@dataclass(slots=True)
class Trail:
    """All steps of one request."""

    ticket: Ticket
    steps: list[Step] = field(default_factory=list)


class Trails:
    """The last `size` requests, by id."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: OrderedDict[str, Trail] = OrderedDict()

    def of(self, request_id: str) -> Trail | None:
        """None when it is unknown or forgotten."""
        return self._kept.get(request_id)

    def add(self, ticket: Ticket, step: Step) -> None:
        """It happened."""
        kept = self._kept
        request_id = ticket.request.request_id
        trail = kept.get(request_id)
        if trail is None or trail.ticket is not ticket:
            trail = kept[request_id] = Trail(ticket)
            if len(kept) > self.size:
                kept.popitem(last=False)
        if len(trail.steps) < 64:
            trail.steps.append(step)

    def started(self, placement: Placement, candidates: list[tuple[Any, Prediction]], now_s: float) -> None:
        """A place was found, after looking at `candidates`."""
        seen = [(i.spec.instance_id, i.spec.tier, i.in_flight, p) for i, p in candidates[:MAX_CANDIDATES]]
        self.add(placement.ticket, Step(now_s, "started", placement.instance_id, "", seen, placement.prediction))

    def refused(self, refuse: Refuse, now_s: float) -> None:
        """It was told no."""
        self.add(refuse.ticket, Step(now_s, "refused", reason=refuse.reason.value, more=refuse.retry_after_s))

    def failed(self, placement: Placement, reason: FailReason, now_s: float) -> None:
        """An attempt came to nothing."""
        self.add(placement.ticket, Step(now_s, "failed", placement.instance_id, reason.value))

    def finished(self, placement: Placement, outcome: Outcome, now_s: float) -> None:
        """It is over, well or not."""
        reason = outcome.fail_reason.value if outcome.fail_reason is not None else ""
        self.add(placement.ticket, Step(now_s, "finished", placement.instance_id, reason, outcome=outcome))


def _why_not(prediction: Prediction, ticket: Ticket, at_s: float) -> str:
    targets = ticket.tag.targets
    missed = []
    if at_s + prediction.ttft_s > ticket.ttft_deadline_at_s:
        missed.append("ttft")
    if prediction.itl_s > (ticket.itl_target_s or targets.itl_s):
        missed.append("itl")
    if at_s + prediction.e2e_s > ticket.e2e_deadline_at_s:
        missed.append("e2e")
    return ", ".join(missed)


def _shown(prediction: Prediction) -> dict[str, float]:
    return {
        "ttft_s": round(prediction.ttft_s, 4),
        "itl_s": round(prediction.itl_s, 4),
        "e2e_s": round(prediction.e2e_s, 3),
    }


def _got(outcome: Outcome) -> dict[str, Any]:
    figures = {"ttft_s": outcome.ttft_s, "tpot_s": outcome.tpot_s, "itl_p95_s": outcome.itl_p95_s, "e2e_s": outcome.e2e_s}
    known = {name: round(figure, 4) for name, figure in figures.items() if figure is not None}
    return {"result": outcome.result.value, "status": outcome.status, **known, "output_tokens": outcome.output_tokens}


def tell(trail: Trail) -> dict[str, Any]:
    """As plain values: what the request was, what it was promised, and what happened, in order; times in seconds since its arrival."""
    ticket = trail.ticket
    request, tag = ticket.request, ticket.tag
    arrived_at_s = request.arrived_at_s
    steps: list[dict[str, Any]] = []
    for step in trail.steps:
        told: dict[str, Any] = {"after_s": round(max(step.at_s - arrived_at_s, 0.0), 4), "what": step.what}
        if step.instance_id:
            told["instance_id"] = step.instance_id
        if step.reason:
            told["reason"] = step.reason
        if step.what == "refused":
            told["retry_after_s"] = round(step.more, 3)
        if step.prediction is not None:
            told["predicted"] = _shown(step.prediction)
        if step.outcome is not None:
            told["got"] = _got(step.outcome)
        if step.candidates:
            told["candidates"] = [
                {
                    "instance_id": instance_id,
                    "tier": tier,
                    "in_flight": in_flight,
                    "predicted": _shown(prediction),
                    "would_miss": _why_not(prediction, ticket, step.at_s),
                    "chosen": instance_id == step.instance_id,
                }
                for instance_id, tier, in_flight, prediction in step.candidates
            ]
        steps.append(told)
    targets = tag.targets
    return {
        "request_id": request.request_id,
        "endpoint": request.endpoint.value,
        "model": request.model,
        "tenant": request.tenant,
        "stream": request.stream,
        "prompt_tokens": request.prompt_tokens,
        "max_output_tokens": request.max_output_tokens,
        "expected_output_tokens": round(ticket.expected_output_tokens),
        "use_case": tag.use_case,
        "experience_class": tag.experience_class,
        "degraded_from": ticket.degraded_from or None,
        "why": tag.why,
        "confidence": round(tag.confidence, 3),
        "targets": {"ttft_s": targets.ttft_s, "itl_s": targets.itl_s, "e2e_s": targets.e2e_s},
        "steps": steps,
    }
