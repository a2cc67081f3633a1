"""Sends requests at their times, whatever became of the ones before (open loop), and times what comes back to the byte.

Figures are a client's own: first content delta, gaps between deltas, last byte. What they are worth is report.py's business.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from gateway.core.flow import Endpoint
from gateway.load.bodies import Shot
from gateway.openai.framing import AnswerHead, ChunkedBody, FramingError, answer_head, find_head
from gateway.openai.sse import Reader, usage_of

_ENDPOINTS = {
    "/v1/chat/completions": Endpoint.CHAT,
    "/v1/completions": Endpoint.COMPLETIONS,
    "/v1/responses": Endpoint.RESPONSES,
    "/v1/embeddings": Endpoint.EMBEDDINGS,
    "/v1/messages": Endpoint.MESSAGES,
}


@dataclass(slots=True)
class Shown:
    """What one request got. Seconds; None = did not happen."""

    shot: Shot
    due_at_s: float
    sent_at_s: float = 0.0
    status: int = 0  # 0 = no answer at all
    error: str = ""
    given_up_after_s: float | None = None  # we ended it: the time to wait was over
    ttft_s: float | None = None
    e2e_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    deltas: int = 0
    output_tokens: int = 0
    fields: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def tpot_s(self) -> float | None:
        """(last - first) / (tokens - 1)."""
        tokens = self.output_tokens or self.deltas
        return sum(self.gaps_s) / (tokens - 1) if tokens > 1 and self.gaps_s else None


class _Connection(asyncio.Protocol):
    """One request at a time; kept for the next."""

    def __init__(self, gun: Gun) -> None:
        self.gun = gun
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.shown: Shown | None = None
        self._data = b""
        self._head: AnswerHead | None = None
        self._body: ChunkedBody | None = None
        self._reader: Reader | None = None
        self._whole: list[bytes] = []
        self._left = 0
        self._last_at_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, shown: Shown, request: bytes) -> None:
        self.shown = shown
        self._head, self._body, self._reader, self._data = None, None, None, b""
        self._whole = []
        shown.sent_at_s = time.monotonic()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        shown = self.shown
        if shown is None:
            self.transport.abort()
            return
        try:
            self._received(shown, data)
        except FramingError as error:
            shown.error = shown.error or f"malformed: {error.why}"
            self._over(keep=False)

    def _received(self, shown: Shown, data: bytes) -> None:
        now_s = time.monotonic()
        if self._head is None:
            self._data += data
            end = find_head(self._data, 65536)
            if not end:
                return
            head = self._head = answer_head(self._data, end)
            data, self._data = self._data[end:], b""
            shown.status, shown.fields = head.status, head.fields
            self._body = ChunkedBody() if head.length < 0 else None
            self._left = max(head.length, 0)
            if head.fields.get(b"content-type", b"").startswith(b"text/event-stream"):
                self._reader = Reader(_ENDPOINTS[shown.shot.path], False, 1 << 20)
        if self._body is not None:
            content = self._body.feed(data)
            done = self._body.done
        else:
            content = data
            self._left -= len(data)
            done = self._left <= 0
        if self._reader is not None:
            deltas = self._reader.feed(content) if content else 0
            if deltas:
                if shown.ttft_s is None:
                    shown.ttft_s = now_s - shown.due_at_s
                else:
                    shown.gaps_s.extend([(now_s - self._last_at_s) / deltas] * deltas)
                self._last_at_s = now_s
                shown.deltas += deltas
        elif content:
            self._whole.append(content)
        if done:
            self._finish(shown, now_s)

    def _finish(self, shown: Shown, now_s: float) -> None:
        shown.e2e_s = now_s - shown.due_at_s
        reader, head = self._reader, self._head
        if reader is not None:
            usage = reader.usage
            if reader.error is not None:
                shown.error = "error event"
        else:
            body = b"".join(self._whole)
            usage = usage_of(body)
            if shown.status >= 400:
                shown.error = f"status {shown.status}"
        shown.output_tokens = usage[2] if usage else shown.deltas
        self._over(keep=head is not None and head.keep_alive)

    def _over(self, keep: bool) -> None:
        shown, self.shown = self.shown, None
        if shown is not None:
            if keep:
                self.gun.idle.append(self)
            else:
                self.transport.abort()
            self.gun.landed(shown)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self.gun.idle:
            self.gun.idle.remove(self)
        if self.shown is not None:
            self.shown.error = self.shown.error or "cut"
            self._over(keep=False)

    def give_up(self) -> None:
        if self.shown is not None:
            self.shown.error = "given up"
            self.shown.given_up_after_s = time.monotonic() - self.shown.due_at_s
            self._over(keep=False)


class Gun:
    """Fires shots at one URL. `told` is called with every result."""

    def __init__(self, url: str, told: Callable[[Shown], None], *, key: str = "", tagged: bool = False, verify: bool = True) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not an address such as http://127.0.0.1:8080")
        self.host, self.port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        if self.tls is not None and not verify:
            self.tls.check_hostname = False
            self.tls.verify_mode = ssl.CERT_NONE
        self.base = parts.path.rstrip("/").removesuffix("/v1")
        self.key, self.tagged = key, tagged
        self.told = told
        self.idle: list[_Connection] = []
        self.flying: dict[int, _Connection] = {}
        self.in_flight = 0
        self._landed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def fire(self, shots: Iterable[Shot], for_s: float, drain_s: float = 30.0) -> None:
        """All shots due within `for_s`, at their times, then wait for those in flight, `drain_s` at most."""
        begin_s = time.monotonic()
        for shot in shots:
            if shot.at_s >= for_s:
                break
            wait_s = begin_s + shot.at_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            self._fire(shot, begin_s + shot.at_s)
        left_s = begin_s + for_s - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(left_s)
        end_s = time.monotonic() + drain_s
        while self.in_flight and time.monotonic() < end_s:
            self._landed.clear()
            try:
                await asyncio.wait_for(self._landed.wait(), max(end_s - time.monotonic(), 0.01))
            except TimeoutError:
                break
        self.close()

    def close(self) -> None:
        """Give up what is in flight, and close."""
        for connection in list(self.flying.values()):
            connection.give_up()
        for connection in list(self.idle):
            connection.transport.abort()

    def _fire(self, shot: Shot, due_at_s: float) -> None:
        shown = Shown(shot, due_at_s)
        self.in_flight += 1
        while self.idle:
            connection = self.idle.pop()
            if not connection.transport.is_closing():
                self.flying[id(shown)] = connection
                connection.send(shown, self._request(shot))
                return
        task = asyncio.ensure_future(self._open(shown))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, shown: Shown) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(10.0):
                _, connection = await loop.create_connection(lambda: _Connection(self), self.host, self.port, ssl=self.tls)
        except (OSError, TimeoutError) as error:
            shown.error = f"connect: {type(error).__name__}"
            self.landed(shown)
            return
        self.flying[id(shown)] = connection
        connection.send(shown, self._request(shown.shot))

    def _request(self, shot: Shot) -> bytes:
        fields = f"host: {self.host}:{self.port}\r\ncontent-type: application/json\r\ncontent-length: {len(shot.body)}\r\n"
        if self.key:
            fields += f"authorization: Bearer {self.key}\r\n"
        if self.tagged:
            fields += f"x-slo-use-case: {shot.use_case}\r\n"
        return f"POST {self.base}{shot.path} HTTP/1.1\r\n{fields}\r\n".encode() + shot.body

    def landed(self, shown: Shown) -> None:
        """A result is in."""
        self.flying.pop(id(shown), None)
        self.in_flight -= 1
        self._landed.set()
        self.told(shown)
