"""A client's connection: takes requests apart strictly, within limits and deadlines, and hands each one on.

POST to an inference path becomes an Exchange; everything else goes to the Starlette app, by way of uvicorn, whose protocol this is a
subclass of. Requests on one connection are answered in the order they came, one after the other. Deadlines are looked at by Front.sweep.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.core.flow import Endpoint, FailReason
from gateway.openai.errors import ApiError, Kind
from gateway.openai.framing import ChunkedBody, FramingError, Head, Repeated, find_head, request_head
from gateway.wire import answers
from gateway.wire.exchange import Exchange
from gateway.wire.upstream import PATHS

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from gateway.wire.front import Front

ENDPOINTS: Final[dict[bytes, Endpoint]] = {path: endpoint for endpoint, path in PATHS.items()}
# What may lie behind a request that is being answered: the next ones, sent early. More is not read until they are due.
MAX_BEHIND_BYTES: Final = 64 * 1024
# The control endpoints take no bodies worth the name.
MAX_CONTROL_BODY_BYTES: Final = 64 * 1024

# So many different heads of one connection are remembered, each until the next.
MAX_UNLIKE: Final = 8

_KINDS: Final = {400: Kind.BAD_REQUEST, 414: Kind.URI_TOO_LONG, 431: Kind.HEADERS_TOO_LARGE}
_NOT_HANDED_ON: Final = frozenset((b"connection", b"upgrade", b"content-length", b"expect"))
_LIMITS: Final = {414: "request_line", 431: "header"}


class ClientConnection(HttpToolsProtocol):
    """One connection. States follow one another: between requests, in a head, in a body, being answered."""

    def __init__(
        self,
        front: Front,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.front = front
        self._data = b""  # bytes of a head that is not complete, or what lies behind a request being answered
        self._head: Head | None = None  # the request whose body is being read
        self._endpoint: Endpoint | None = None
        self._parts: list[bytes] = []
        self._missing = 0  # bytes of the body still to come
        self._chunks: ChunkedBody | None = None
        self._exchange: Exchange | None = None
        self._control = False  # the app is answering
        self._keep_control = True
        self._pumping = False
        self._known: Repeated | None = None  # a head that was sent before, and the endpoint it is for
        self._unlike = 0  # heads in a row that were not that one
        self._too_much_behind = False
        self._leaving = False  # the server shuts down: close after this answer
        self.counted = False
        self.peer = ""
        self.deadline_at_s = 0.0  # for what is being received; 0 = nothing is due
        self.deadline_status = 0  # 408 in a head or body, 0 when merely idle
        self.paused_at_s = 0.0  # since when the client has not been reading; 0 = it reads

    # ---- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        front = self.front
        self.peer = self.client[0] if self.client else ""
        transport.set_write_buffer_limits(high=front.limits.write_buffer_soft_bytes)
        self._idle()
        if not front.entered(self):
            self._answer_early(ApiError(Kind.OVERLOADED, "Too many connections.", status=503, type="server_error"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._exchange is not None:
            self._exchange.gone()
        self.front.left(self)
        self._exchange = None
        self._parts.clear()
        self._data = b""
        super().connection_lost(exc)

    @property
    def busy(self) -> bool:
        """Is a request being received or answered?"""
        return self._exchange is not None or self._control or self._head is not None or bool(self._data)

    @property
    def exchange(self) -> Exchange | None:
        """The request being answered."""
        return self._exchange

    def shutdown(self) -> None:
        """The server is going away. A request that is being answered is; uvicorn would cut it, knowing nothing of it."""
        self._leaving = True
        if self._exchange is not None or self._head is not None:
            return
        super().shutdown()

    # ---- receiving

    def data_received(self, data: bytes) -> None:
        if self._exchange is not None or self._control:
            self._lay_behind(data)
            return
        if self._head is None:
            if self._known is not None and not self._data and self._again(data):
                return
            if self._data:
                data = self._data + data
                self._data = b""
            elif self.deadline_status == 0:
                self._due(408, self.front.timeouts.header_s)
        self._receive(data)
        if self._data and not self.busy_answering:
            self._pump()

    def _again(self, data: bytes) -> bool:
        """Does a request with a head as before begin here? Then it is taken without a second look at what was found right."""
        known = self._known
        assert known is not None
        end = known.end_in(data)
        if not end:
            return False
        front, head, missing = self.front, known.head, known.length - len(data) + end
        if missing < 0 or known.length > front.limits.body_bytes:
            return False
        endpoint = self._endpoint
        assert endpoint is not None
        if missing:
            self._head, self._missing = head, missing
            self._parts.append(data[end:])
            timeouts = front.timeouts
            self._due(408, timeouts.body_base_s + timeouts.body_per_mib_s * known.length / 1048576)
            return True
        self.deadline_at_s, self.deadline_status = 0.0, 0
        exchange = self._exchange = Exchange(front, self, head, endpoint, monotonic())
        exchange.start(data[end:])
        return True

    @property
    def busy_answering(self) -> bool:
        """Is a request being answered?"""
        return self._exchange is not None or self._control

    def _lay_behind(self, data: bytes) -> None:
        if len(self._data) + len(data) > MAX_BEHIND_BYTES:
            # Nothing is read any more, or a flood would hide that the client has left: what it sent is not answered.
            self._too_much_behind = True
            self._data = b""
        if not self._too_much_behind:
            self._data += data

    def _receive(self, data: bytes) -> None:
        """As far as the next complete request."""
        try:
            if self._head is None:
                limits = self.front.limits
                while data[:2] == b"\r\n":  # some clients end a body with an empty line too many
                    data = data[2:]
                if not data:
                    return
                end = find_head(data, limits.header_bytes)
                if not end:
                    self._data = data
                    return
                head = request_head(data, end, max_fields=limits.header_count, max_line_bytes=limits.request_line_bytes)
                if not self._take_head(head):
                    return
                self._remember(data, end, head)
                data = data[end:]
            self._take_body(data)
        except FramingError as error:
            kind = _KINDS[error.status]
            if error.status in _LIMITS:
                self.front.hit(_LIMITS[error.status])
            self._answer_early(ApiError(kind, f"The request is not valid HTTP/1.1: {error.why}." if kind is Kind.BAD_REQUEST else ""))

    def _take_head(self, head: Head) -> bool:
        """False when the request ends here, with an error."""
        self._head = head
        path = head.target.partition(b"?")[0]
        endpoint = self._endpoint = ENDPOINTS.get(path) if head.method == b"POST" else None
        limits = self.front.limits
        if head.method == b"CONNECT" or not head.target.startswith(b"/"):
            self._answer_early(ApiError(Kind.NOT_FOUND if head.method != b"CONNECT" else Kind.METHOD_NOT_ALLOWED))
            return False
        longest = limits.body_bytes if endpoint is not None else MAX_CONTROL_BODY_BYTES
        if head.length > longest:
            self.front.hit("body")
            self._answer_early(ApiError(Kind.BODY_TOO_LARGE), endpoint)
            return False
        if head.length and head.fields.get(b"content-encoding", b"identity").lower() != b"identity":
            self._answer_early(ApiError(Kind.ENCODING), endpoint)
            return False
        if endpoint is None and head.length < 0:
            self._answer_early(ApiError(Kind.BAD_REQUEST, "This path takes no body in chunks.", status=411))
            return False
        if head.length < 0:
            self._chunks = ChunkedBody()
            self._missing = longest
        else:
            self._missing = head.length
        timeouts = self.front.timeouts
        length = head.length if head.length >= 0 else longest
        if length:
            self._due(408, timeouts.body_base_s + timeouts.body_per_mib_s * length / 1048576)
        if head.fields.get(b"expect") is not None:
            if head.fields[b"expect"].lower() != b"100-continue":
                self._answer_early(ApiError(Kind.BAD_REQUEST, "The field expect can only be 100-continue.", status=417), endpoint)
                return False
            if endpoint is not None:
                try:
                    self.front.keys.tenant_of(head.fields)
                except ApiError as error:
                    self._answer_early(error, endpoint)
                    return False
            if not head.http_1_0 and head.length:
                self.transport.write(answers.CONTINUE)
        return True

    def _remember(self, data: bytes, end: int, head: Head) -> None:
        """For `_again`. Callers whose every head is another (an id in each) are soon given up."""
        known = None
        if self._unlike < MAX_UNLIKE and self._endpoint is not None and b"expect" not in head.fields:
            self._unlike += 1
            known = Repeated.of(data, end, head)
        self._known = known

    def _take_body(self, data: bytes) -> None:
        chunks = self._chunks
        if chunks is not None:
            if not data:
                return
            content = chunks.feed(data)
            if content:
                self._missing -= len(content)
                if self._missing < 0:
                    self.front.hit("body")
                    self._answer_early(ApiError(Kind.BODY_TOO_LARGE), self._endpoint)
                    return
                self._parts.append(content)
            if chunks.done:
                self._data = chunks.left
                self._complete()
        elif len(data) > self._missing:
            if self._missing:
                self._parts.append(data[: self._missing])
            self._data = data[self._missing :]
            self._complete()
        else:
            self._missing -= len(data)
            if data:
                self._parts.append(data)
            if not self._missing:
                self._complete()

    def _complete(self) -> None:
        """A whole request is here."""
        head, endpoint, parts = self._head, self._endpoint, self._parts
        assert head is not None
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._head, self._chunks, self._parts = None, None, []
        self.deadline_at_s, self.deadline_status = 0.0, 0
        if endpoint is None:
            self._hand_on(head, body)
            return
        exchange = self._exchange = Exchange(self.front, self, head, endpoint, monotonic())
        exchange.start(body)

    def _hand_on(self, head: Head, body: bytes) -> None:
        """To the app, by uvicorn: what it gets is exactly one well-formed request."""
        self._control = True
        self._keep_control = head.keep_alive
        fields = b"".join(b"%b: %b\r\n" % field for field in head.fields.items() if field[0] not in _NOT_HANDED_ON)
        if body or head.method == b"POST":
            fields += b"content-length: %d\r\n" % len(body)
        if not head.keep_alive:
            fields += b"connection: close\r\n"
        version = b"1.0" if head.http_1_0 else b"1.1"
        super().data_received(b"%b %b HTTP/%b\r\n%b\r\n%b" % (head.method, head.target, version, fields, body))

    def on_response_complete(self) -> None:
        """The app has answered."""
        self.server_state.total_requests += 1
        self._control = False
        self.flow.resume_reading()
        self._next(self._keep_control)

    # ---- answering

    def answered(self, keep: bool) -> None:
        """The exchange is over and its answer is out. `keep`: the connection may carry another request."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        self.front.done(exchange)
        self._next(keep and exchange.head.keep_alive)

    def _next(self, keep: bool) -> None:
        if self.transport.is_closing():
            return
        if not keep or self._leaving or self._too_much_behind:
            self.transport.close()
            return
        self._idle()
        if self._data:
            self._pump()

    def _pump(self) -> None:
        """Take what lies behind, one request after the other; a loop, since each may be answered before this returns."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._data and not self.busy_answering and self._head is None and not self.transport.is_closing():
                data, self._data = self._data, b""
                self._due(408, self.front.timeouts.header_s)
                self._receive(data)
                if self._data and len(self._data) >= len(data):
                    break  # an incomplete head: more has to come
        finally:
            self._pumping = False

    def answer_error(self, error: ApiError, exchange: Exchange) -> None:
        """An error instead of an answer; the connection lives on."""
        keep = exchange.head.keep_alive
        ticket = exchange.ticket
        if not self.transport.is_closing():
            self.transport.write(
                answers.error_answer(
                    error, exchange.endpoint, self.default_fields(), exchange.request_id, ticket.tag if ticket else None, not keep
                )
            )
        self.front.count_error(error)
        self.answered(keep)

    def _answer_early(self, error: ApiError, endpoint: Endpoint | None = None) -> None:
        """An error before the request was complete: what follows on this connection cannot be trusted to be a request."""
        self._head, self._chunks, self._data = None, None, b""
        self._parts.clear()
        self._too_much_behind = True
        self.deadline_at_s = 0.0
        self.front.count_error(error)
        transport = self.transport
        if not transport.is_closing():
            transport.write(answers.error_answer(error, endpoint, self.default_fields(), b"", None, True))
            transport.close()

    def cut(self) -> None:
        """End the connection now: its answer cannot be completed."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self.front.done(exchange)
        self.transport.abort()

    def default_fields(self) -> bytes:
        """Date and the like, as uvicorn keeps them."""
        return self.front.default_fields(self.server_state.default_headers)

    # ---- time and flow

    def _due(self, status: int, in_s: float) -> None:
        self.deadline_at_s, self.deadline_status = monotonic() + in_s, status

    def _idle(self) -> None:
        self.deadline_at_s, self.deadline_status = monotonic() + self.front.timeouts.keep_alive_s, 0

    def overdue(self, now_s: float) -> None:
        """Called by the sweep for every connection, several times a second."""
        exchange = self._exchange
        if exchange is not None:
            if self.paused_at_s and (
                now_s - self.paused_at_s > self.front.timeouts.slow_reader_s
                or self.transport.get_write_buffer_size() > self.front.limits.write_buffer_hard_bytes
            ):
                self.front.hit("slow_reader")
                if exchange.relay is not None:
                    exchange.relay.cancel(FailReason.SLOW_READER)
                self.cut()
            elif exchange.relay is not None:
                exchange.relay.due(now_s)
        elif self.deadline_at_s and now_s > self.deadline_at_s:
            if self.deadline_status:
                self.front.hit("request_timeout")
                self._answer_early(ApiError(Kind.REQUEST_TIMEOUT), self._endpoint)
            else:
                self.transport.close()

    def pause_writing(self) -> None:
        self.paused_at_s = monotonic()
        exchange = self._exchange
        if exchange is not None:
            if exchange.relay is not None:
                exchange.relay.pause()
        else:
            super().pause_writing()

    def resume_writing(self) -> None:
        self.paused_at_s = 0.0
        exchange = self._exchange
        if exchange is not None and exchange.relay is not None:
            exchange.relay.resume()
        super().resume_writing()
