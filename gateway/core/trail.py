"""Why a request went as it did: the last decisions, kept as they were made and told when somebody asks.

A decision costs a few appends here; words are found only in `tell`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from gateway.core.budget import missed
from gateway.core.flow import Considered, FailReason, Outcome, Placement, Prediction, Refuse, Result, Ticket

if TYPE_CHECKING:
    from gateway.core.instance import Instance

MAX_CANDIDATES: Final = 12
MAX_STEPS: Final = 64
# Of all that is kept, the part for the newest requests whatever became of them. What is kept is memory that every request walks through:
# two thousand of the ordinary ones would push all else out of a core's cache, a tenth of what a request costs.
NEWEST: Final = 1 / 8


class Trails:
    """The tickets of `size` requests: the newest, and before them those that somebody will ask about, which waited, failed, were refused
    or missed. What happened to one is its ticket's `trail`: when, what, with which value, on which instance, in order. Nothing in it
    leads back to the ticket, or only the garbage collector could free what is forgotten."""

    def __init__(self, size: int) -> None:
        self._newest: deque[Ticket] = deque()
        self._remarkable: deque[Ticket] = deque()
        self.resize(size)

    def resize(self, size: int) -> None:
        """Keep so many from now on."""
        self._size = max(int(size * NEWEST), 1)
        self._remarkable = deque(self._remarkable, size - self._size)

    def of(self, request_id: str) -> Ticket | None:
        """None when it is unknown or forgotten. Of several under one id the newest."""
        return next((ticket for ticket in self.newest() if ticket.request.request_id == request_id), None)

    def newest(self) -> Iterator[Ticket]:
        """All that are known, the last to arrive first."""
        return chain(reversed(tuple(self._newest)), reversed(tuple(self._remarkable)))

    def begin(self, ticket: Ticket) -> None:
        """A request has arrived."""
        newest = self._newest
        newest.append(ticket)
        while len(newest) > self._size:
            oldest = newest.popleft()
            if _is_remarkable(oldest):
                self._remarkable.append(oldest)

    def add(self, ticket: Ticket, what: str, now_s: float, value: Any = None) -> None:
        """queued, leasing, late, degraded, gone: it happened."""
        if len(ticket.trail) < MAX_STEPS:
            ticket.trail.append((now_s, what, value, ""))

    def started(self, placement: Placement, candidates: list[Considered], now_s: float) -> None:
        """A place was found, after looking at `candidates`, which are kept from now on."""
        trail = placement.ticket.trail
        if len(trail) < MAX_STEPS:
            # An empty list is used again for the next one's.
            noted = candidates if 0 < len(candidates) <= MAX_CANDIDATES else candidates[:MAX_CANDIDATES]
            asked = _asked(placement.ticket, noted)
            trail.append((now_s, "started", (placement.prediction, noted, asked), placement.instance_id))

    def weighed(self, ticket: Ticket, candidates: list[Considered], ahead: int, wait_s: float, now_s: float) -> None:
        """No place was found among `candidates`: with so many before it, a slot was expected in `wait_s`."""
        if len(ticket.trail) < MAX_STEPS:
            could_wait_s = max(ticket.latest_start_at_s - now_s, 0.0)  # as of now: a looser class will give it more
            noted = candidates[:MAX_CANDIDATES]
            asked = _asked(ticket, noted)
            ticket.trail.append((now_s, "weighed", (ahead, wait_s, could_wait_s, noted, asked), ""))

    def refused(self, refuse: Refuse, now_s: float) -> None:
        """It was told no."""
        refuse.ticket.trail.append((now_s, "refused", (refuse.reason, refuse.retry_after_s), ""))

    def failed(self, placement: Placement, reason: FailReason, now_s: float) -> None:
        """An attempt came to nothing."""
        placement.ticket.trail.append((now_s, "failed", reason, placement.instance_id))

    def finished(self, placement: Placement, outcome: Outcome, now_s: float) -> None:
        """It is over, well or not."""
        placement.ticket.trail.append((now_s, "finished", outcome, placement.instance_id))


def _is_remarkable(ticket: Ticket) -> bool:
    """Did anything happen to it but that it started at once and was answered in time? What still runs may yet be."""
    if len(ticket.trail) != 2:
        return True
    _, what, outcome, _ = ticket.trail[1]
    return what != "finished" or outcome.result is not Result.COMPLETED or missed(ticket, outcome)


Asked = dict[str, tuple[float, float, float]]
ASKED = ("asks_per_s", "residents_per_s", "turned_away")


def _asked(ticket: Ticket, candidates: list[Considered]) -> Asked | None:
    """By candidate kept for a class that is worth more, where that makes it dearer: what a second costs that class, what it would cost whom
    it delays, and what it costs who comes while its prompt is read."""
    kept = ticket.kept
    if kept is None:
        return None
    asked: Asked = {}
    for instance, ttft_s, _, _, work_s, _, _ in candidates:
        asks_per_s = kept.delays_per_s.get(instance.spec.instance_id)
        if asks_per_s is not None:
            turned_away = kept.turned_away(work_s, ttft_s)
            if asks_per_s > instance.stake_per_s or turned_away:
                asked[instance.spec.instance_id] = asks_per_s, instance.stake_per_s, turned_away
    return asked or None


def _why_not(prediction: Prediction, tightest_itl_s: float, ticket: Ticket, at_s: float) -> str:
    targets = ticket.tag.targets
    missed = []
    if at_s + prediction.ttft_s > ticket.ttft_deadline_at_s:
        missed.append("ttft")
    if prediction.itl_s > (ticket.itl_target_s or targets.itl_s):
        missed.append("itl")
    elif prediction.itl_s > tightest_itl_s:
        missed.append("itl of others")
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


def tell(ticket: Ticket) -> dict[str, Any]:
    """As plain values: what the request was, what it was promised, and what happened, in order; times in seconds since its arrival."""
    request, tag = ticket.request, ticket.tag
    steps = [_step(ticket, *step) for step in ticket.trail]
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


def _step(ticket: Ticket, at_s: float, what: str, value: Any, instance_id: str) -> dict[str, Any]:
    told: dict[str, Any] = {"after_s": round(max(at_s - ticket.request.arrived_at_s, 0.0), 4), "what": what}
    if instance_id:
        told["instance_id"] = instance_id
    if what == "started":
        prediction, candidates, asked = value
        if prediction is not None:
            told["predicted"] = _shown(prediction)
        if candidates:
            told["candidates"] = [_candidate(ticket, at_s, instance_id, asked, *one) for one in candidates]
    elif what == "weighed":
        ahead, wait_s, could_wait_s, candidates, asked = value
        told |= {"ahead": ahead, "slot_expected_in_s": round(wait_s, 3), "can_wait_s": round(could_wait_s, 3)}
        if candidates:
            told["candidates"] = [_candidate(ticket, at_s, "", asked, *one) for one in candidates]
    elif what == "refused":
        reason, retry_after_s = value
        told |= {"reason": reason.value, "retry_after_s": round(retry_after_s, 3)}
    elif what == "finished":
        if value.fail_reason is not None:
            told["reason"] = value.fail_reason.value
        told["got"] = _got(value)
    elif value is not None:
        told["reason"] = str(value)
    return told


def _candidate(
    ticket: Ticket, at_s: float, chosen_id: str, asked: Asked | None, instance: Instance, ttft_s: float, itl_s: float, e2e_s: float,
    work_s: float, in_flight: int, tightest_itl_s: float,
) -> dict[str, Any]:  # fmt: skip
    spec, prediction = instance.spec, Prediction(ttft_s, itl_s, e2e_s, work_s)
    kept = asked.get(spec.instance_id) if asked else None
    return {
        "instance_id": spec.instance_id,
        "tier": spec.tier,
        "usd_per_hour": spec.usd_per_hour,
        "in_flight": in_flight,
        "predicted": _shown(prediction),
        "work_s": round(work_s, 3),
        "would_miss": _why_not(prediction, tightest_itl_s, ticket, at_s),
        "kept": {name: round(price, 3) for name, price in zip(ASKED, kept, strict=True)} if kept else None,
        "chosen": spec.instance_id == chosen_id,
    }
