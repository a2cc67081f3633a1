"""One request from its last byte read to its answer's last byte sent: the walk.

Each step is called when what it waited for is there: `start` (the request is whole), `started` or `refused` (the core has decided),
`attempt_completed` or `attempt_failed` (the relay is done), `gone` (the client is). A task that waits once would cost as much as all the
decisions together. Receiving the request is protocol.py's business, one attempt at an instance relay.py's.
"""

from __future__ import annotations

import logging
from itertools import count
from os import urandom
from time import monotonic
from typing import TYPE_CHECKING, Final

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
    from collections.abc import Iterator

    from gateway.classify.explicit import Tenant
    from gateway.openai.framing import Head
    from gateway.quota.quotas import Reserved
    from gateway.wire.front import Front
    from gateway.wire.protocol import ClientConnection

log = logging.getLogger("slo_gateway")

MAX_REQUEST_ID: Final = 128
_LAST_DIGITS: Final = [b"%02x" % number for number in range(256)]


def _request_ids() -> Iterator[bytes]:
    """20 hexadecimal digits: of the process, and a count."""
    process = urandom(6)
    for number in count():
        most = process.hex().encode() + b"%06x" % number
        for last in _LAST_DIGITS:
            yield most + last


_ids: Final = _request_ids()


class Exchange:
    """A request and all that belongs to it. `head`, `raw` and `arrived_at_s` come from the connection it arrived on."""

    __slots__ = (
        "_failing", "_over", "_request_id", "arrived_at_s", "begun", "body", "client", "endpoint", "front", "head", "key_id", "outcome",
        "placement", "refusal", "relay", "reserved", "ticket", "traceparent",
    )  # fmt: skip

    def __init__(self, front: Front, client: ClientConnection, head: Head, endpoint: Endpoint, arrived_at_s: float) -> None:
        fields = head.fields
        self.front = front
        self.client = client
        self.head = head
        self.endpoint = endpoint
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
        self.traceparent = fields.get(b"traceparent", b"")
        self._request_id = _sane(fields.get(b"x-request-id"))
        self._failing = False  # a failed attempt is being told to the core: its answer may come before that call returns
        self._over = False

    @property
    def request_id(self) -> bytes:
        """The caller's own, if it can be repeated safely, else one of ours."""
        return self._request_id

    # ---- the walk

    def start(self, raw: bytes) -> None:
        """Its body is whole: who asks, for what, and for which promise. Then the core is asked for a place."""
        front, fields = self.front, self.head.fields
        try:
            tenant = front.keys.tenant_of(fields)
            if front.closed or tenant.key_id:
                front.admit(self, tenant)
            body = self.body = bodies.read(raw, self.endpoint, front.limits)
            request = self._request(body, tenant)
            tag = front.classifier.tag(body, fields, tenant, request.prompt_tokens)
            ticket = self.ticket = front.live.ticket(request, tag, self)
            if front.quotas is not None:
                self.reserved = front.quotas.reserve(tenant.key_id, ticket)
            front.live.submit(ticket)
        except ApiError as error:
            self.client.answer_error(error, self)
        except Exception:
            self._broken()

    def _request(self, body: Body, tenant: Tenant) -> Request:
        front = self.front
        model = front.models.get(body.model)
        if model is None:
            raise ApiError(Kind.MODEL_NOT_FOUND, param="model")
        name, prompt_tokens = model.name, front.prompts.tokens(tenant.tenant, model.name, body.text_bytes)
        may_degrade = tenant.degrade or self.head.fields.get(b"x-slo-degrade") == b"allow"
        # In the order of its fields: names would cost a microsecond.
        return Request(
            self._request_id.decode(), self.endpoint, name, tenant.tenant, body.stream, prompt_tokens, body.max_output_tokens,
            len(body.raw), self.arrived_at_s, body.n, body.app, body.prefix_hashes, model.fallbacks, may_degrade,
        )  # fmt: skip

    def started(self, placement: Placement) -> None:
        """The core has a place for it."""
        self.placement = placement
        front = self.front
        try:
            upstream = front.upstreams.by_id.get(placement.instance_id)
            if upstream is None:  # left at a reload, between its choice and this moment
                self._lost(FailReason.CONNECT, errors.failed(FailReason.CONNECT), may_retry=True)
                return
            ticket = placement.ticket
            watch = Stopwatch(front.cell(ticket, placement.pool), ticket.tag.targets.itl_s, ticket.request.n)
            relay = self.relay = Relay(self, placement, upstream, watch)
            relay.start()
        except Exception:
            self._broken()

    def refused(self, refuse: Refuse) -> None:
        """The core says no."""
        self.refusal = refuse
        if self._failing:
            return  # by an attempt that failed: why that did is the better answer
        try:
            ticket = self.ticket
            error = errors.refused(refuse)
            if ticket is not None:
                self.outcome = Outcome(
                    Result.REFUSED,
                    refuse_reason=refuse.reason,
                    status=error.status,
                    queue_s=monotonic() - self.arrived_at_s,
                    prompt_tokens=0,
                )
                self.front.live.observe(ticket, self.outcome)
            self.client.answer_error(error, self)
        except Exception:
            self._broken()

    def degraded(self, tag: Tag) -> None:
        """It goes on under a looser class, as its caller accepted: the ticket says so."""

    def cancelled(self, reason: FailReason) -> None:
        """The core wants its placement ended."""
        if self.relay is not None:
            self.relay.cancel(reason)

    def attempt_completed(self, outcome: Outcome, error: ApiError | None = None) -> None:
        """The relay is done. `error`: the engine said no to what the caller asked, which is told once the slot is free."""
        placement = self.placement
        if placement is None or self._over:
            return
        self.relay = None
        self.outcome = outcome
        try:
            if outcome.result is Result.COMPLETED:
                self.front.completed(placement, outcome, self.body.text_bytes)
            self.front.live.finished(placement, outcome)
            if error is not None:
                self.client.answer_error(error, self)
            else:
                self.client.answered(keep=outcome.fail_reason is None)
        except Exception:
            self._broken()

    def attempt_failed(
        self, reason: FailReason, error: ApiError, *, may_retry: bool, outcome: Outcome | None = None, begun: bool = False
    ) -> None:
        """The relay could not do it. With an `outcome` what became of it is known; without, nothing was sent and another try may follow."""
        if outcome is not None:
            self.attempt_completed(outcome, None if begun else error)
            return
        try:
            self._lost(reason, error, may_retry)
        except Exception:
            self._broken()

    def _lost(self, reason: FailReason, error: ApiError, may_retry: bool) -> None:
        placement, front = self.placement, self.front
        self.relay = self.placement = None
        if placement is None or self._over:
            return
        front.attempt_failed(placement, reason)
        self._failing = True
        front.live.failed(placement, reason, may_retry)
        self._failing = False
        if may_retry and self._goes_on():
            return
        self.outcome = self._failed_outcome(reason, error)
        front.live.observe(placement.ticket, self.outcome)
        self.client.answer_error(error, self)

    def _goes_on(self) -> bool:
        """It runs elsewhere, or waits."""
        return self.placement is not None or self.refusal is None

    def gone(self) -> None:
        """The client has left, at whatever stage."""
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

    def over(self) -> None:
        """Called by the front when all is done: what is kept of it elsewhere (the trail of its ticket) must not keep its body."""
        self._over = True
        if self.ticket is not None:
            self.ticket.handle = None

    def _broken(self) -> None:
        """Our own fault: whatever was held is given back, and the caller is told as well as it still can be."""
        log.exception("request %s failed inside the gateway", self._request_id.decode())
        if self._over:
            return
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

    def _failed_outcome(self, reason: FailReason, error: ApiError) -> Outcome:
        return Outcome(
            Result.FAILED, fail_reason=reason, status=error.status, queue_s=0.0, e2e_s=monotonic() - self.arrived_at_s, prompt_tokens=0
        )

    # ---- what the relay asks of it

    def write(self, data: bytes) -> None:
        """Bytes for the client."""
        self.begun = True
        self.client.transport.write(data)

    def engine_fields(self) -> bytes:
        """Header fields of the request that differ from request to request."""
        fields = b"x-request-id: " + self._request_id + b"\r\n"
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
            framing = b"content-length: " + str(length).encode() + b"\r\n"
        elif head.http_1_0:
            framing = b""
        else:
            framing = b"transfer-encoding: chunked\r\n"
        if not head.keep_alive:
            framing += b"connection: close\r\n"
        if self.reserved is not None and self.front.quotas is not None:
            framing += self.front.quotas.fields(self.reserved)
        # In one join: a format string of as many parts is read anew for every answer.
        return b"".join((
            answers.status_line(status),
            self.client.default_fields(),
            b"content-type: ",
            content_type,
            b"\r\n",
            answers.placed_fields(ticket.tag, placement.pool, ticket.degraded_from),
            b"server-timing: queue;dur=",
            answers.duration(placement.started_at_s - ticket.request.arrived_at_s),
            b"\r\nx-request-id: ",
            self._request_id,
            b"\r\n",
            framing,
            b"\r\n",
        ))  # fmt: skip

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


def _sane(sent: bytes | None) -> bytes:
    if sent is not None and 0 < len(sent) <= MAX_REQUEST_ID and sent.isascii():
        kept = sent.translate(None, b"-_.:/=+@")
        if not kept or kept.isalnum():
            return sent
    return next(_ids)
