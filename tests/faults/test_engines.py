"""Engines that misbehave in every way ever seen: clients get another one's answer, a proper error, or a stream that says so."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.conftest import (
    DONE,
    HANG_S,
    STREAM_HEAD,
    Place,
    Script,
    ScriptedEngine,
    chat,
    chunked,
    closed_port,
    event,
    json_answer,
    until,
    whole,
)

Scripted = Callable[[Script], ScriptedEngine]
PATH = "/v1/chat/completions"


async def good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(json_answer(whole("good")))
    await writer.drain()


def script(*parts: bytes, close: bool = False, abort: bool = False) -> Script:
    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.005)
        if abort:
            writer.transport.abort()
        elif close:
            writer.close()

    return run


def stream_of(url: str, **more: object) -> tuple[int, bytes]:
    with httpx.stream("POST", f"{url}{PATH}", json=chat(stream=True, **more)) as answer:
        body = b""
        try:
            for part in answer.iter_raw():
                body += part
        except httpx.RemoteProtocolError:
            body += b"<cut>"
        return answer.status_code, body


def test_an_engine_that_refuses_connections_is_replaced_by_another(place: Place, scripted: Scripted) -> None:
    gateway = place.before(f"http://127.0.0.1:{closed_port()}", scripted(good).url)
    for _ in range(6):
        assert httpx.post(f"{gateway.url}{PATH}", json=chat()).json()["choices"][0]["message"]["content"] == "good"
    until(lambda: [i["healthy"] for i in gateway.fleet()].count(False) == 1, what="the dead engine to be left out")


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("dies before the head", script(close=True)),
        ("dies within the head", script(b"HTTP/1.1 200 OK\r\ncontent-", close=True)),
        ("dies before the first token", script(STREAM_HEAD, close=True)),
        ("dies after its role chunk", script(STREAM_HEAD, chunked(b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'), abort=True)),
        ("is not HTTP", script(b"hello, this is not HTTP\r\n\r\n")),
        ("answers 500", script(json_answer({"error": "inner trouble"}, 500))),
        ("answers 503", script(json_answer({"error": {"message": "busy"}}, 503, b"retry-after: 1\r\n"))),
        ("answers 429", script(json_answer({"error": {"message": "busy"}}, 429))),
        ("sends an error as first event", script(STREAM_HEAD, chunked(b'data: {"error":{"message":"boom","code":500}}\n\n', DONE))),
        ("sends a line without end", script(STREAM_HEAD, chunked(b"data: " + b"x" * 70_000), *([chunked(b"x" * 70_000)] * 20))),
    ],
)
def test_before_the_first_token_another_engine_answers_instead(place: Place, scripted: Scripted, name: str, bad: Script) -> None:
    seen: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append("good")
        writer.write(STREAM_HEAD + chunked(event("one"), event("two"), DONE) + b"0\r\n\r\n")
        await writer.drain()

    first, second = scripted(bad), scripted(answer)
    gateway = place.before(first.url, second.url)
    for _ in range(4):
        status, body = stream_of(gateway.url)
        assert (status, body.count(b'"content"'), body.endswith(b"[DONE]\n\n")) == (200, 2, True), f"{name}: {status} {body!r}"
        if first.requests:
            break
    assert first.requests, "the bad engine was never tried"
    assert gateway.in_flight() == 0


def test_what_the_caller_did_wrong_is_told_and_not_tried_again(place: Place, scripted: Scripted) -> None:
    said = {"error": {"message": "max_tokens is too large", "type": "BadRequestError", "param": "max_tokens", "code": 400}}
    first, second = scripted(script(json_answer(said, 400))), scripted(script(json_answer(said, 400)))
    gateway = place.before(first.url, second.url)
    answer = httpx.post(f"{gateway.url}{PATH}", json=chat())
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["param"] == "max_tokens"
    assert len(first.requests) + len(second.requests) == 1
    assert gateway.in_flight() == 0


def test_an_error_event_instead_of_the_first_token_is_a_proper_status(place: Place, scripted: Scripted) -> None:
    bad = b'data: {"error":{"message":"prompt too long","type":"BadRequestError","code":400}}\n\n'
    gateway = place.before(scripted(script(STREAM_HEAD, chunked(bad, DONE), b"0\r\n\r\n")).url)
    answer = httpx.post(f"{gateway.url}{PATH}", json=chat(stream=True))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "prompt too long"


def test_an_engine_that_dies_in_mid_stream_is_told_in_the_stream(place: Place, scripted: Scripted) -> None:
    gateway = place.before(scripted(script(STREAM_HEAD, chunked(event("one"), event("two")), abort=True)).url)
    status, body = stream_of(gateway.url)
    events = [line for line in body.split(b"\n") if line.startswith(b"data: ")]
    assert status == 200
    assert events[0] + b"\n\n" == event("one")
    assert json.loads(events[-1][6:])["error"]["type"] == "upstream_error"
    assert b"[DONE]" not in body
    until(lambda: gateway.in_flight() == 0)


def test_a_stream_that_stalls_is_ended_with_an_error(place: Place, scripted: Scripted) -> None:
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(event("one")))
        await reader.read()

    engine = scripted(stall)
    gateway = place.before(engine.url, timeouts={"stall_min": "300ms", "stall_factor": 0.001})
    _, body = stream_of(gateway.url)
    assert b"engine_stalled" in body
    assert b"[DONE]" not in body
    assert gateway.in_flight() == 0


def test_a_first_token_that_never_comes_is_504_with_the_head_held(place: Place, scripted: Scripted) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    one, two = scripted(silent), scripted(silent)
    gateway = place.before(one.url, two.url, timeouts={"first_token_min": "400ms", "first_token_factor": 0.001, "request_factor": 0.001})
    answer = httpx.post(f"{gateway.url}{PATH}", json=chat(stream=True))
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] in ("engine_timeout", "deadline")
    until(lambda: gateway.in_flight() == 0)


def test_a_long_wait_sends_the_head_and_a_comment_so_that_proxies_stay(place: Place, scripted: Scripted) -> None:
    heard = threading.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.to_thread(heard.wait, HANG_S)
        writer.write(STREAM_HEAD + chunked(event("one"), DONE) + b"0\r\n\r\n")
        await writer.drain()

    gateway = place.before(scripted(slow).url, timeouts={"head_hold": "200ms"})
    with httpx.stream("POST", f"{gateway.url}{PATH}", json=chat(stream=True)) as answer:
        parts = answer.iter_raw()
        body = next(parts)
        heard.set()
        body += b"".join(parts)
    assert answer.status_code == 200
    assert body == b": wait\n" + event("one") + DONE


def sliced(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 3, 7, 64, 100_000])
def test_streams_pass_byte_for_byte_however_they_are_cut(place: Place, scripted: Scripted, size: int) -> None:
    content = (
        b": a comment\n\n"
        b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
        + event("h\u00e9llo \U0001f600")
        + b'data:{"choices":[{"delta":{"content":"no space"}}]}\r\n\r\n'
        + b'event: message\ndata: {"choices":[{"delta":{"reasoning":"why"}}]}\n\n'
        + event("end")
        + DONE
    )
    wire = chunked(*sliced(content, max(size, 5)))

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in sliced(STREAM_HEAD + wire + b"0\r\n\r\n", size):
            writer.write(part)
            if size < 10:
                await asyncio.sleep(0)
        await writer.drain()

    gateway = place.before(scripted(run).url)
    status, body = stream_of(gateway.url, stream_options={"include_usage": True})
    assert (status, body) == (200, content)


def test_a_usage_chunk_that_only_we_asked_for_is_taken_out(place: Place, scripted: Scripted) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'
    engine = scripted(script(STREAM_HEAD, chunked(event("one"), event("two")), chunked(usage + DONE) + b"0\r\n\r\n"))
    gateway = place.before(engine.url)
    _, unasked = stream_of(gateway.url)
    _, asked = stream_of(gateway.url, stream_options={"include_usage": True})
    _, refused = stream_of(gateway.url, stream_options={"include_usage": False})
    assert unasked == refused == event("one") + event("two") + DONE
    assert asked == event("one") + event("two") + usage + DONE
    sent = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in engine.requests]
    assert [s.get("stream_options") for s in sent] == [{"include_usage": True}, {"include_usage": True}, {"include_usage": False}]


def test_an_engine_that_knows_no_stream_options_is_asked_without_from_then_on(place: Place, scripted: Scripted) -> None:
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"stream_options" in engine.requests[-1]:
            writer.write(json_answer({"error": {"message": "unknown field stream_options"}}, 400))
        else:
            writer.write(STREAM_HEAD + chunked(event("one"), DONE) + b"0\r\n\r\n")
        await writer.drain()

    engine = scripted(old)
    gateway = place.before(engine.url)
    for _ in range(3):
        status, body = stream_of(gateway.url)
        assert (status, body) == (200, event("one") + DONE)
    assert len([r for r in engine.requests if b"stream_options" in r]) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    ],
)
def test_an_answer_cut_short_is_502(place: Place, scripted: Scripted, answer: bytes) -> None:
    gateway = place.before(scripted(script(answer, close=True)).url)
    got = httpx.post(f"{gateway.url}{PATH}", json=chat())
    assert got.status_code == 502
    assert got.json()["error"]["type"] == "upstream_error"
    assert gateway.in_flight() == 0


def test_no_usage_is_no_error(place: Place, scripted: Scripted) -> None:
    gateway = place.before(scripted(script(json_answer({"object": "chat.completion", "choices": []}))).url)
    assert httpx.post(f"{gateway.url}{PATH}", json=chat()).status_code == 200


def test_kept_connections_that_the_engine_closes_are_never_noticed(place: Place, scripted: Scripted) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(whole()))
        await writer.drain()
        await asyncio.sleep(0.002)
        writer.close()

    gateway = place.before(scripted(once).url)
    with httpx.Client() as client:
        answers = [client.post(f"{gateway.url}{PATH}", json=chat()).status_code for _ in range(150)]
    assert answers == [200] * 150


def test_a_tier_that_is_down_is_answered_503_at_once(place: Place) -> None:
    gateway = place.before(f"http://127.0.0.1:{closed_port()}", f"http://127.0.0.1:{closed_port()}")
    until(lambda: not any(i["healthy"] for i in gateway.fleet()), what="both engines to be found dead")
    answer = httpx.post(f"{gateway.url}{PATH}", json=chat())
    told = httpx.get(f"{gateway.admin}/admin/requests/{answer.headers['x-request-id']}").json()
    assert [step["what"] for step in told["steps"]] == ["refused"]  # it was never made to wait
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_capacity"
    assert int(answer.headers["retry-after"]) >= 1
    assert httpx.get(f"{gateway.url}/readyz").status_code == 503
    assert httpx.get(f"{gateway.url}/livez").status_code == 200


def test_an_engine_that_accepts_nothing_is_passed_over_within_the_connect_timeout(place: Place, scripted: Scripted) -> None:
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    clients = [socket.socket() for _ in range(4)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(full.getsockname())
    gateway = place.before(f"http://127.0.0.1:{full.getsockname()[1]}", scripted(good).url, timeouts={"connect": "500ms"})
    answers = [httpx.post(f"{gateway.url}{PATH}", json=chat()).status_code for _ in range(4)]
    for client in (*clients, full):
        client.close()
    assert answers == [200] * 4


def test_a_request_that_breaks_every_engine_takes_none_of_them_away(place: Place, scripted: Scripted) -> None:
    """As transformers serve does with a value of the wrong type: 500, though the request is at fault and not the engine."""

    async def touchy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer({"error": "inner trouble"}, 500))
        await writer.drain()

    one, two = scripted(touchy), scripted(touchy)
    gateway = place.before(one.url, two.url)
    answers = [httpx.post(f"{gateway.url}{PATH}", json=chat()).status_code for _ in range(20)]
    assert answers == [502] * 20
    assert [instance["healthy"] for instance in gateway.fleet()] == [True, True]


def test_an_engine_that_fails_what_others_answer_is_left_out(place: Place, scripted: Scripted) -> None:
    broken = scripted(script(*[json_answer({"error": "inner trouble"}, 500)]))
    gateway = place.before(broken.url, scripted(good).url)

    def asked() -> bool:
        assert httpx.post(f"{gateway.url}{PATH}", json=chat()).status_code == 200
        return not next(i["healthy"] for i in gateway.fleet() if i["instance_id"].endswith(broken.url.rsplit(":", 1)[1]))

    with ThreadPoolExecutor(8) as pool:  # several at once: one alone would always go to the engine that has just answered
        until(lambda: any(pool.map(lambda _: asked(), range(8))), what="the broken engine to be left out")
