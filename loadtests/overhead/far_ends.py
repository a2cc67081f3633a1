"""Both far ends of a gateway in one process: an engine that answers at once or at a fixed pace, and clients that never rest.

What they cost is theirs: the measured gateway runs on another core, and only its own CPU time is counted.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import cast

CHUNK = (
    b'data: {"id":"chatcmpl-123456789","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}\n\n'
)
STREAM_CHUNKS = 256
INTERVAL_MS = 10
_FRAMED = b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)
_DONE = b"data: [DONE]\n\n"
_LAST = b"%x\r\n%b\r\n0\r\n\r\n" % (len(_DONE), _DONE)
_WHOLE = (
    b'{"id":"chatcmpl-123456789","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"' + b"token " * 16 + b'"},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":500,"completion_tokens":16,"total_tokens":516}}'
)
_JSON_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_WHOLE), _WHOLE)
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Pace:
    """Every stream gets a chunk each INTERVAL_MS, streams spread evenly over that time."""

    def __init__(self) -> None:
        self._slots: list[dict[EngineEnd, int]] = [{} for _ in range(INTERVAL_MS)]
        self._next = itertools.cycle(range(INTERVAL_MS))

    def join(self, engine: EngineEnd) -> None:
        self._slots[next(self._next)][engine] = STREAM_CHUNKS

    def leave(self, engine: EngineEnd) -> None:
        for slot in self._slots:
            slot.pop(engine, None)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        for tick in itertools.count():
            wait_s = begin_s + tick / 1000 - loop.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            slot = self._slots[tick % INTERVAL_MS]
            for engine, left in list(slot.items()):
                if left:
                    engine.transport.write(_FRAMED)
                    slot[engine] = left - 1
                else:
                    del slot[engine]
                    engine.transport.write(_LAST)


class EngineEnd(asyncio.Protocol):
    """The engine's side of a connection."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.transport = cast(asyncio.Transport, None)
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.pace.leave(self)

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._data[:end].lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if len(self._data) < end + 4 + length:
            return
        body, self._data = self._data[end + 4 :], b""
        if b'"stream":true' in body[:100]:
            self.transport.write(_STREAM_HEAD)
            self.pace.join(self)
        else:
            self.transport.write(_JSON_ANSWER)


class ClientEnd(asyncio.Protocol):
    """A client that sends its next request when the last one is answered."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.transport = cast(asyncio.Transport, None)
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def begin(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.load.request())

    def data_received(self, data: bytes) -> None:
        load = self.load
        if load.stream:
            load.chunks += data.count(b'"content"')
            seen = self._tail + data
            self._tail = seen[-24:]
            if not seen.endswith(b"0\r\n\r\n") or b"[DONE]" not in seen[-40:]:
                return
        else:
            # Whole answers end with the usage object, however they are framed.
            seen = self._tail + data
            if not seen.rstrip(b"\r\n0").endswith(b"}}"):
                self._tail = seen
                return
            if not seen.startswith(b"HTTP/1.1 200"):
                load.wrong += 1
        self._tail = b""
        load.answered += 1
        self.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.load.over:
            self.load.wrong += 1


class Load:
    """So many connections to one port, each always busy."""

    def __init__(self, port: int, connections: int, stream: bool, prompt_bytes: int) -> None:
        self.port, self.connections, self.stream = port, connections, stream
        self.answered = self.chunks = self.wrong = 0
        self.over = False
        self._number = itertools.count()
        self._filler = b"word " * (prompt_bytes // 5)
        self._clients: list[ClientEnd] = []

    def request(self) -> bytes:
        """No two prompts begin alike, so that nothing is served from a memory of the last one."""
        flag = b"true" if self.stream else b"false"
        body = b'{"model":"m","stream":%b,"messages":[{"role":"user","content":"%016d %b"}]}' % (flag, next(self._number), self._filler)
        return (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
            b"x-slo-use-case: chatbot\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = STREAM_CHUNKS * INTERVAL_MS / 1000 / self.connections if self.stream else 0.0
        for _ in range(self.connections):
            _, client = await loop.create_connection(lambda: ClientEnd(self), "127.0.0.1", self.port)
            self._clients.append(client)
            client.begin()
            await asyncio.sleep(pause_s)

    def stop(self) -> None:
        self.over = True
        for client in self._clients:
            client.transport.abort()
