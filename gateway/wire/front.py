"""What all client connections of a worker share: the configuration in force, the rooms a request walks, and the sweep for deadlines.

A reload replaces its parts one by one between two callbacks; requests in flight keep what they began with.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, Final

from gateway.config.loaded import is_loopback
from gateway.core.flow import FailReason, Outcome, Placement, RefuseReason, Ticket
from gateway.openai.errors import ApiError, Kind, quota
from gateway.wire.coalescer import Coalescer

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.classify.explicit import Classifier, Tenant
    from gateway.config.settings import Limits, Model, Settings, Timeouts
    from gateway.live import Live
    from gateway.measure.attainment import Cell
    from gateway.predict.prompts import PromptRatios
    from gateway.quota.quotas import Quotas
    from gateway.wire.exchange import Exchange
    from gateway.wire.keys import Keys
    from gateway.wire.protocol import ClientConnection
    from gateway.wire.upstream import Upstreams

log = logging.getLogger("slo_gateway")

SWEEP_EVERY_S: Final = 0.1


class Front:
    """One worker's public side. Attributes are set by serve.py, at the start and at each reload."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        live: Live,
        upstreams: Upstreams,
        cell: Callable[[Ticket, str], Cell],
        prompts: PromptRatios,
        max_connections: int,
    ) -> None:
        self.loop = loop
        self.live = live
        self.upstreams = upstreams
        self.cell = cell
        self.prompts = prompts
        self.max_connections = max_connections
        self.connections: set[ClientConnection] = set()
        self.hits: Counter[str] = Counter()  # limits that were reached, by name
        self.errors: Counter[str] = Counter()  # errors answered, by code
        self.draining = False
        self.quotas: Quotas | None = None  # of API keys, when any has one
        self.closed = False  # what the workers share is lost, and the configuration says not to go on without
        self.exchanges = 0  # that are over
        self.onward: Callable[[bytes, str], bytes] = lambda traceparent, request_id: traceparent
        self.on_attempt_failed: Callable[[Placement, FailReason], None] = lambda placement, reason: None
        self.on_recovered: Callable[[str], None] = lambda instance_id: None
        self._failed: set[str] = set()  # instances whose last request got no good answer
        self._per_ip: Counter[str] = Counter()
        self._per_key: Counter[str] = Counter()
        self._default_fields: tuple[object, bytes] = (None, b"")
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._seen_at_s = 0.0
        self.loop_lag_s = 0.0  # the worst of the last sweeps, fading

    limits: Limits
    timeouts: Timeouts
    keys: Keys
    classifier: Classifier
    models: dict[str, Model]  # by name and alias
    coalesced_classes: frozenset[str]
    coalescer: Coalescer

    def configure(self, settings: Settings, keys: Keys, classifier: Classifier) -> None:
        """This configuration is in force from now on."""
        self.limits, self.timeouts = settings.limits, settings.timeouts
        self.keys, self.classifier = keys, classifier
        self.models = {name: model for model in settings.models for name in (*model.aliases, model.name)}
        self.coalesced_classes = frozenset(settings.coalesce.classes) if settings.coalesce.enabled else frozenset()
        self.coalescer = Coalescer(self.loop, settings.coalesce.tick_s)

    # ---- connections

    def entered(self, connection: ClientConnection) -> bool:
        """A new connection; False when there are too many."""
        # What comes from this very machine is a proxy in front of us: it speaks for many.
        if self._per_ip[connection.peer] >= self.limits.connections_per_ip and connection.peer and not is_loopback(connection.peer):
            self.hit("connections_per_ip")
            return False
        if len(self.connections) >= self.max_connections and not self._make_room():
            self.hit("connections")
            return False
        connection.counted = True
        self.connections.add(connection)
        self._per_ip[connection.peer] += 1
        return True

    def _make_room(self) -> bool:
        """Close the connection that has been idle longest."""
        idle = [c for c in self.connections if not c.busy]
        if not idle:
            return False
        min(idle, key=lambda c: c.deadline_at_s).transport.close()
        return True

    def left(self, connection: ClientConnection) -> None:
        """It is closed."""
        if connection.counted:
            connection.counted = False
            self.connections.discard(connection)
            self._per_ip[connection.peer] -= 1
            if not self._per_ip[connection.peer]:
                del self._per_ip[connection.peer]
        exchange = connection.exchange
        if exchange is not None:
            self.done(exchange)

    # ---- requests

    def admit(self, exchange: Exchange, tenant: Tenant) -> None:
        """Before anything is read of a request: is there room for another one of this key at all?"""
        if self.closed:
            raise ApiError(Kind.NO_CAPACITY, "This gateway has lost its shared state.", headers=((b"retry-after", b"1"),))
        key_id = tenant.key_id
        if key_id:
            if self._per_key[key_id] >= self.limits.connections_per_key:
                self.hit("connections_per_key")
                raise quota(RefuseReason.QUOTA, 1.0)
            self._per_key[key_id] += 1
            exchange.key_id = key_id

    def done(self, exchange: Exchange) -> None:
        """A request is over, whatever became of it."""
        self.exchanges += 1
        if exchange.key_id:
            self._per_key[exchange.key_id] -= 1
            exchange.key_id = ""
        if exchange.reserved is not None and self.quotas is not None:
            self.quotas.settle(exchange.reserved, exchange.outcome)
            exchange.reserved = None
        exchange.over()

    def attempt_failed(self, placement: Placement, reason: FailReason) -> None:
        """An instance did not answer: those who judge its health want to know."""
        self._failed.add(placement.instance_id)
        self.on_attempt_failed(placement, reason)

    def completed(self, placement: Placement, outcome: Outcome, text_bytes: int) -> None:
        """An instance has answered a request whose prompt was so many bytes."""
        if placement.instance_id in self._failed:
            self._failed.discard(placement.instance_id)
            self.on_recovered(placement.instance_id)
        if not outcome.tokens_estimated:
            request = placement.ticket.request
            self.prompts.learn(request.tenant, request.model, text_bytes, outcome.prompt_tokens)

    def hit(self, limit: str) -> None:
        """A limit was reached."""
        self.hits[limit] += 1

    def count_error(self, error: ApiError) -> None:
        """An error was answered."""
        self.errors[error.code] += 1

    def default_fields(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Date and the like as bytes; uvicorn makes a new list every second."""
        if self._default_fields[0] is not headers:
            self._default_fields = (headers, b"".join(b"%b: %b\r\n" % field for field in headers if field[0] != b"server"))
        return self._default_fields[1]

    # ---- time

    def start(self) -> None:
        """Begin to look for what is overdue."""
        self._seen_at_s = monotonic()
        self._sweep_timer = self.loop.call_later(SWEEP_EVERY_S, self._sweep)

    def stop(self) -> None:
        """No more."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()

    def _sweep(self) -> None:
        now_s = monotonic()
        self.loop_lag_s = max(now_s - self._seen_at_s - SWEEP_EVERY_S, self.loop_lag_s * 0.9, 0.0)
        self._seen_at_s = now_s
        # What has come by now is read before anybody is called late, which takes two turns of the loop: after a standstill of our own (a
        # process that is not given the processor) it would else be the engines that have stalled, all of them at once.
        self.loop.call_soon(self.loop.call_soon, self._look_for_late, now_s)
        self.upstreams.sweep()
        self._sweep_timer = self.loop.call_later(SWEEP_EVERY_S, self._sweep)

    def _look_for_late(self, now_s: float) -> None:
        for connection in list(self.connections):
            try:
                connection.overdue(now_s)
            except Exception:
                log.exception("a deadline could not be kept")

    def cut_all(self) -> int:
        """The time to drain is over: what still runs is told so and closed. How many that were."""
        cut = 0
        for connection in list(self.connections):
            exchange = connection.exchange
            if exchange is not None:
                cut += 1
                if exchange.relay is not None:
                    exchange.relay.cancel(FailReason.DEADLINE)
                if connection.exchange is exchange:
                    connection.answer_error(ApiError(Kind.DRAINING), exchange)
            connection.transport.close()
        return cut
