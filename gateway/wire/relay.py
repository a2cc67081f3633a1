"""One attempt to have a request answered by one instance: sends it, and passes the answer on, a callback a read.

The answer's head is held back until the first content, so that an engine that fails before it can be replaced by another without the
client noticing. From there on bytes go through as they come; tokens are counted and timed on the way. What to do when an attempt
fails is exchange.py's business, deadlines are told by `due`.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Final

from gateway.core.flow import FailReason, Outcome, Placement, Result
from gateway.measure.stopwatch import Stopwatch, outcome_of
from gateway.openai import errors
from gateway.openai.frame import Frame
from gateway.openai.framing import LAST_CHUNK, AnswerHead, ChunkedBody, FramingError, answer_head, chunk, find_head
from gateway.openai.sse import Reader, Used, usage_of
from gateway.wire.answers import EVENT_STREAM, JSON, WAIT_COMMENT
from gateway.wire.deadlines import Deadlines

if TYPE_CHECKING:
    from gateway.wire.exchange import Exchange
    from gateway.wire.upstream import EngineConnection, Upstream

MAX_HEAD_BYTES = MAX_ERROR_BYTES = 64 * 1024
MAX_HELD_BYTES: Final = 256 * 1024  # what an engine may send before its first content
FIRST_LOOKS: Final = 4  # chunks of a burst that are looked at one by one: a role, an empty delta, a first token
# Whole answers up to this size are looked through before they go on; larger ones (many embeddings) pass as they come.
MAX_WHOLE_BYTES: Final = 1024 * 1024


class Relay:
    """Made for one placement. Ends by telling its exchange once: `completed`, `failed`, or neither after `abandon`."""

    __slots__ = (
        "_body", "_body_left", "_coalesced", "_connection", "_deadlines", "_ended", "_exchange", "_frame", "_fresh", "_head", "_head_data",
        "_held", "_held_bytes", "_measures", "_pass_on", "_plain", "_read_at_s", "_reader", "_spilled", "_started", "_upstream",
        "_watch", "_with_usage", "placement", "upstream_status",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, placement: Placement, upstream: Upstream, watch: Stopwatch) -> None:
        self.placement = placement
        self._exchange = exchange
        self._upstream = upstream
        self._watch = watch
        self._connection: EngineConnection | None = None
        self._reset()
        self._started = self._spilled = False  # the head has gone to the client; a whole answer was too large to look through
        self._measures = False  # the first content has been seen
        self._plain = exchange.head.http_1_0  # no chunks for the client: the end of the connection ends the answer
        self._coalesced = self._ended = self._with_usage = False
        self._fresh = False  # the connection was opened for this request
        self.upstream_status = 0
        self._pass_on = exchange.client.transport.write
        self._deadlines: Deadlines | None = None  # most answers are there before anybody asks

    def _reset(self) -> None:
        self._head: AnswerHead | None = None
        self._body: ChunkedBody | None = None
        self._reader: Reader | None = None
        self._frame: Frame | None = None  # how its tokens look, while all that came before was whole
        self._head_data = b""
        self._held: list[bytes] = []
        self._body_left = self._held_bytes = 0
        self._read_at_s = 0.0

    # ---- sending

    def start(self) -> None:
        """Send the request: at once on an idle connection, else as soon as a new one is open."""
        connection = self._upstream.take(monotonic())
        if connection is not None:
            self._send(connection)
        else:
            self._fresh = True
            self._upstream.open(self._opened)

    def _opened(self, connection: EngineConnection | None) -> None:
        if connection is None:
            self._fail(FailReason.CONNECT)
        elif self._ended:
            connection.give_back(monotonic())
        else:
            self._send(connection)

    def _send(self, connection: EngineConnection) -> None:
        self._connection = connection
        connection.holder = self
        exchange, upstream = self._exchange, self._upstream
        served = upstream.spec.served_model or self.placement.model
        asks_usage = exchange.body.include_usage is None and not upstream.no_stream_options
        self._with_usage = asks_usage and exchange.body.stream
        parts = exchange.body.for_engine(None if served == exchange.body.model else served, asks_usage or None)
        length = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        fields = exchange.engine_fields() + b"content-length: " + str(length).encode() + b"\r\n\r\n"
        if length < 16384:
            connection.transport.write(b"".join([upstream.head(exchange.endpoint), fields, *parts]))
        else:
            connection.transport.writelines([upstream.head(exchange.endpoint), fields, *parts])

    # ---- the engine answers

    def received(self, data: bytes) -> None:
        """Bytes from the engine."""
        now_s = monotonic()
        frame = self._frame
        if frame is not None:  # the steady state of a stream: for every chunk of it
            tokens = frame.tokens_in(data)
            if tokens:
                self._watch.delta(now_s, tokens)
                if frame.end == len(data):
                    self._pass_on(data)
                    if self._coalesced:
                        self._hold_back()
                    return
                self._pass_on(data[: frame.end])
                data = data[frame.end :]
        self._read_at_s = now_s
        try:
            self._received(data)
        except FramingError:
            self._fail(FailReason.MALFORMED)
        self._frame = self._steady()

    def _steady(self) -> Frame | None:
        """How the next token will look, when all that came before is whole."""
        body, reader = self._body, self._reader
        if not self._measures or self._plain or body is None or reader is None or not (body.between and reader.between):
            return None
        return reader.frame

    def _received(self, data: bytes) -> None:
        while self._head is None:
            if self._head_data:
                data = self._head_data + data
            end = find_head(data, MAX_HEAD_BYTES)
            if not end:
                self._head_data = data
                return
            head = answer_head(data, end)
            self._head_data = b""
            data = data[end:]
            if head.length == len(data) and head.status == 200 and not (head.streams or self._started or self._ended):
                self._head, self.upstream_status = head, 200
                self._whole_done(data)  # in one read: how nearly all come
                return
            if head.status >= 200:
                self._begin(head)
            elif not data:
                return  # 100 Continue and the like: the answer follows
        if self._ended:
            return
        body = self._body
        if body is not None:
            if self._reader is not None and not self._measures:
                data = self._begun(body, data)
            content = body.feed(data) if data else b""
            if body.done and body.left:
                raise FramingError(502, "bytes after the answer")
            self._content(content, done=body.done)
        elif self._head.length == -2:
            self._content(data, done=False)
        else:
            if len(data) > self._body_left:
                raise FramingError(502, "bytes after the answer")
            self._body_left -= len(data)
            self._content(data, done=not self._body_left)

    def _begun(self, body: ChunkedBody, data: bytes) -> bytes:
        """A burst of tokens is read one by one until it is known how they look, then all at once. What is left of it."""
        for _ in range(FIRST_LOOKS):
            end = body.first_end(data)
            if not end or end == len(data):
                break
            self._content(body.feed(data[:end]), done=False)
            if self._ended:
                return b""
            data = data[end:]
            frame = self._steady()
            if frame is not None:
                tokens = frame.tokens_in(data)
                if tokens:
                    self._watch.delta(self._read_at_s, tokens)
                    self._pass_on(data[: frame.end])
                return data[frame.end :]
        return data

    def _begin(self, head: AnswerHead) -> None:
        self._head = head
        self.upstream_status = head.status
        if head.length == -1:
            self._body = ChunkedBody()
        elif head.length >= 0:
            self._body_left = head.length
        if head.streams:
            drops_usage = self._with_usage or self._exchange.body.include_usage is False
            self._reader = Reader(self._exchange.endpoint, drops_usage, self._exchange.front.limits.sse_line_bytes)

    def _content(self, content: bytes, done: bool) -> None:
        if self._reader is not None:
            deltas = self._reader.feed(content) if content else 0
            out = self._reader.out if content else b""
            if done:
                out += self._reader.end()
            self._stream(out, deltas)
            if done and not self._ended:
                self._stream_done()
        elif self._spilled:
            self._write(content)
            if done:
                self._whole_done(b"")
        else:
            self._held.append(content)
            self._held_bytes += len(content)
            if self.upstream_status >= 400:
                if done or self._held_bytes > MAX_ERROR_BYTES:
                    self._refused_by_engine(b"".join(self._held), clean=done)
            elif self._started:
                self._fail(FailReason.MALFORMED)  # a stream was announced, and no stream came
            elif done:
                self._whole_done(b"".join(self._held))
            elif self._held_bytes > MAX_WHOLE_BYTES:
                self._spilled = True
                self._start(JSON)
                for part in self._held:
                    self._write(part)
                self._held.clear()

    # ---- streams

    def _stream(self, out: bytes, deltas: int) -> None:
        """Content of an event stream, read by the reader: `deltas` tokens in it, `out` to pass on."""
        reader = self._reader
        assert reader is not None
        if reader.failed:
            self._fail(FailReason.MALFORMED)  # a line beyond the limit
            return
        if deltas:
            placement, now_s = self.placement, self._read_at_s
            self._watch.delta(now_s, deltas)
            if not self._measures:
                self._measures = True
                placement.first_token_at_s = now_s
                self._watch.tell(placement)
                if not self._started:
                    self._start(EVENT_STREAM)
                self._exchange.front.live.first_token(placement, now_s)
                self._coalesced = self._exchange.coalesces()
        if self._started:
            if out:
                self._write(out)
        elif reader.error is not None:
            self._fail(FailReason.ENGINE_ERROR, errors.from_event(reader.error))
        elif out:
            self._held.append(out)
            self._held_bytes += len(out)
            if self._held_bytes > MAX_HELD_BYTES:
                self._fail(FailReason.MALFORMED)
        if self._coalesced and not self._ended:
            self._hold_back()

    def _start(self, content_type: bytes) -> None:
        """Send the head, and what was held back behind it."""
        self._started = True
        head = self._exchange.answer_head(self.placement, self.upstream_status, content_type, -1)
        if self._held and content_type is EVENT_STREAM:
            held = b"".join(self._held)
            self._held.clear()
            head += held if self._plain else chunk(held)
        self._exchange.write(head)

    def _write(self, content: bytes) -> None:
        if content:
            self._exchange.write(content if self._plain else chunk(content))

    def _stream_done(self) -> None:
        reader = self._reader
        assert reader is not None
        if not self._started:
            self._start(EVENT_STREAM)  # an answer of no tokens is an answer
        if not self._plain:
            self._exchange.write(LAST_CHUNK)
        outcome = self._outcome(reader.usage)
        if reader.error is not None:
            outcome.result, outcome.fail_reason = Result.FAILED, FailReason.ENGINE_ERROR
        self._complete(outcome, keep=True)

    # ---- whole answers

    def _whole_done(self, body: bytes) -> None:
        exchange = self._exchange
        usage = None
        if not self._spilled:
            assert self._head is not None
            usage = usage_of(body)
            content_type = self._head.fields.get(b"content-type", JSON)
            body = exchange.with_tier(body)
            exchange.write(exchange.answer_head(self.placement, self.upstream_status, content_type, len(body)) + body)
        elif not self._plain:
            exchange.write(LAST_CHUNK)
        self._started = True
        self._complete(self._outcome(usage), keep=True)

    def _refused_by_engine(self, body: bytes, clean: bool) -> None:
        """An error status. The caller's own mistakes are told; what another instance might do better is not."""
        status = self.upstream_status
        if status in (400, 422) and self._with_usage and b"stream_options" in body:
            self._upstream.no_stream_options = True
            self._again(clean)
            return
        error = errors.from_engine(status, body)
        if self._started:  # the head was sent while waiting: the stream has to tell it
            self._fail(FailReason.ENGINE_ERROR, error)
            return
        self._release(clean)
        self._ended = True
        if 400 <= status < 500 and status not in (401, 403, 407, 408, 429):  # the caller's own mistake
            outcome = self._outcome(None)
            outcome.result, outcome.fail_reason, outcome.status = Result.FAILED, FailReason.ENGINE_ERROR, error.status
            self._exchange.attempt_failed(FailReason.ENGINE_ERROR, error, may_retry=False, outcome=outcome)
        else:
            self._exchange.attempt_failed(FailReason.ENGINE_ERROR, error, may_retry=True)

    def _again(self, clean: bool) -> None:
        """The same request once more to the same instance, from the beginning."""
        self._release(clean)
        self._reset()
        self.start()

    # ---- the end

    def _outcome(self, usage: Used | None) -> Outcome:
        return outcome_of(self.placement, self._watch, usage, monotonic())

    def _complete(self, outcome: Outcome, keep: bool) -> None:
        self._ended = True
        self._upstream.failures = 0
        self._release(keep)
        self._exchange.attempt_completed(outcome)

    def _fail(self, reason: FailReason, error: errors.ApiError | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        self._release(False)
        if reason in (FailReason.CONNECT, FailReason.CLOSED_EARLY, FailReason.STALLED, FailReason.FIRST_TOKEN_TIMEOUT):
            self._upstream.failures += 1
        error = error or errors.failed(reason)
        if not self._started:
            may_retry = not (error.status < 500 and error.status != 429)
            self._exchange.attempt_failed(reason, error, may_retry=may_retry)
            return
        if not self._spilled and reason is not FailReason.SLOW_READER:
            self._write(errors.event(error, self._exchange.endpoint))
            if not self._plain:
                self._exchange.write(LAST_CHUNK)
        outcome = replace(self._outcome(self._reader.usage if self._reader else None), result=Result.FAILED, fail_reason=reason)
        self._exchange.attempt_failed(reason, error, may_retry=False, outcome=outcome, begun=True)

    def _release(self, keep: bool) -> None:
        connection = self._connection
        self._connection = None
        if connection is None or connection.closed:
            return
        if keep and self._head is not None and self._head.keep_alive:
            connection.give_back(self._read_at_s)
        else:
            connection.abort()

    def upstream_lost(self) -> None:
        """The engine has closed the connection."""
        connection = self._connection
        self._connection = None
        if self._ended:
            return
        if self._head is None:
            if connection is not None and connection.used and not self._fresh and not self._head_data:
                # A kept connection that the engine was closing already: not a byte came back, so nothing was begun.
                self._fresh = True
                self._upstream.open(self._opened)
            else:
                self._fail(FailReason.CLOSED_EARLY)
        elif self._head.length == -2 and (self._reader is None or self._reader.done):
            self._content(b"", done=True)
        else:
            self._fail(FailReason.CUT if self._started else FailReason.CLOSED_EARLY)

    def abandon(self) -> None:
        """Nobody waits for this answer any more."""
        if not self._ended:
            self._ended = True
            self._release(False)

    def gone_outcome(self) -> Outcome:
        """What a client had got when it left."""
        return replace(self._outcome(self._reader.usage if self._reader else None), result=Result.CLIENT_GONE, status=499)

    def cancel(self, reason: FailReason) -> None:
        """End it from our side: told to the client like any failure of an engine."""
        self._fail(reason)

    # ---- flow and time

    def pause(self) -> None:
        """The client does not read fast enough."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """It reads again."""
        if self._connection is not None:
            self._connection.resume()

    def _hold_back(self) -> None:
        """A class that does not mind is read once a tick: several tokens then share one read and one write."""
        connection = self._connection
        if connection is None or connection.held:
            return
        if self._watch.mean_gap_s() > 0.8 * self.placement.ticket.tag.targets.itl_s:
            self._coalesced = False  # its gaps are near their target: no part of them is ours to spend
            return
        connection.hold()
        self._exchange.front.coalescer.hold(connection)

    def due(self, now_s: float) -> None:
        """Asked a few times a second: is anything overdue?"""
        if self._ended:
            return
        deadlines = self._deadlines = self._deadlines or Deadlines(self.placement, self._exchange.front.timeouts)
        if now_s > deadlines.request_at_s:
            self._fail(FailReason.DEADLINE)
        elif self._measures:
            self._watch.tell(self.placement)
            if now_s - self._watch.last_at_s > deadlines.stall_s and not (self._connection is not None and self._connection.paused):
                self._fail(FailReason.STALLED)
        elif now_s > deadlines.first_token_at_s:
            if self._started or self._exchange.could_move(self.placement):
                self._fail(FailReason.FIRST_TOKEN_TIMEOUT)
            else:
                deadlines.first_token_at_s = inf  # the last candidate is never cut; the request's own deadline stays
        elif now_s > deadlines.head_at_s and not self._started and self._exchange.body.stream:
            # Proxies in between give up on silence. From here on a failure can only be told inside the stream.
            self.upstream_status = self.upstream_status or 200
            deadlines.head_at_s = inf
            if self._reader is not None or self._head is None:
                self._start(EVENT_STREAM)
                self._write(WAIT_COMMENT)
