"""Workers come and go, wanted or not: what clients notice of it, and what is still counted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import DONE, HANG_S, MODEL, STREAM_HEAD, Place, Process, ScriptedEngine, chat, chunked, event, json_answer, until, whole
from tests.serve.conftest import Load, alive, ask, children, completed, metrics, pids, store_of, together, told, without_servers

LONG = {"drain": "60s", "drain_grace": "0s", "stall_min": "60s"}


class Held(ScriptedEngine):
    """An engine that begins a stream at once and ends it when it is told to."""

    def __init__(self) -> None:
        self.end = threading.Event()
        super().__init__(self._serve_one)

    async def _serve_one(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b'"stream":true' not in self.requests[-1].replace(b" ", b""):
            writer.write(json_answer(whole()))
            return
        writer.write(STREAM_HEAD + chunked(event("first")))
        while not self.end.is_set():
            await asyncio.sleep(0.01)
        writer.write(chunked(event("last"), DONE) + b"0\r\n\r\n")


class Stream:
    """A long answer, read in a thread; it has begun."""

    def __init__(self, gateway: Process) -> None:
        self.text = self.broken = self.worker = ""
        self._gateway = gateway
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        until(lambda: "first" in self.text or self.broken)

    def _read(self) -> None:
        try:
            with httpx.stream("POST", f"{self._gateway.url}/v1/chat/completions", json=chat(stream=True)) as answer:
                self.worker = answer.headers["x-request-id"][:12]
                for piece in answer.iter_text():
                    self.text += piece
        except httpx.HTTPError as error:
            self.broken = repr(error)

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    @property
    def complete(self) -> bool:
        self._thread.join(HANG_S)
        return "last" in self.text and "[DONE]" in self.text and not self.broken and '"error"' not in self.text


@pytest.fixture(scope="module")
def engine() -> Iterator[Held]:
    made = Held()
    yield made
    made.end.set()
    made.stop()


@pytest.fixture(scope="module")
def gateway(shared_place: Place, engine: Held) -> Process:
    """What the tests do to it, it survives."""
    return together(shared_place, engine.url, timeouts=LONG)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.end.set()
    made.stop()


def offered(gateway: Process) -> float:
    return metrics(gateway)["slo_gateway_requests_total"]


def test_nobody_notices_that_all_workers_are_replaced_under_load(gateway: Process, engine: Held) -> None:
    engine.end.set()
    before = pids(gateway)
    with Load(gateway.port) as load:
        assert httpx.post(f"{gateway.admin}/admin/restart").json() == {"ok": True, "problem": ""}
        so_far = dict(load.done)
        until(lambda: all(load.done[kind] > count + 20 for kind, count in so_far.items()))
    assert load.wrong == []
    until(lambda: not [pid for pid in before if alive(pid)])
    assert told(gateway)["restarts"] == {"crash": 0, "upgrade": 2}
    assert told(gateway)["lost"] == []
    assert completed(gateway) == sum(load.done.values())  # what those that left had counted, too


def test_what_became_of_a_request_can_be_explained_after_its_worker_was_replaced(gateway: Process, engine: Held) -> None:
    engine.end.set()
    ids = [ask(gateway).headers["x-request-id"] for _ in range(30)]
    before = pids(gateway)
    assert httpx.post(f"{gateway.admin}/admin/restart").json()["ok"]
    until(lambda: not [pid for pid in before if alive(pid)])
    for request_id in ids:
        story = httpx.get(f"{gateway.admin}/admin/requests/{request_id}").json()
        assert (story["request_id"], story["steps"][-1]["got"]["result"]) == (request_id, "completed")
    assert httpx.get(f"{gateway.admin}/admin/requests/unknown").status_code == 404


def test_a_signal_replaces_workers_and_long_answers_end_where_they_began(gateway: Process, engine: Held) -> None:
    engine.end.clear()
    before, restarts, count = pids(gateway), told(gateway)["restarts"]["upgrade"], completed(gateway)
    streams = [Stream(gateway) for _ in range(4)]
    gateway.child.send_signal(signal.SIGUSR2)
    until(lambda: told(gateway)["restarts"]["upgrade"] == restarts + 2)
    assert not [stream for stream in streams if stream.over]
    retiring = [worker["pid"] for worker in told(gateway)["workers"] if worker["state"] == "retiring"]
    assert retiring
    assert set(retiring) <= set(before)
    assert ask(gateway).status_code == 200
    engine.end.set()
    assert all(stream.complete for stream in streams)
    until(lambda: not [pid for pid in before if alive(pid)])
    assert completed(gateway) == count + 5


def test_a_killed_worker_takes_only_its_own_requests_with_it_and_is_followed(gateway: Process, engine: Held) -> None:
    engine.end.clear()
    count, restarts = offered(gateway), told(gateway)["restarts"]["crash"]
    streams = [Stream(gateway) for _ in range(6)]
    victim = told(gateway)["workers"][0]
    assert sum(worker["in_flight"] for worker in told(gateway)["workers"]) == 6
    os.kill(victim["pid"], signal.SIGKILL)
    until(lambda: told(gateway)["lost"])
    assert {ask(gateway).status_code for _ in range(10)} == {200}  # new connections do not wait for the next worker
    assert offered(gateway) == count + 10
    engine.end.set()
    broken = [stream for stream in streams if not stream.complete]
    assert len(broken) == victim["in_flight"]
    assert len({stream.worker for stream in broken}) <= 1
    until(lambda: told(gateway)["serving"] == 2)
    follower = told(gateway)["workers"][0]
    assert follower["pid"] != victim["pid"]
    assert follower["instance_id"] == victim["instance_id"]
    [lost] = told(gateway)["lost"]
    assert (lost["pid"], lost["status"]) == (victim["pid"], -9)
    assert 0 < lost["missing_s"] < 2
    assert offered(gateway) == count + 16 - len(broken)
    assert told(gateway)["restarts"]["crash"] == restarts + 1


def test_a_stopped_worker_is_no_hole_in_the_port_and_no_configuration_is_taken_without_it(gateway: Process, shared_place: Place) -> None:
    file = shared_place.folder / "gateway-0.yaml"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"classify": {"fallback": "code_completion"}}))
    stopped, count = pids(gateway)[1], completed(gateway)
    os.kill(stopped, signal.SIGSTOP)
    try:
        refused = httpx.post(f"{gateway.admin}/admin/reload")
        assert (refused.status_code, "worker 1" in refused.json()["problems"][0]) == (422, True)
        until(lambda: "silent" in [worker["state"] for worker in told(gateway)["workers"]])
        assert {ask(gateway).status_code for _ in range(16)} == {200}
        assert httpx.get(f"{gateway.url}/readyz").status_code == 200
    finally:
        os.kill(stopped, signal.SIGCONT)
        file.write_text(json.dumps(config))
    until(lambda: told(gateway)["serving"] == 2)
    assert completed(gateway) == count + 16


def test_a_bad_file_is_refused_by_all_and_who_comes_later_has_the_old_one_too(gateway: Process, shared_place: Place) -> None:
    file = shared_place.folder / "gateway-0.yaml"
    config = json.loads(file.read_text())
    digest, restarts = _digest(gateway), told(gateway)["restarts"]["crash"]
    file.write_text("models: 3")
    assert httpx.post(f"{gateway.admin}/admin/reload").status_code == 422
    assert metrics(gateway)["slo_gateway_config_last_reload_successful"] == 0
    gateway.child.send_signal(signal.SIGHUP)
    until(lambda: "configuration refused, the old one goes on: " in gateway.text())
    os.kill(pids(gateway)[0], signal.SIGKILL)
    until(lambda: told(gateway)["restarts"]["crash"] == restarts + 1 and told(gateway)["serving"] == 2)
    assert {ask(gateway).status_code for _ in range(8)} == {200}
    assert _digest(gateway) == digest
    config["models"][0]["aliases"] = {"renamed": {}}
    file.write_text(json.dumps(config))
    gateway.child.send_signal(signal.SIGHUP)
    until(lambda: _digest(gateway) != digest)
    assert metrics(gateway)["slo_gateway_config_last_reload_successful"] == 1
    assert {ask(gateway, model="renamed").status_code for _ in range(12)} == {200}
    assert {ask(gateway, model="copilot").status_code for _ in range(12)} == {404}


def _digest(gateway: Process) -> str:
    return str(httpx.get(f"{gateway.admin}/admin/version").json()["config_hash"])


def test_the_workers_own_server_is_started_again_when_it_dies(gateway: Process) -> None:
    first = store_of(gateway)
    os.kill(first, signal.SIGKILL)
    until(lambda: _store(gateway) not in (0, first))
    until(lambda: _shares(gateway)["state"] == "shared" and _shares(gateway)["workers"] == 2)
    assert {ask(gateway).status_code for _ in range(4)} == {200}


def _store(gateway: Process) -> int:
    try:
        return store_of(gateway)
    except ValueError:
        return 0


def _shares(gateway: Process) -> dict[str, Any]:
    shares: dict[str, Any] = httpx.get(f"{gateway.admin}/admin/shares").json()
    return shares


def test_a_gateway_that_ends_says_so_at_once_and_finishes_its_answers(place: Place, held: Held) -> None:
    gateway = together(place, held.url, timeouts=LONG | {"drain_grace": "1s"})
    streams = [Stream(gateway) for _ in range(4)]
    gateway.child.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{gateway.admin}/readyz").status_code == 503)
    until(lambda: _closed(gateway))
    assert not [stream for stream in streams if stream.over]
    held.end.set()
    assert all(stream.complete for stream in streams)
    assert gateway.child.wait(HANG_S) == 0


def _closed(gateway: Process) -> bool:
    try:
        assert httpx.get(f"{gateway.url}/readyz").status_code == 503
    except httpx.TransportError:  # refused; or cut, where it was let in just before the port closed
        return True
    return False


def test_a_second_signal_cuts(place: Place, held: Held) -> None:
    gateway = together(place, held.url, timeouts=LONG)
    stream = Stream(gateway)
    gateway.child.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{gateway.admin}/readyz").status_code == 503)
    gateway.child.send_signal(signal.SIGTERM)
    assert gateway.child.wait(HANG_S) == 1
    assert not stream.complete


def test_workers_end_when_their_supervisor_is_killed_but_finish_what_they_have(place: Place, held: Held) -> None:
    gateway = together(place, held.url, timeouts=LONG)
    everybody = children(gateway.child.pid)
    stream = Stream(gateway)
    gateway.child.kill()
    gateway.child.wait()
    until(lambda: _closed_for_all(gateway))
    assert not stream.over
    held.end.set()
    assert stream.complete
    until(lambda: not [pid for pid in everybody if alive(pid)])


def _closed_for_all(gateway: Process) -> bool:
    try:
        httpx.get(f"{gateway.url}/livez")
    except httpx.TransportError:
        return True
    return False


def test_without_any_server_it_says_what_to_install(place: Place) -> None:
    with pytest.raises(AssertionError, match=r"it ended with 78: workers: .*apt-get install redis-server.*state\.url"):
        place.gateway(
            place.config({"premium": {"tier": "premium", "model": MODEL, "instances": ["http://127.0.0.1:9"]}}, workers=2),
            env=without_servers(place.folder),
        )


def test_a_worker_that_cannot_start_fails_the_start(place: Place) -> None:
    nowhere = Path("/proc/nowhere/requests.jsonl")
    with pytest.raises(AssertionError, match=r"(?s)it ended with 1:.*nowhere.*a worker could not start"):
        together(place, "http://127.0.0.1:9", telemetry={"request_log": str(nowhere)})
