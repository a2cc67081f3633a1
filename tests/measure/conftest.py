"""Requests that have ended, on a clock that is an argument."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from gateway.core.flow import Endpoint, Outcome, Placement, Request, Result, SloTargets, Tag, Ticket
from gateway.measure.attainment import Attainment, tally_edges

CHAT = SloTargets(ttft_s=0.15, itl_s=0.025, e2e_s=7.0, e2e_limit_s=7.0)
SUMMARY = SloTargets(ttft_s=0.6, itl_s=0.03, e2e_s=15.0, e2e_limit_s=20.0)
START_S = 1000.0
_ids = count(1)


def waiting(
    use_case: str = "chatbot",
    experience_class: str = "conversational",
    targets: SloTargets = CHAT,
    arrived_at_s: float = START_S,
    **of_request: Any,
) -> Ticket:
    """A request that has not been placed."""
    known: dict[str, Any] = {
        "request_id": f"r{next(_ids)}",
        "endpoint": Endpoint.CHAT,
        "model": "llama-8b",
        "tenant": "acme",
        "stream": True,
        "prompt_tokens": 512,
        "max_output_tokens": 256,
        "body_bytes": 2048,
        "arrived_at_s": arrived_at_s,
    }
    request = Request(**(known | of_request))
    tag = Tag(use_case, experience_class, 1, targets, ("premium",), 256, "header")
    return Ticket(request, tag, arrived_at_s + targets.ttft_s, arrived_at_s + targets.e2e_s, 256.0)


def placed(pool: str = "premium", **of_ticket: Any) -> Placement:
    """A request on an instance of `pool`."""
    ticket = waiting(**of_ticket)
    return Placement(ticket, f"{pool}/a:8000", pool, pool, ticket.request.model, ticket.request.arrived_at_s + 0.01)


def completed(**figures: Any) -> Outcome:
    """A stream that kept every promise of CHAT, but for the `figures` given."""
    known: dict[str, Any] = {
        "queue_s": 0.01,
        "ttft_s": 0.1,
        "tpot_s": 0.02,
        "itl_p95_s": 0.024,
        "e2e_s": 5.0,
        "prompt_tokens": 500,
        "output_tokens": 200,
        "tokens_estimated": False,
    }
    return Outcome(Result.COMPLETED, **(known | figures))


@pytest.fixture
def attainment() -> Attainment:
    """Nothing has happened yet."""
    return Attainment(tally_edges([CHAT, SUMMARY]), START_S)


def ticked(attainment: Attainment, from_s: float, to_s: float, each: Callable[[float], object] | None = None) -> None:
    """Let time pass by the second; `each` is called before each tick."""
    now_s = from_s
    while now_s < to_s:
        if each is not None:
            each(now_s)
        now_s += 1.0
        attainment.tick(now_s)
