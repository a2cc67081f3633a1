"""When an attempt is overdue, and of what: first token, next token, whole answer, and the head that proxies in between wait for.

Only instants and durations; who looks at them, and what follows, is relay.py's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.core.flow import Placement

if TYPE_CHECKING:
    from gateway.config.settings import Timeouts


class Deadlines:
    """Of one attempt. Instants are on the core's clock."""

    __slots__ = ("first_token_at_s", "head_at_s", "request_at_s", "stall_s")

    def __init__(self, placement: Placement, timeouts: Timeouts) -> None:
        targets = placement.ticket.tag.targets
        arrived_at_s = placement.ticket.request.arrived_at_s
        self.first_token_at_s = placement.started_at_s + max(timeouts.first_token_factor * targets.ttft_s, timeouts.first_token_min_s)
        self.request_at_s = max(arrived_at_s + timeouts.request_factor * targets.e2e_s, self.first_token_at_s)
        self.stall_s = max(timeouts.stall_factor * targets.itl_s, timeouts.stall_min_s)
        self.head_at_s = arrived_at_s + timeouts.head_hold_s
