"""A line between two of our processes: both ask and tell, in frames of MessagePack over a socket pair.

When the line ends, the other process has ended. What is said over it is the business of supervisor.py and member.py.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import msgspec

log = logging.getLogger("slo_gateway")

VERSION = 1
"""of the words both sides use; an old supervisor and a new worker must agree on it"""
MAX_BYTES = 64 * 1024 * 1024
ANSWER_S = 2.0

_ASK, _TELL, _ANSWER, _ERROR = range(4)
_LENGTH = struct.Struct("<I")

Handler = Callable[[str, Any], Awaitable[Any]]


class LinkError(Exception):
    """The other side did not answer in time, has ended, or could not do it; the message says which."""


class Link:
    """One end. `handler` gets (word, value) of what the other end asks or tells; what it returns is the answer to an ask. Tells are
    handled one after the other, in the order they came; asks beside one another."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._numbers = count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self.ended = False

    async def open(self, sock: socket.socket) -> None:
        """From now on there is somebody to talk to."""
        self._reader, self._writer = await asyncio.open_unix_connection(sock=sock, limit=2**20)

    async def run(self) -> None:
        """Hear what is said, until the other end has gone."""
        reader, writer = self._reader, self._writer
        assert reader is not None
        assert writer is not None
        try:
            while True:
                [length] = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                if length > MAX_BYTES:
                    raise LinkError(f"a frame of {length} bytes")
                await self._received(msgspec.msgpack.decode(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError, LinkError, ValueError) as error:
            log.debug("the link has ended: %r", error)
        finally:
            self.ended = True
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(LinkError("it has ended"))
            writer.close()

    async def _received(self, frame: Any) -> None:
        kind, number, word, value = frame
        if kind == _TELL:
            try:
                await self._handler(word, value)
            except Exception:
                log.exception("%s could not be done", word)
        elif kind == _ASK:
            task = asyncio.ensure_future(self._answer(number, word, value))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            future = self._waiting.pop(number, None)
            if future is not None and not future.done():
                future.set_result(value) if kind == _ANSWER else future.set_exception(LinkError(str(value)))

    async def _answer(self, number: int, word: str, value: Any) -> None:
        try:
            self._send([_ANSWER, number, word, await self._handler(word, value)])
        except Exception as error:
            if not isinstance(error, LinkError):
                log.exception("%s could not be answered", word)
            self._send([_ERROR, number, word, str(error) or type(error).__name__])

    def _send(self, frame: Any) -> None:
        if self._writer is None or self.ended:
            return
        data = msgspec.msgpack.encode(frame)
        self._writer.write(_LENGTH.pack(len(data)) + data)

    def tell(self, word: str, value: Any = None) -> None:
        """Say it, if there is anybody."""
        self._send([_TELL, 0, word, value])

    async def ask(self, word: str, value: Any = None, within_s: float = ANSWER_S) -> Any:
        """Ask, and wait. LinkError when there is no answer in time, or none at all."""
        if self._writer is None or self.ended:
            raise LinkError("it has ended")
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send([_ASK, number, word, value])
        try:
            return await asyncio.wait_for(future, within_s)
        except TimeoutError:
            raise LinkError(f"no answer within {within_s:g} s") from None
        finally:
            self._waiting.pop(number, None)

    async def flushed(self) -> None:
        """All that was said is with the kernel."""
        if self._writer is not None and not self.ended:
            try:
                await self._writer.drain()
            except ConnectionError:
                log.debug("the link ended while it was flushed")

    def close(self) -> None:
        """Say no more."""
        if self._writer is not None:
            self._writer.close()
