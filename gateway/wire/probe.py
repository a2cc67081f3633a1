"""Asks an engine for one small page over the same connections that requests take: the same name, certificates and key.

What the answer says of the engine's health is engines/health.py's to judge. Its body is read to its end, so that the connection can be
used again, and never kept.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from gateway.openai.framing import AnswerHead, ChunkedBody, FramingError, answer_head, find_head
from gateway.wire.patience import within

if TYPE_CHECKING:
    from gateway.wire.upstream import EngineConnection, Upstream

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 1024 * 1024  # a page longer than that is not waited for


async def status_of(upstream: Upstream, path: str, timeout_s: float) -> int:
    """The status that GET `path` is answered with. ConnectionError says why there is none."""
    probe = _Probe(upstream, path)
    probe.begin()
    try:
        async with within(timeout_s):
            return await probe.status
    except TimeoutError:
        raise ConnectionError(f"no answer within {timeout_s:g} s") from None
    finally:
        probe.end()


class _Probe:
    """Holds a connection as a relay does."""

    def __init__(self, upstream: Upstream, path: str) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._upstream = upstream
        self._path = path
        self._connection: EngineConnection | None = None
        self._fresh = False  # the connection was opened for this
        self._data = b""
        self._head: AnswerHead | None = None
        self._chunks: ChunkedBody | None = None
        self._left_bytes = 0

    def begin(self) -> None:
        """On a connection that is idle, else on a new one."""
        connection = self._upstream.take(monotonic())
        if connection is not None:
            self._send(connection)
        else:
            self._open()

    def end(self) -> None:
        """Nobody waits any more: what is not clean by now is closed."""
        self._connection, connection = None, self._connection
        if connection is not None:
            connection.abort()
        self.status.cancel()

    def _open(self) -> None:
        self._fresh = True
        self._upstream.open(self._opened)

    def _opened(self, connection: EngineConnection | None) -> None:
        if connection is None:
            self._fail("cannot be connected to")
        elif self.status.done():
            connection.give_back(monotonic())
        else:
            self._send(connection)

    def _send(self, connection: EngineConnection) -> None:
        self._connection = connection
        connection.holder = self
        connection.transport.write(self._upstream.get(self._path))

    def received(self, data: bytes) -> None:
        """Bytes from the engine."""
        try:
            self._take(data)
        except FramingError as error:
            self._fail(f"does not speak HTTP: {error.why}")

    def _take(self, data: bytes) -> None:
        head = self._head
        while head is None:
            data = self._data + data
            self._data = b""
            end = find_head(data, MAX_HEAD_BYTES)
            if not end:
                self._data = data
                return
            found = answer_head(data, end)
            data = data[end:]
            if found.status >= 200:
                head = self._head = found
                self._chunks = ChunkedBody() if head.length == -1 else None
                self._left_bytes = head.length if head.length >= 0 else MAX_BODY_BYTES
        self._left_bytes -= len(data)
        if self._chunks is not None:
            self._chunks.feed(data)
            done = self._chunks.done and not self._chunks.left
        else:
            done = head.length >= 0 and not self._left_bytes
        if done and head.keep_alive:
            self._connection, connection = None, self._connection
            if connection is not None:
                connection.give_back(monotonic())
            self._tell(head.status)
        elif done or self._left_bytes < 0 or self._left_bytes > MAX_BODY_BYTES:
            self._tell(head.status)

    def upstream_lost(self) -> None:
        """The engine has closed the connection."""
        connection, self._connection = self._connection, None
        if self._head is not None:
            self._tell(self._head.status)
        elif connection is not None and connection.used and not self._fresh and not self._data:
            self._open()  # it was closing it already
        else:
            self._fail("closes the connection")

    def _tell(self, status: int) -> None:
        if not self.status.done():
            self.status.set_result(status)

    def _fail(self, why: str) -> None:
        if not self.status.done():
            self.status.set_exception(ConnectionError(why))
