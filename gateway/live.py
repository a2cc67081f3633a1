"""The decision core on the real clock: events go in as they happen, what it wants done is done at once.

Knows nothing of sockets: whoever waits for a decision is the ticket's `handle` (wire/exchange.Exchange, or a test's own), which is told
`started`, `refused`, `degraded` or `cancelled`. Outcomes go on to observers (measure, telemetry), one after the other.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from gateway.core.decide import Core
from gateway.core.flow import (
    Action,
    CoreSettings,
    Degrade,
    FailReason,
    InstanceSpec,
    Lease,
    Outcome,
    Placement,
    Refuse,
    Request,
    Start,
    Tag,
    Ticket,
)

log = logging.getLogger("slo_gateway")


class Waiting(Protocol):
    """Who waits for a decision."""

    def started(self, placement: Placement) -> None: ...
    def refused(self, refuse: Refuse) -> None: ...
    def degraded(self, tag: Tag) -> None: ...
    def cancelled(self, reason: FailReason) -> None: ...


Observer = Callable[[Placement | Ticket, Outcome, float], object]


class Live:
    """Drives a core. `clock` tells seconds, never backwards; `wake` is asked to call `tick` at a time the core has named,
    `borrow` to see to a lease that is wanted."""

    def __init__(self, core: Core, clock: Callable[[], float], observers: Iterable[Observer] = ()) -> None:
        self.core = core
        self.clock = clock
        self.observers: list[Observer] = list(observers)
        self.wake: Callable[[float], None] = lambda at_s: None
        self.borrow: Callable[[], None] = lambda: None
        self._todo: deque[Action] = deque()
        self._doing = False
        self._wake_at_s = 0.0

    # ---- events

    def ticket(self, request: Request, tag: Tag, waiting: Waiting) -> Ticket:
        """A place in line for a request, not taken yet."""
        return self.core.ticket(request, tag, waiting)

    def submit(self, ticket: Ticket) -> None:
        """It stands in line now; its handle may be told before this returns."""
        self._do(self.core.submit(ticket, self.clock()))

    def first_token(self, placement: Placement, now_s: float) -> None:
        """The engine has answered."""
        self._do(self.core.first_token(placement, now_s))

    def finished(self, placement: Placement, outcome: Outcome) -> None:
        """The answer is complete, or as complete as it gets: the slot is free."""
        now_s = self.clock()
        self.observe(placement, outcome)
        self._do(self.core.finished(placement, outcome, now_s))

    def failed(self, placement: Placement, reason: FailReason, retry: bool) -> None:
        """An attempt came to nothing before any content. With `retry` its handle is told of another one, or of a refusal."""
        self._do(self.core.failed(placement, reason, self.clock(), retry))

    def gone(self, ticket: Ticket, placement: Placement | None, outcome: Outcome) -> None:
        """Nobody waits for it any more, at whatever stage it is."""
        now_s = self.clock()
        self.observe(placement if placement is not None else ticket, outcome)
        self._do(self.core.gone(ticket, now_s))

    def instances_changed(self, specs: list[InstanceSpec]) -> None:
        """These are the instances now."""
        self._do(self.core.instances_changed(specs, self.clock()))

    def instance_health(self, instance_id: str, healthy: bool) -> None:
        """An instance is up, or not to be used."""
        self._do(self.core.instance_health(instance_id, healthy, self.clock()))

    def leased(self, leases: list[Lease]) -> None:
        """How many slots of instances are this worker's now."""
        self._do(self.core.leased(leases, self.clock()))

    def settings_changed(self, settings: CoreSettings) -> None:
        """Another configuration."""
        self._do(self.core.settings_changed(settings, self.clock()))

    def tick(self) -> None:
        """Time has passed. Called about once a second, and when the core has asked for it."""
        self._wake_at_s = 0.0
        self._do(self.core.tick(self.clock()))

    def observe(self, subject: Placement | Ticket, outcome: Outcome) -> None:
        """Tell everybody what a request got."""
        now_s = self.clock()
        for observer in self.observers:
            try:
                observer(subject, outcome, now_s)
            except Exception:
                log.exception("an observer of outcomes failed")

    def could_move(self, placement: Placement) -> bool:
        """Is there another instance that could take this one's work now?"""
        ticket = placement.ticket
        return any(i.spec.instance_id != placement.instance_id for i in self.core.fleet.open_instances(ticket))

    # ---- actions

    def _do(self, actions: list[Action]) -> None:
        if actions:
            # What is done may be an event itself (an engine that cannot be reached): those actions wait their turn, or a row of
            # failures would be a tower of calls.
            if self._doing:
                self._todo.extend(actions)
                return
            self._doing = True
            try:
                for action in actions:
                    self._perform(action)
                todo = self._todo
                while todo:
                    self._perform(todo.popleft())
            finally:
                self._doing = False
        if self.core.fleet.short:
            self.core.fleet.short = False
            self.borrow()
        wake_at_s = self.core.next_wake_at_s
        if wake_at_s is not None and (not self._wake_at_s or wake_at_s < self._wake_at_s):
            self._wake_at_s = wake_at_s
            self.wake(wake_at_s)

    def _perform(self, action: Action) -> None:
        try:
            if isinstance(action, Start):
                action.placement.ticket.handle.started(action.placement)
            elif isinstance(action, Refuse):
                action.ticket.handle.refused(action)
            elif isinstance(action, Degrade):
                action.ticket.handle.degraded(action.tag)
            else:
                action.placement.ticket.handle.cancelled(action.reason)
        except Exception:
            log.exception("an action of the core could not be done")
