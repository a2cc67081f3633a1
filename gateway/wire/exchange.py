"""One request from its last byte read to its answer's last byte sent: the walk, as one straight function.

It runs as a coroutine that is driven by hand, from the callbacks of sockets and of the core: a task that waits once would cost as much as
all the decisions together. Receiving the request is protocol.py's business, one attempt at an instance relay.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Generator
from itertools import count
from os import urandom
from time import monotonic
from types import coroutine
from typing import TYPE_CHECKING, Any

from gateway.core.flow import (
    Endpoint,
    FailReason,
    Outcome,
    Placement,
    Refuse,
    Request,
    Result,
    Tag,
    Ticket,
)
from gateway.measure.stopwatch import Stopwatch
from gateway.openai import body as bodies
from gateway.openai import errors
from gateway.openai.body import Body
from gateway.openai.errors import ApiError, Kind
from gateway.wire import answers
from gateway.wire.relay import Relay

if TYPE_CHECKING:
    from gateway.classify.explicit import Tenant
    from gateway.openai.framing import Head
    from gateway.quota.quotas import Reserved
    from gateway.wire.front import Front
    from gateway.wire.protocol import ClientConnection

log = logging.getLogger("slo_gateway")

MAX_REQUEST_ID = 128
_ID_PREFIX = urandom(6).hex()
_ids = count(1)


class ClientGone(Exception):
    """Thrown into the walk when nobody waits for its answer any more."""


@coroutine
def _turn() -> Generator[None, None, None]:
    """Wait until something resumes the walk."""
    yield


class Exchange:
    """A request and all that belongs to it. `head`, `raw` and `arrived_at_s` come from the connection it arrived on."""

    __slots__ = (
        "_attempt",
        "_failure",
        "_refusal_of_engine",
        "_request_id",
        "_running",
        "_walk",
        "arrived_at_s",
        "begun",
        "body",
        "client",
        "endpoint",
        "front",
        "head",
        "key_id",
        "outcome",
        "placement",
        "raw",
        "refusal",
        "relay",
        "reserved",
        "ticket",
        "traceparent",
    )

    def __init__(self, front: Front, client: ClientConnection, head: Head, endpoint: Endpoint, raw: bytes, arrived_at_s: float) -> None:
        self.front = front
        self.client = client
        self.head = head
        self.endpoint = endpoint
        self.raw = raw
        self.arrived_at_s = arrived_at_s
        self.body: Body = None  # type: ignore[assignment]  # read first of all
        self.ticket: Ticket | None = None
        self.placement: Placement | None = None
        self.refusal: Refuse | None = None
        self.relay: Relay | None = None
        self.outcome: Outcome | None = None
        self.begun = False  # a byte of the answer is out
        self.key_id = ""
        self.reserved: Reserved | None = None  # of its key's quotas
        self.traceparent = head.fields.get(b"traceparent", b"")
        self._attempt: Outcome | None = None
        self._failure: tuple[FailReason, ApiError, bool, bool] | None = None
        self._request_id = _sane(head.fields.get(b"x-request-id"))
        self._refusal_of_engine: ApiError | None = None  # it said no to what the caller asked: told once the slot is free
        self._running = False
        self._walk: Coroutine[Any, Any, None] | None = None

    @property
    def request_id(self) -> bytes:
        """The caller's own, if it can be repeated safely, else one of ours."""
        return self._request_id

    # ---- the walk

    def start(self) -> None:
        """Go, as far as it goes without waiting."""
        self._walk = self._serve()
        self._resume()

    async def _serve(self) -> None:
        try:
            await self._answer()
        except ApiError as error:
            self._answer_error(error)
        except ClientGone:
            self._left()
        except Exception:
            log.exception("request %s failed inside the gateway", self._request_id.decode())
            self._broken()

    async def _answer(self) -> None:
        front, fields = self.front, self.head.fields
        tenant = front.keys.tenant_of(fields)
        front.admit(self, tenant)
        body = self.body = bodies.read(self.raw, self.endpoint, front.limits)
        self.raw = b""
        request = self._request(body, tenant)
        tag = front.classifier.tag(body, fields, tenant, request.prompt_tokens)
        ticket = self.ticket = front.live.ticket(request, tag, self)
        if front.quotas is not None:
            self.reserved = front.quotas.reserve(tenant.key_id, ticket)
        front.live.submit(ticket)
        while True:
            while self.placement is None:
                if self.refusal is not None:
                    raise errors.refused(self.refusal)
                await _turn()
            outcome = await self._relayed(self.placement)
            if outcome is not None:
                break
        self.outcome = outcome
        front.live.finished(self.placement, outcome)
        if self._refusal_of_engine is not None:
            self.client.answer_error(self._refusal_of_engine, self)
        else:
            self.client.answered(keep=outcome.fail_reason is None)

    def _request(self, body: Body, tenant: Tenant) -> Request:
        front = self.front
        model = front.models.get(body.model)
        if model is None:
            raise ApiError(Kind.MODEL_NOT_FOUND, param="model")
        name, prompt_tokens = model.name, front.prompt_tokens(tenant.tenant, model.name, body)
        may_degrade = tenant.degrade or self.head.fields.get(b"x-slo-degrade") == b"allow"
        # In the order of its fields: names would cost a microsecond.
        return Request(
            self._request_id.decode(), self.endpoint, name, tenant.tenant, body.stream, prompt_tokens, body.max_output_tokens,
            len(body.raw), self.arrived_at_s, body.n, body.app, body.prefix_hashes, model.fallbacks, may_degrade,
        )  # fmt: skip

    async def _relayed(self, placement: Placement) -> Outcome | None:
        """One attempt. None when it failed before anything was sent and another one may follow."""
        front = self.front
        ticket = placement.ticket
        self._attempt, self._failure = None, None
        upstream = front.upstreams.by_id.get(placement.instance_id)
        if upstream is None:  # left at a reload, between its choice and this moment
            self._failure = (FailReason.CONNECT, errors.failed(FailReason.CONNECT), True, False)
        else:
            cell = front.cell(ticket, placement.pool)
            self.relay = Relay(self, placement, upstream, Stopwatch(cell, ticket.tag.targets.itl_s, ticket.request.n))
            self.relay.start()
        while self._attempt is None and self._failure is None:
            await _turn()
        self.relay = None
        if self._failure is None:
            return self._attempt
        reason, error, may_retry, begun = self._failure
        if self._attempt is not None:  # it failed, and what became of it is known
            if not begun:
                self._refusal_of_engine = error
            return self._attempt
        self.placement = None
        front.attempt_failed(placement, reason)
        front.live.failed(placement, reason, may_retry)
        if not may_retry or (self.placement is None and self.refusal is not None):
            self.refusal = None
            self.outcome = self._failed_outcome(reason, error)
            front.live.observe(ticket, self.outcome)
            raise error
        return None

    # ---- what others tell it

    def started(self, placement: Placement) -> None:
        """The core has a place for it."""
        self.placement = placement
        self._resume()

    def refused(self, refuse: Refuse) -> None:
        """The core says no."""
        self.refusal = refuse
        self._resume()

    def degraded(self, tag: Tag) -> None:
        """It goes on under a looser class, as its caller accepted: the ticket says so."""

    def cancelled(self, reason: FailReason) -> None:
        """The core wants its placement ended."""
        if self.relay is not None:
            self.relay.cancel(reason)

    def first_token(self, placement: Placement, now_s: float) -> None:
        """The relay has seen the first content."""
        self.front.live.first_token(placement, now_s)

    def attempt_completed(self, outcome: Outcome) -> None:
        """The relay is done."""
        self._attempt = outcome
        self._resume()

    def attempt_failed(
        self, reason: FailReason, error: ApiError, *, may_retry: bool, outcome: Outcome | None = None, begun: bool = False
    ) -> None:
        """The relay could not do it."""
        self._attempt = outcome
        self._failure = (reason, error, may_retry, begun)
        self._resume()

    def gone(self) -> None:
        """The client has left, at whatever stage."""
        if self._walk is not None and not self._running:
            self._resume(ClientGone())

    def _resume(self, thrown: Exception | None = None) -> None:
        walk = self._walk
        if walk is None or self._running:
            return  # the walk itself has caused this, and looks for it before it waits
        self._running = True
        try:
            if thrown is None:
                walk.send(None)
            else:
                walk.throw(thrown)
        except StopIteration:
            self._walk = None
        finally:
            self._running = False

    def over(self) -> None:
        """Called by the front when all is done: what is kept of it elsewhere (the trail of its ticket) must not keep its body."""
        if self.ticket is not None:
            self.ticket.handle = None
        self._failure = self._attempt = None

    # ---- what the relay asks of it

    def write(self, data: bytes) -> None:
        """Bytes for the client."""
        self.begun = True
        self.client.transport.write(data)

    def engine_fields(self) -> bytes:
        """Header fields of the request that differ from request to request."""
        fields = b"x-request-id: %b\r\n" % self._request_id
        if self.traceparent:
            fields += b"traceparent: %b\r\n" % self.front.onward(self.traceparent, self._request_id.decode())
        if self.endpoint is Endpoint.MESSAGES:
            for name in (b"anthropic-version", b"anthropic-beta"):
                value = self.head.fields.get(name)
                if value is not None:
                    fields += b"%b: %b\r\n" % (name, value)
        return fields

    def answer_head(self, placement: Placement, status: int, content_type: bytes, length: int) -> bytes:
        """The head of the answer; `length` -1 = in chunks."""
        ticket = placement.ticket
        head = self.head
        if length >= 0:
            framing = b"content-length: %d\r\n" % length
        elif head.http_1_0:
            framing = b""
        else:
            framing = b"transfer-encoding: chunked\r\n"
        if not head.keep_alive:
            framing += b"connection: close\r\n"
        if self.reserved is not None and self.front.quotas is not None:
            framing += self.front.quotas.fields(self.reserved)
        return b"%b%bcontent-type: %b\r\n%bserver-timing: queue;dur=%.1f\r\nx-request-id: %b\r\n%b\r\n" % (
            answers.status_line(status),
            self.client.default_fields(),
            content_type,
            answers.placed_fields(ticket.tag, placement.pool, ticket.degraded_from),
            (placement.started_at_s - ticket.request.arrived_at_s) * 1000.0,
            self._request_id,
            framing,
        )

    def coalesces(self) -> bool:
        """May this stream be read once a tick?"""
        ticket = self.ticket
        return ticket is not None and ticket.tag.experience_class in self.front.coalesced_classes

    def could_move(self, placement: Placement) -> bool:
        """Is there another instance to try?"""
        return self.front.live.could_move(placement)

    def with_tier(self, body: bytes) -> bytes:
        """A whole answer with the service tier that was served, when the caller named one."""
        if self.body.service_tier is None or self.ticket is None:
            return body
        return bodies.with_service_tier(body, self.front.classifier.served_service_tier(self.ticket.tag))

    # ---- ends

    def _answer_error(self, error: ApiError) -> None:
        """Before anything was sent: a proper error. Counted by whoever raised it, or here when the core refused."""
        ticket = self.ticket
        if self.refusal is not None and ticket is not None:
            self.outcome = Outcome(
                Result.REFUSED,
                refuse_reason=self.refusal.reason,
                status=error.status,
                queue_s=monotonic() - self.arrived_at_s,
                prompt_tokens=0,
            )
            self.front.live.observe(ticket, self.outcome)
        self.client.answer_error(error, self)

    def _failed_outcome(self, reason: FailReason, error: ApiError) -> Outcome:
        return Outcome(
            Result.FAILED, fail_reason=reason, status=error.status, queue_s=0.0, e2e_s=monotonic() - self.arrived_at_s, prompt_tokens=0
        )

    def _left(self) -> None:
        ticket, placement, relay = self.ticket, self.placement, self.relay
        self.relay = None
        if ticket is None:
            return
        if placement is not None and relay is not None:
            outcome = relay.gone_outcome()
            relay.abandon()
        else:
            outcome = Outcome(Result.CLIENT_GONE, status=499, queue_s=monotonic() - self.arrived_at_s)
        self.outcome = outcome
        self.front.live.gone(ticket, placement, outcome)

    def _broken(self) -> None:
        """Our own fault: whatever was held is given back, and the caller is told as well as it still can be."""
        if self.relay is not None:
            self.relay.abandon()
            self.relay = None
        error = errors.failed(FailReason.INTERNAL)
        if self.ticket is not None and self.outcome is None:
            self.front.live.gone(self.ticket, self.placement, self._failed_outcome(FailReason.INTERNAL, error))
        if self.begun:
            self.client.cut()
        else:
            self.client.answer_error(error, self)


def _sane(sent: bytes | None) -> bytes:
    if sent is not None and 0 < len(sent) <= MAX_REQUEST_ID and sent.isascii():
        kept = sent.translate(None, b"-_.:/=+@")
        if not kept or kept.isalnum():
            return sent
    return f"{_ID_PREFIX}{next(_ids):08x}".encode()
