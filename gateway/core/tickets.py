"""Places in line: a request with the deadlines that its tag promises, and the same under a looser class.

A caller that does not stream sees the end only, so what E2E leaves is divided between the first token and the gaps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from gateway.core.flow import ClassPolicy, Request, Tag, Ticket
from gateway.core.policy import Predictor

TTFT_SHARE_OF_E2E: Final = 0.25  # of a caller that does not stream: prefill is part of what it waits for
# Without a time to live of its own, a request may wait for so many times what its whole answer may take.
TTL_E2E_RATIO: Final = 2.0


def ticket_of(request: Request, tag: Tag, class_: ClassPolicy | None, predictor: Predictor | None, handle: object) -> Ticket:
    """A new ticket, which stands nowhere yet. `class_`: of the tag's experience class, None when it is no more."""
    targets = tag.targets
    arrived_at_s = request.arrived_at_s
    ticket = Ticket(request, tag, arrived_at_s + targets.ttft_s, arrived_at_s + targets.e2e_s, 0.0, handle)
    ticket.model = request.model
    if predictor is not None:
        ticket.expected_output_tokens = predictor.expected_output_tokens(ticket)
    else:
        most = request.max_output_tokens
        ticket.expected_output_tokens = float(tag.output_tokens if most is None else min(most, tag.output_tokens))
    if not request.stream:
        _unstreamed(ticket)
    ttl_s = class_.limits.ttl_s if class_ is not None else 0.0
    ticket.expires_at_s = arrived_at_s + (ttl_s or TTL_E2E_RATIO * targets.e2e_s)
    return ticket


def loosen(ticket: Ticket, class_: ClassPolicy) -> None:
    """It goes on under this looser class, as its caller accepted; no promise gets tighter by that."""
    old, theirs = ticket.tag, class_.targets
    assert theirs is not None
    ticket.degraded_from = ticket.degraded_from or old.experience_class
    looser = replace(
        theirs,
        ttft_s=max(theirs.ttft_s, old.targets.ttft_s),
        itl_s=max(theirs.itl_s, old.targets.itl_s),
        e2e_s=max(theirs.e2e_s, old.targets.e2e_s),
        e2e_limit_s=max(theirs.e2e_limit_s, old.targets.e2e_limit_s),
    )
    ticket.tag = replace(old, experience_class=class_.name, rank=class_.rank, targets=looser, tiers=class_.tiers)
    arrived_at_s = ticket.request.arrived_at_s
    ticket.ttft_deadline_at_s = arrived_at_s + looser.ttft_s
    ticket.e2e_deadline_at_s = arrived_at_s + looser.e2e_s
    ticket.latest_start_at_s, ticket.seen_version = -1.0, -1
    ticket.expires_at_s = arrived_at_s + (class_.limits.ttl_s or TTL_E2E_RATIO * looser.e2e_s)
    if not ticket.request.stream:
        _unstreamed(ticket)


def _unstreamed(ticket: Ticket) -> None:
    targets, tokens = ticket.tag.targets, ticket.expected_output_tokens
    e2e_s, ttft_s, itl_s = targets.e2e_s, targets.ttft_s, targets.itl_s
    shared_s = TTFT_SHARE_OF_E2E * e2e_s
    if shared_s > ttft_s:
        ttft_s = shared_s
    ticket.ttft_deadline_at_s = ticket.request.arrived_at_s + ttft_s
    left_s = (e2e_s - ttft_s) / (tokens if tokens > 1.0 else 1.0)
    ticket.itl_target_s = left_s if left_s > itl_s else itl_s
