"""Connections to engines, without a gateway around them: what they make of a standstill of our own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from gateway.core.flow import InstanceSpec
from gateway.wire.probe import status_of
from gateway.wire.upstream import EngineConnection, Upstream

LIMIT_S = 0.4
Run = Callable[[Coroutine[Any, Any, Any]], Any]


def at(port: int, connect_s: float) -> Upstream:
    spec = InstanceSpec("premium/a", "premium", "premium", 0, "m", "H100", 1.0, 4, url=f"http://127.0.0.1:{port}")
    return Upstream(spec, asyncio.get_running_loop(), api_key=None, tls=None, connect_s=connect_s, idle_s=1.0, user_agent="t")


def stand_still(began_s: float) -> bool:
    """For longer than the limit. False when the machine has stood still before we did, so that half of the limit was over by then."""
    in_time = time.monotonic() - began_s < LIMIT_S / 2
    time.sleep(LIMIT_S * 1.2)
    return in_time


def first_in_time(run: Run, attempt: Callable[[], Coroutine[Any, Any, tuple[bool, Any]]]) -> Any:
    """What comes of the first attempt in which we stood still when we meant to."""
    while True:
        in_time, came = run(attempt())
        if in_time:
            return came


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_standstill_of_our_own_is_not_taken_for_an_engine_that_cannot_be_reached(run: Run, turns: int) -> None:
    async def open_one() -> tuple[bool, EngineConnection | None]:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        began_s = time.monotonic()
        opened: asyncio.Future[EngineConnection | None] = asyncio.get_running_loop().create_future()
        at(server.sockets[0].getsockname()[1], LIMIT_S).open(opened.set_result)
        for _ in range(turns):
            await asyncio.sleep(0)
        in_time = stand_still(began_s)
        connection = await opened
        server.close()
        return in_time, connection

    assert first_in_time(run, open_one) is not None


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_standstill_of_our_own_is_not_taken_for_an_engine_that_does_not_say_how_it_is(run: Run) -> None:
    async def ask() -> tuple[bool, int | str]:
        asked, stands, answered = asyncio.Event(), threading.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def engine() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                loop.call_soon_threadsafe(asked.set)
                stands.wait()
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            answered.set()

        listening = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=engine, daemon=True)
        thread.start()
        upstream = at(listening.getsockname()[1], 60.0)
        began_s = time.monotonic()
        status = asyncio.ensure_future(status_of(upstream, "/health", LIMIT_S))
        await asyncio.wait([status, wait := asyncio.ensure_future(asked.wait())], return_when=asyncio.FIRST_COMPLETED)
        wait.cancel()
        stands.set()
        answered.wait()  # the answer lies in our socket, unread
        in_time = stand_still(began_s)
        try:
            said: int | str = await status
        except ConnectionError as error:
            said = str(error)
        upstream.close()
        await asyncio.to_thread(thread.join)
        listening.close()
        return in_time, said

    assert first_in_time(run, ask) == 200
