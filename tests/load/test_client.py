"""The load tool on real sockets: arrivals that wait for nobody, a stream timed by its content, and every way an answer can fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.load.bodies import Shot
from gateway.load.client import Gun, Shown
from gateway.simulate.engine import Engine, serve
from gateway.simulate.machine import MachineFacts
from tests.conftest import HANG_S

FAST = MachineFacts(0.3, 0, 0, 0.01, overhead_s=0.0, jitter_ratio=0.0)


def shot(at_s: float = 0.0, tokens: int = 5, stream: bool = True, **more: Any) -> Shot:
    body = {"model": "m", "stream": stream, "max_tokens": tokens, "messages": [{"role": "user", "content": "hi"}]} | more
    return Shot(at_s, "/v1/chat/completions", json.dumps(body).encode(), "chatbot", tokens)


def fired(
    shots: list[Shot], order: Callable[[Engine], None] = lambda engine: None, for_s: float = 0.01, drain_s: float = HANG_S
) -> list[Shown]:
    results: list[Shown] = []

    async def run() -> None:
        engine = Engine("m", FAST)
        order(engine)
        server = await serve(engine, "127.0.0.1", 0)
        async with asyncio.timeout(HANG_S):
            await Gun(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", results.append).fire(shots, for_s, drain_s)
        server.close()

    asyncio.run(run())
    return results


def test_a_stream_is_timed_by_its_content() -> None:
    [shown] = fired([shot(tokens=6, stream_options={"include_usage": True})])
    assert (shown.status, shown.error, shown.deltas, shown.output_tokens) == (200, "", 6, 6)
    assert shown.ttft_s is not None
    assert shown.e2e_s is not None
    assert 0 < shown.ttft_s <= shown.e2e_s
    assert len(shown.gaps_s) == 5
    assert sum(shown.gaps_s) <= shown.e2e_s - shown.ttft_s
    assert shown.tpot_s == pytest.approx(sum(shown.gaps_s) / 5)


def test_a_whole_answer_has_an_end_and_a_length_but_no_first_token() -> None:
    [shown] = fired([shot(tokens=6, stream=False)])
    assert (shown.status, shown.ttft_s, shown.output_tokens) == (200, None, 6)
    assert shown.e2e_s is not None


def test_slow_answers_hold_no_arrival_back() -> None:
    def silent(engine: Engine) -> None:
        engine.faults.change({"silent": True})

    results = fired([shot(0.001 * i) for i in range(20)], silent, for_s=0.03, drain_s=0.05)
    assert len(results) == 20
    assert {shown.error for shown in results} == {"given up"}


def test_time_is_counted_from_when_a_request_was_due() -> None:
    [shown] = fired([shot()])
    assert shown.sent_at_s >= shown.due_at_s
    assert shown.ttft_s is not None
    assert shown.ttft_s >= shown.sent_at_s - shown.due_at_s


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        ({"error_ratio": 1}, 500, "status 500"),
        ({"die_after_tokens": 2}, 200, "cut"),
        ({"malformed_after_tokens": 2}, 200, "malformed"),
    ],
    ids=["an error", "a cut", "garbage"],
)
def test_every_way_to_fail_has_its_name(fault: dict[str, Any], status: int, error: str) -> None:
    [shown] = fired([shot(tokens=9)], lambda engine: engine.faults.change(fault))
    assert shown.status == status
    assert shown.error.startswith(error)


def test_a_port_where_nobody_listens_is_an_error_and_no_crash() -> None:
    results: list[Shown] = []

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        await Gun(f"http://127.0.0.1:{port}", results.append).fire([shot()], 0.01)

    asyncio.run(run())
    assert [shown.error for shown in results] == ["connect: ConnectionRefusedError"]


def test_connections_are_kept_for_the_next_request() -> None:
    most = 0

    async def run() -> None:
        nonlocal most
        engine = Engine("m", FAST)
        server = await serve(engine, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

        def told(shown: Shown) -> None:
            nonlocal most
            most = max(most, len(engine.connections))

        gun = Gun(url, told)
        for _ in range(5):
            gun._fire(shot(), 0.0)
            while gun.in_flight:
                await asyncio.sleep(0.001)
        gun.close()
        server.close()

    asyncio.run(asyncio.wait_for(run(), HANG_S))
    assert most == 1


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://host", "http://"])
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        Gun(url, lambda shown: None)
