"""Engines are asked how they are over the same connections as requests: what requests need to reach them, probes have too."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import httpx
import pytest

from gateway.core.flow import InstanceSpec
from gateway.wire.probe import status_of
from gateway.wire.upstream import Upstream
from tests.conftest import HANG_S, MODEL, Place, until
from tests.state.topologies import Between, certificates

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"


def asked(*answers: bytes, times: int = 1, url_path: str = "", cut: bool = False) -> tuple[list[object], list[bytes], int]:
    """What `times` probes, one after the other, make of an engine that gives these answers in turn (b"" = closes); the requests it got,
    and over how many connections."""
    requests: list[bytes] = []
    connections = 0
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while left:
                requests.append(await reader.readuntil(b"\r\n\r\n"))
                answer = left.pop(0)
                if not answer:
                    break
                for piece in [answer[at : at + 1] for at in range(len(answer))] if cut else [answer]:
                    writer.write(piece)
                    await writer.drain()
            else:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def ask() -> list[object]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{url_path}"
        spec = InstanceSpec("premium/a", "premium", "premium", 0, MODEL, "H100", 1.0, 4, url=url)
        upstream = Upstream(spec, asyncio.get_running_loop(), api_key="k", tls=None, connect_s=HANG_S, idle_s=HANG_S, user_agent="t")
        said: list[object] = []
        for _ in range(times):
            try:
                said.append(await status_of(upstream, "/health", HANG_S))
            except ConnectionError as error:
                said.append(str(error))
        upstream.close()
        server.close()
        return said

    return asyncio.run(ask()), requests, connections


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("answer", [OK, CHUNKS])
def test_a_clean_answer_leaves_the_connection_for_the_next(answer: bytes, cut: bool) -> None:
    said, requests, connections = asked(*[answer] * 3, times=3, cut=cut)
    assert (said, len(requests), connections) == ([200] * 3, 3, 1)


def test_it_asks_as_requests_do() -> None:
    _, requests, _ = asked(OK, url_path="/proxy")
    assert requests[0].startswith(b"GET /proxy/health HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"authorization: Bearer k\r\n" in requests[0]


@pytest.mark.parametrize(
    ("answers", "said", "connections"),
    [
        ((b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", OK), [503, 200], 1),
        ((b"HTTP/1.1 100 Continue\r\n\r\n" + OK, OK), [200, 200], 1),
        ((b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", OK), [200, 200], 2),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n" + b"x" * 2_000_000, OK), [200, 200], 2),
        ((OK + b"more", OK), [200, 200], 2),
        ((OK, b"", OK), [200, 200], 2),  # closed while it was kept: asked again, on a new one
        ((b"", OK), ["closes the connection", 200], 2),
        ((b"hello\r\n\r\n", OK), ["does not speak HTTP: the head is not valid HTTP/1.1", 200], 2),
    ],
)
def test_what_is_not_clean_is_not_used_again(answers: tuple[bytes, ...], said: list[object], connections: int) -> None:
    told, _, opened = asked(*answers, times=2)
    assert (told, opened) == (said, connections)


def test_nobody_there_is_said_so() -> None:
    async def ask() -> int:
        spec = InstanceSpec("premium/a", "premium", "premium", 0, MODEL, "H100", 1.0, 4, url="http://127.0.0.1:9")
        upstream = Upstream(spec, asyncio.get_running_loop(), api_key=None, tls=None, connect_s=HANG_S, idle_s=HANG_S, user_agent="t")
        return await status_of(upstream, "/health", HANG_S)

    with pytest.raises(ConnectionError, match="cannot be connected to"):
        asyncio.run(ask())


def test_an_answer_that_never_comes_is_not_waited_for() -> None:
    async def ask() -> int:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        spec = InstanceSpec("premium/a", "premium", "premium", 0, MODEL, "H100", 1.0, 4, url=url)
        upstream = Upstream(spec, asyncio.get_running_loop(), api_key=None, tls=None, connect_s=HANG_S, idle_s=HANG_S, user_agent="t")
        try:
            return await status_of(upstream, "/health", 0.05)
        finally:
            async with asyncio.timeout(HANG_S):
                while upstream.open_count:
                    await asyncio.sleep(0.01)
            server.close()

    with pytest.raises(ConnectionError, match=r"no answer within 0\.05 s"):
        asyncio.run(ask())


def test_an_engine_behind_a_ca_and_a_certificate_of_ones_own_stays_up_and_answers(place: Place, tmp_path: Path) -> None:
    signed = certificates(tmp_path)
    engine = place.engine()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(signed.ca))
    context.load_cert_chain(signed.cert, signed.key)
    context.verify_mode = ssl.CERT_REQUIRED
    between, other = Between(engine.port, context), Between(engine.port, context)
    trust = {"ca_file": str(signed.ca), "cert_file": str(signed.cert), "key_file": str(signed.key)}
    pool = {"tier": "premium", "gpu": "H100", "model": MODEL, "instances": [f"https://127.0.0.1:{between.port}"], "upstream": trust}
    stranger = pool | {"tier": "cost", "instances": [f"https://127.0.0.1:{other.port}"], "upstream": {}}
    try:
        gateway = place.gateway(place.config({"premium": pool, "stranger": stranger}))
        until(lambda: [one["healthy"] for one in gateway.fleet() if one["pool"] == "stranger"] == [False])
        ask = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        assert httpx.post(f"{gateway.url}/v1/chat/completions", json=ask).status_code == 200
        assert [one["healthy"] for one in gateway.fleet() if one["pool"] == "premium"] == [True]
    finally:
        between.stop()
        other.stop()
