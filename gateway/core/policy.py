"""What a scheduling policy is: one required function and up to three optional ones, and what it may ask of the fleet.

A policy is one file in gateway/policies/ offering `policy(chance: Chance) -> Policy`; its file name is its name in the configuration
and in `slo-gateway simulate --policy`. It holds no lock, no clock and no socket, and keeps its state inside `policy()`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from gateway.core.flow import Considered, Outcome, Placement, Prediction, Ticket

if TYPE_CHECKING:
    from gateway.core.instance import Instance


class Chance(Protocol):
    """Where a policy's chance comes from: seeded, and handed in (a `random.Random`)."""

    def random(self) -> float:
        """0 <= x < 1."""
        ...

    def sample(self, population: Sequence[Any], k: int) -> list[Any]:
        """`k` different ones."""
        ...

    def choice(self, seq: Sequence[Any]) -> Any:
        """One of them."""
        ...


class Verdict(Enum):
    """What `place` may answer besides an instance."""

    WAIT = "wait"  # keep the ticket where it is
    LATE = "late"  # cannot be saved any more: behind all that can


WAIT, LATE = Verdict.WAIT, Verdict.LATE


class Fleet(Protocol):
    """What a policy may ask. Implemented by core/fleet.Fleet."""

    def open_instances(self, ticket: Ticket) -> Sequence[Instance]:
        """Instances that serve the ticket's model (fallbacks after it), are healthy, not draining, not tried, and have a free slot."""
        ...

    def instances(self, ticket: Ticket) -> Sequence[Instance]:
        """The same without asking for a free slot."""
        ...

    def predict(self, ticket: Ticket, instance: Instance, now_s: float) -> Prediction:
        """What `instance` would take for `ticket` if started now, with what runs there."""
        ...

    def consider(self, ticket: Ticket, now_s: float) -> Sequence[Considered]:
        """`open_instances` with what each would take: `predict` for all of them at once, and cheaper."""
        ...

    def savable(self, ticket: Ticket, now_s: float) -> bool:
        """Could some instance, were it idle, still keep every promise? Cheap after the first time it is asked for a ticket."""
        ...


@dataclass(slots=True)
class Policy:
    """`order` ranks tickets inside one class queue (static per ticket), `urgency` ranks the heads of the queues (least first)."""

    place: Callable[[Ticket, Fleet, float], Instance | Verdict]
    order: Callable[[Ticket], float] = lambda ticket: ticket.ttft_deadline_at_s
    urgency: Callable[[Ticket, float], float] = lambda ticket, now_s: ticket.slack_s(now_s)
    learn: Callable[[Placement, Outcome], None] | None = None
    # Policies that bind at arrival (what most routers do) never wait: every request goes to an instance at once, whatever its limit.
    early_binding: bool = False
    # A baseline as the field knows it: no rank ceilings, no turns between tenants; its own order decides alone.
    plain: bool = False


class Predictor(Protocol):
    """What the core asks of predict/; joined in serve.py and simulate/run.py. The core works without one (`None`): then only limits,
    tiers and deadlines decide."""

    def expected_output_tokens(self, ticket: Ticket) -> float: ...

    def consider(self, ticket: Ticket, instances: Sequence[Instance], now_s: float) -> list[Considered]:
        """What each of them would take for the ticket if it started there now, with what runs there; in their order."""
        ...

    def predict_idle(self, ticket: Ticket, instance: Instance) -> Prediction:
        """What it would take if nothing ran there: decides whether the ticket is savable at all."""
        ...

    def started(self, placement: Placement, instance: Instance, now_s: float) -> None: ...

    def first_token(self, placement: Placement, instance: Instance, now_s: float) -> None: ...

    def finished(self, placement: Placement, instance: Instance, outcome: Outcome, now_s: float) -> None: ...

    def passing(self, instance: Instance, now_s: float) -> None:
        """A second has passed and something runs there: its tokens may say more than the next event will."""
        ...
