"""A process that is not given the processor for a while: what came meanwhile is read before anybody is called late."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import uvloop

from gateway.config.load import load
from gateway.serve import process
from tests.conftest import DONE, HANG_S, STREAM_HEAD, Place, Script, ScriptedEngine, chat, chunked, event

STALL_S = 1.0


class Standing(asyncio.Protocol):
    """A caller in the gateway's own loop, who at the first words of an answer holds up that loop."""

    def __init__(self, stand_still: Callable[[], None]) -> None:
        self.stand_still = stand_still
        self.answer = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        body = json.dumps(chat(stream=True)).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
        transport.write(head + body)

    def data_received(self, data: bytes) -> None:
        stands = b"one" not in self.answer
        self.answer += data
        if stands and b"one" in self.answer:
            self.stand_still()
        if not self.over.done() and (b"[DONE]" in self.answer or b'"error"' in self.answer):
            self.over.set_result(None)


def test_a_standstill_of_our_own_is_not_taken_for_a_stream_that_stalls(place: Place, scripted: Callable[[Script], ScriptedEngine]) -> None:
    stands, said = threading.Event(), threading.Event()

    async def go_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(event("one")))
        await asyncio.to_thread(stands.wait, HANG_S)
        writer.write(chunked(event("two"), DONE) + b"0\r\n\r\n")
        await writer.drain()
        said.set()

    def stand_still() -> None:
        stands.set()
        said.wait(HANG_S)
        time.sleep(STALL_S * 1.2)

    pool = {"tier": "premium", "model": "llama-8b", "instances": [scripted(go_on).url]}
    timeouts = {"stall_min": f"{STALL_S * 1000:.0f}ms", "stall_factor": 0.001}
    file = place.folder / "gateway.yaml"
    file.write_text(json.dumps(place.config({"premium": pool}, timeouts=timeouts)))

    async def run() -> bytes:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[int] = loop.create_future()
        serving = asyncio.ensure_future(process._run(load(file), None, None, lambda public, admin: ready.set_result(public)))
        await asyncio.wait([ready, serving], timeout=HANG_S, return_when=asyncio.FIRST_COMPLETED)
        _, caller = await loop.create_connection(lambda: Standing(stand_still), "127.0.0.1", ready.result())
        await asyncio.wait_for(caller.over, HANG_S)
        os.kill(os.getpid(), signal.SIGTERM)
        await serving
        return caller.answer

    answer = uvloop.run(run())
    assert b"engine_stalled" not in answer
    assert b"two" in answer
    assert b"[DONE]" in answer
