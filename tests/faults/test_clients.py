"""Clients that leave, dawdle, flood or lie: nothing is left behind, and the next request is served."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import httpx
import pytest

from tests.conftest import (
    DONE,
    HANG_S,
    STREAM_HEAD,
    Place,
    Process,
    Script,
    ScriptedEngine,
    chat,
    chunked,
    event,
    json_answer,
    until,
    whole,
)
from tests.openai.hostile_rows import NO_CHUNKS, NO_REQUESTS, TWO_READINGS

Scripted = Callable[[Script], ScriptedEngine]
PATH = "/v1/chat/completions"


async def good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(json_answer(whole("good")))
    await writer.drain()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD)
    while True:
        writer.write(chunked(event("word")))
        await writer.drain()
        await asyncio.sleep(0.005)


def request(body: object, *fields: str) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = "\r\n".join([f"POST {PATH} HTTP/1.1", "host: a", f"content-length: {len(raw)}", *fields])
    return head.encode() + b"\r\n\r\n" + raw


def connect(gateway: Process) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=HANG_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def talk(gateway: Process, *parts: bytes, pause_s: float = 0.0) -> bytes:
    with connect(gateway) as sock:
        for part in parts:
            try:
                sock.sendall(part)
            except OSError:
                break
            if pause_s:
                time.sleep(pause_s)
        answer = b""
        try:
            while data := sock.recv(65536):
                answer += data
        except TimeoutError:
            answer += b"<open>"
        except OSError:
            pass
        return answer


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_during_prefill_closes_the_engines_connection(place: Place, scripted: Scripted, stream: bool) -> None:
    engine = scripted(silent)
    gateway = place.before(engine.url)
    sock = connect(gateway)
    sock.sendall(request(chat(stream=stream)))
    until(lambda: engine.requests)
    sock.close()
    until(lambda: engine.closed and gateway.in_flight() == 0)
    assert len(engine.requests) == 1  # nobody tried again for who is gone


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_in_mid_stream_closes_the_engines_connection(place: Place, scripted: Scripted, reset: bool) -> None:
    engine = scripted(endless)
    gateway = place.before(engine.url)
    sock = connect(gateway)
    sock.sendall(request(chat(stream=True)))
    assert sock.recv(100)
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    until(lambda: engine.closed and gateway.in_flight() == 0)


def test_a_client_that_leaves_the_queue_is_never_sent_to_an_engine(place: Place, scripted: Scripted) -> None:
    engine = scripted(endless)
    gateway = place.before(engine.url, limit=1)
    holder, waiter = connect(gateway), connect(gateway)
    holder.sendall(request(chat(stream=True)))
    assert holder.recv(100)
    waiter.sendall(request(chat(stream=True), "x-slo-class: batch"))
    until(lambda: gateway.waiting() == 1)
    waiter.close()
    until(lambda: gateway.waiting() == 0)
    holder.close()
    until(lambda: gateway.in_flight() == 0)
    assert len(engine.requests) == 1


def test_random_departures_leave_nothing_behind(place: Place, scripted: Scripted) -> None:
    async def one_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await chance.choice((good, silent, endless))(reader, writer)

    chance = random.Random(7)
    engine = scripted(one_of)
    gateway = place.before(engine.url, limit=12)
    before = gateway.rss_bytes()

    async def leave(number: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        kind = "x-slo-class: batch" if number % 3 else "x-slo-class: instant"
        raw = request(chat(stream=number % 2 == 0), kind)
        writer.write(raw[: chance.choice((len(raw), len(raw), len(raw) // 2, 20))])
        await asyncio.sleep(chance.random() * 0.1)
        if chance.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()

    async def everybody() -> None:
        for _ in range(10):
            await asyncio.gather(*(leave(number) for number in range(30)))

    asyncio.run(everybody())
    until(lambda: gateway.in_flight() == 0 and gateway.waiting() == 0, what="slots and queues to be empty")
    until(lambda: engine.open <= 13, what="the engine's connections to be closed")
    assert gateway.rss_bytes() - before < 30_000_000


def test_two_requests_at_once_on_one_connection_are_answered_in_order(place: Place, scripted: Scripted) -> None:
    gateway = place.before(scripted(good).url)
    raw = request(chat()) + request(chat(), "x-request-id: second") + b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    answer = talk(gateway, raw)
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.index(b"second") > answer.index(b'"good"')


def test_requests_come_in_any_pieces(place: Place, scripted: Scripted) -> None:
    gateway = place.before(scripted(good).url)
    raw = request(chat(), "connection: close")
    for size in (1, 2, 11, 60):
        with connect(gateway) as sock:
            for at in range(0, len(raw), size):
                sock.sendall(raw[at : at + size])
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_chunked_request_is_read(place: Place, scripted: Scripted) -> None:
    engine = scripted(good)
    gateway = place.before(engine.url)
    body = json.dumps(chat()).encode()
    raw = f"POST {PATH} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n".encode()
    answer = talk(gateway, raw, chunked(body[:10], body[10:]), b"0\r\nX-Trailer: dropped\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"transfer-encoding" not in engine.requests[0].lower()
    assert engine.requests[0].endswith(body)


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"content-length: 36\r\ntransfer-encoding: chunked\r\n", 400),
        (b"content-length: 0\r\ncontent-length: 36\r\n", 400),
        (b"transfer-encoding: gzip, chunked\r\n", 400),
        (b"transfer-encoding: identity\r\n", 400),
        (b"connection: upgrade\r\nupgrade: foo\r\ncontent-length: 36\r\n", 400),
        (b"connection: upgrade\r\nupgrade: h2c\r\ntransfer-encoding: chunked\r\n", 400),
        (b"content-length : 36\r\n", 400),
        (b"x: a\r\n folded\r\n", 400),
        (b"expect: something\r\ncontent-length: 36\r\n", 417),
        (b"content-encoding: gzip\r\ncontent-length: 36\r\n", 415),
        (b"content-length: 99999999\r\n", 413),
        (b"x: " + b"a" * 20_000 + b"\r\n", 431),
        (b"a: b\r\n" * 120, 431),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_what_could_smuggle_is_refused_and_nothing_after_it_is_read(shared_place: Place, head: bytes, status: int, together: bool) -> None:
    gateway = _quiet(shared_place)
    start = f"POST {PATH} HTTP/1.1\r\nhost: a\r\n".encode() + head + b"\r\n"
    answer = talk(gateway, start + SMUGGLED) if together else talk(gateway, start, SMUGGLED, pause_s=0.02)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer
    assert b"<open>" not in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("together", [True, False], ids=["in one piece", "in two"])
@pytest.mark.parametrize("fields", TWO_READINGS)
def test_a_head_with_two_readings_ends_the_connection_however_it_is_cut(shared_place: Place, fields: bytes, together: bool) -> None:
    only_refused(shared_place, f"POST {PATH} HTTP/1.1\r\nHost: a\r\n".encode() + fields + b"\r\n", together)


@pytest.mark.parametrize("together", [True, False], ids=["in one piece", "in two"])
@pytest.mark.parametrize("head", NO_REQUESTS)
def test_what_is_no_request_ends_the_connection_however_it_is_cut(shared_place: Place, head: bytes, together: bool) -> None:
    only_refused(shared_place, head.replace(b" / HTTP", f" {PATH} HTTP".encode()), together)


@pytest.mark.parametrize("together", [True, False], ids=["in one piece", "in two"])
@pytest.mark.parametrize("wire", NO_CHUNKS)
def test_a_body_that_is_not_chunked_ends_the_connection_however_it_is_cut(shared_place: Place, wire: bytes, together: bool) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    only_refused(shared_place, head + wire, together)


def only_refused(shared_place: Place, start: bytes, together: bool) -> None:
    """A 400 and a close, and what came behind was read by nobody."""
    parts = (start + SMUGGLED,) if together else (start, SMUGGLED)
    answer = talk(_quiet(shared_place), *parts, pause_s=0.0 if together else 0.01)
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"<open>" not in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"X-A: " + b"a" * 65536 + b"\r\n", 431),
        (b"X-A: " + b"a" * 8 * 2**20 + b"\r\n", 431),
        (b"A: b\r\n" * 10_000, 431),
        (b"A: b\r\n" * 101, 431),
    ],
    ids=["64 KiB", "8 MiB", "ten thousand fields", "one field too many"],
)
def test_a_head_beyond_the_limits_is_431_and_costs_no_memory(shared_place: Place, head: bytes, status: int) -> None:
    gateway = _quiet(shared_place)
    before = gateway.rss_bytes()
    answer = talk(gateway, f"POST {PATH} HTTP/1.1\r\nHost: a\r\n".encode() + head + b"\r\n")
    # A reset may overtake the answer while megabytes are still being sent.
    assert answer.startswith(b"HTTP/1.1 %d " % status) or (answer == b"" and len(head) > 2**20)
    assert gateway.rss_bytes() - before < 4_000_000


def test_a_tunnel_is_not_for_the_asking(shared_place: Place) -> None:
    answer = talk(_quiet(shared_place), b"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n" + SMUGGLED)
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_continue_is_not_said_to_a_stranger(place: Place, scripted: Scripted) -> None:
    engine = scripted(good)
    pool = {"tier": "premium", "gpu": "H100", "model": "llama-8b", "instances": [engine.url]}
    gateway = place.gateway(place.config({"premium": pool}, keys=[{"id": "one", "key": "${TEST_KEY}"}]), env={"TEST_KEY": "gw-one"})
    raw = request(chat(), "expect: 100-continue", "authorization: Bearer wrong")
    answer = talk(gateway, raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"100 Continue" not in answer


def _quiet(shared_place: Place) -> Process:
    if not shared_place.processes:
        shared_place.before("http://127.0.0.1:9")
    return shared_place.processes[0]


@pytest.mark.parametrize(
    "path", ["/v1/../admin/slo", "/v1//models", "/V1/models", "/v1/chat/completions/", "http://other/v1/models", "/admin/slo"]
)
def test_only_exact_paths_lead_anywhere(shared_place: Place, path: str) -> None:
    answer = talk(_quiet(shared_place), f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b'"error"' in answer


def test_the_wrong_method_is_told_the_right_one(shared_place: Place) -> None:
    answer = httpx.get(f"{_quiet(shared_place).url}{PATH}")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


def test_continue_is_said_only_when_the_body_will_be_read(place: Place, scripted: Scripted) -> None:
    gateway = place.before(scripted(good).url)
    raw = request(chat(), "expect: 100-continue", "connection: close")
    head, _, body = raw.partition(b"\r\n\r\n")
    with connect(gateway) as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    big = f"POST {PATH} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 99999999\r\n\r\n".encode()
    assert talk(gateway, big).startswith(b"HTTP/1.1 413")


def test_a_head_or_body_that_does_not_come_is_408_and_closed(place: Place, scripted: Scripted) -> None:
    gateway = place.before(scripted(good).url, timeouts={"header": "300ms", "body_base": "300ms", "keep_alive": "300ms"})
    slow_head = talk(gateway, b"POST / HT")
    slow_body = talk(gateway, request(chat())[:-5])
    idle = talk(gateway)
    assert slow_head.startswith(b"HTTP/1.1 408")
    assert slow_body.startswith(b"HTTP/1.1 408")
    assert idle == b""


def test_a_client_that_never_reads_is_given_up_and_its_memory_bounded(place: Place, scripted: Scripted) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(chunked(event("x" * 10_000)))
            await writer.drain()

    engine = scripted(flood)
    gateway = place.before(engine.url, timeouts={"slow_reader": "500ms"})
    before = gateway.rss_bytes()
    sock = connect(gateway)
    sock.sendall(request(chat(stream=True)))
    until(lambda: engine.closed, what="the flood to be stopped")
    assert gateway.rss_bytes() - before < 8_000_000
    until(lambda: gateway.in_flight() == 0)
    sock.close()


def test_a_reload_is_not_noticed_by_streams_and_a_bad_file_is_refused(place: Place, scripted: Scripted) -> None:
    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for _ in range(60):
            writer.write(chunked(event("word")))
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.write(chunked(DONE) + b"0\r\n\r\n")
        await writer.drain()

    old, new = scripted(slowly), scripted(good)
    gateway = place.before(old.url)
    file = place.folder / "gateway-0.yaml"
    config = json.loads(file.read_text())
    with httpx.stream("POST", f"{gateway.url}{PATH}", json=chat(stream=True)) as answer:
        file.write_text('{"models": 3}')
        refused = httpx.post(f"{gateway.admin}/admin/reload")
        config["pools"]["premium"]["instances"] = [new.url]
        file.write_text(json.dumps(config))
        taken = httpx.post(f"{gateway.admin}/admin/reload")
        during = httpx.post(f"{gateway.url}{PATH}", json=chat())
        body = b"".join(answer.iter_raw())
    assert refused.status_code == 422
    assert any("models" in problem for problem in refused.json()["problems"])
    assert taken.json()["ok"]
    assert during.json()["choices"][0]["message"]["content"] == "good"
    assert body.count(b"word") == 60
    assert body.endswith(b"[DONE]\n\n")
    assert [i["instance_id"].split("/")[1] for i in gateway.fleet()] == [new.url.removeprefix("http://")]


def test_requests_are_answered_while_a_large_file_is_read(place: Place, scripted: Scripted) -> None:
    """A loop that read it would answer none before it has."""
    gateway = place.before(scripted(good).url)
    file = place.folder / "gateway-0.yaml"
    keys = [{"id": f"k{number}", "sha256": f"{number:064x}", "tenant": "t"} for number in range(1000)]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"keys": keys, "wrong": True}, indent=1))
    with ThreadPoolExecutor(1) as pool, httpx.Client() as client:
        reloaded = pool.submit(httpx.post, f"{gateway.admin}/admin/reload")
        answered = 0
        while not reloaded.done():
            assert client.post(f"{gateway.url}{PATH}", json=chat()).status_code == 200
            answered += 1
    assert reloaded.result().status_code == 422
    assert answered > 10


def test_pools_come_and_go_under_load_and_no_request_fails(place: Place, scripted: Scripted) -> None:
    """Eighteen reloads at least, each with other instances and every third one of a bad file, while requests and streams run."""

    async def stream_or_not(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, words: int = 5) -> None:
        writer.write(STREAM_HEAD)
        for _ in range(words):
            writer.write(chunked(event("word")))
            await writer.drain()
            await asyncio.sleep(0.004)
        writer.write(chunked(DONE) + b"0\r\n\r\n")
        await writer.drain()

    engines = [scripted(stream_or_not) for _ in range(3)]
    gateway = place.before(engines[0].url)
    file = place.folder / "gateway-0.yaml"
    config = json.loads(file.read_text())
    ended = threading.Event()

    told: list[tuple[int, int]] = []

    def stream_on() -> None:
        with httpx.Client() as client:
            while not ended.is_set():
                answer = client.post(f"{gateway.url}{PATH}", json=chat(stream=True), headers={"x-slo-class": "batch"})
                told.append((answer.status_code, answer.content.count(b"word")))

    with ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(stream_on) for _ in range(6)]
        for number in count():
            if number >= 18 and len(told) > 20 and all(engine.requests for engine in engines):
                break
            if number % 3 == 2:
                file.write_text('{"models": ')
            else:
                config["pools"]["premium"]["instances"] = [engine.url for at, engine in enumerate(engines) if (number + at) % 3]
                file.write_text(json.dumps(config))
            answer = httpx.post(f"{gateway.admin}/admin/reload")
            assert answer.status_code == (422 if number % 3 == 2 else 200)
        ended.set()
        for stream in streams:
            stream.result()
    assert set(told) == {(200, 5)}
    until(lambda: gateway.in_flight() == 0)


def test_a_changed_file_and_a_hangup_are_taken_over(place: Place, scripted: Scripted) -> None:
    gateway = place.before(scripted(good).url)
    file = place.folder / "gateway-0.yaml"
    config = json.loads(file.read_text())
    config["mode"] = "observe"
    file.write_text(json.dumps(config))
    until(lambda: httpx.get(f"{gateway.admin}/admin/version").json()["mode"] == "observe", what="the file to be read again")
    config["mode"] = "enforce"
    file.write_text(json.dumps(config))
    gateway.child.send_signal(signal.SIGHUP)
    until(lambda: httpx.get(f"{gateway.admin}/admin/version").json()["mode"] == "enforce", what="the file to be read again")
    assert gateway.child.poll() is None


@pytest.mark.parametrize("by", ["hangup", "change", "admin"])
def test_a_bad_file_is_refused_loudly_and_the_old_one_goes_on(place: Place, scripted: Scripted, by: str) -> None:
    gateway = place.before(scripted(good).url)
    before = httpx.get(f"{gateway.admin}/admin/config").json()
    (place.folder / "gateway-0.yaml").write_text("models: [{name: llama-8b}]\npools:\n  premium: {teir: premium}\n")
    if by == "hangup":
        gateway.child.send_signal(signal.SIGHUP)
    if by == "admin":
        refused = httpx.post(f"{gateway.admin}/admin/reload")
        assert refused.status_code == 422
        assert any("did you mean 'tier'?" in problem for problem in refused.json()["problems"])
    until(lambda: "did you mean 'tier'?" in gateway.text(), what="the log to name the mistake")
    said = next(line for line in gateway.text().splitlines() if "did you mean 'tier'?" in line)
    assert "gateway-0.yaml:3:13: pools.premium.teir: no such key" in said
    assert httpx.get(f"{gateway.admin}/admin/config").json() == before
    assert httpx.post(f"{gateway.url}{PATH}", json=chat()).status_code == 200
    assert "\nslo_gateway_config_last_reload_successful 0\n" in httpx.get(f"{gateway.admin}/metrics").text


def test_a_termination_lets_streams_finish(place: Place, scripted: Scripted) -> None:
    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for _ in range(20):
            writer.write(chunked(event("word")))
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.write(chunked(DONE) + b"0\r\n\r\n")
        await writer.drain()

    gateway = place.before(scripted(slowly).url, timeouts={"drain": "90s"})
    with httpx.stream("POST", f"{gateway.url}{PATH}", json=chat(stream=True)) as answer:
        gateway.child.send_signal(signal.SIGTERM)
        body = b"".join(answer.iter_raw())
    assert body.count(b"word") == 20
    assert body.endswith(b"[DONE]\n\n")
    assert gateway.child.wait(HANG_S) == 0


def test_an_answer_that_cannot_finish_in_time_is_told_so(place: Place, scripted: Scripted) -> None:
    gateway = place.before(scripted(endless).url, timeouts={"drain": "300ms"})
    with httpx.stream("POST", f"{gateway.url}{PATH}", json=chat(stream=True)) as answer:
        gateway.child.send_signal(signal.SIGTERM)
        body = b"".join(answer.iter_raw())
    assert b'"error"' in body
    assert b"[DONE]" not in body
    assert gateway.child.wait(HANG_S) == 1


def test_a_prompt_is_in_no_log_metric_or_error(place: Place, scripted: Scripted) -> None:
    canary = "canary-5b1c-prompt"
    log = place.folder / "requests.jsonl"
    gateway = place.before(scripted(good).url, telemetry={"request_log": str(log)})
    httpx.post(f"{gateway.url}{PATH}", json=chat(messages=[{"role": "user", "content": canary}]))
    bad = httpx.post(f"{gateway.url}{PATH}", content=b'{"model": "llama-8b", "messages": [{"content": "' + canary.encode() + b'"')
    until(lambda: log.exists() and log.read_text(), what="the request log")
    request_id = json.loads(log.read_text().splitlines()[0])["request_id"]
    said = [
        gateway.text(),
        log.read_text(),
        bad.text,
        httpx.get(f"{gateway.url}/metrics").text,
        httpx.get(f"{gateway.admin}/admin/requests/{request_id}").text,
        httpx.get(f"{gateway.admin}/admin/slo").text,
    ]
    assert bad.status_code == 400
    assert not [text for text in said if canary in text]
