"""`slo-gateway serve`, `check` and `init` as an SRE meets them: one line, exit statuses, and words that help."""

from __future__ import annotations

import asyncio
import pty
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.cli.main import VERBS
from tests.conftest import DONE, HANG_S, MODEL, STREAM_HEAD, Place, chat, chunked, event, spawn

PATH = "/v1/chat/completions"


def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments], capture_output=True, text=True, timeout=HANG_S, check=False, **more
    )


def test_one_line_starts_a_gateway_with_two_pools(place: Place) -> None:
    fast, slow = place.engine("H100"), place.engine("A10", "--engine-config", "w4")
    pools = ("--pool", f"premium:H100={fast.url}", "--pool", f"cost:A10:limit=7={slow.url}")
    gateway = spawn(
        place.folder / "line.log", "serve", "--port", "0", "--admin-port", "0", "--model", MODEL, *pools, "--mode", "observe", said="ready:"
    )
    place.processes.append(gateway)
    answer = httpx.post(f"{gateway.url}{PATH}", json=chat())
    fleet = {instance["pool"]: instance for instance in gateway.fleet()}
    assert answer.status_code == 200
    assert (fleet["premium"]["gpu"], fleet["cost"]["gpu"], fleet["cost"]["limit"]) == ("H100", "A10", 7)
    assert httpx.get(f"{gateway.admin}/admin/version").json()["mode"] == "observe"
    assert gateway.stop(signal.SIGINT) == 0


def test_observe_holds_nothing_back_and_refuses_nothing(place: Place, scripted: Any) -> None:
    async def together(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(engine.requests) < 12:  # nobody is answered before all are here: who was held back would never come
            await asyncio.sleep(0.005)
        writer.write(STREAM_HEAD + chunked(event("one"), DONE) + b"0\r\n\r\n")
        await writer.drain()

    engine = scripted(together)
    gateway = place.before(engine.url, limit=1, mode="observe")
    with ThreadPoolExecutor(12) as pool:
        ask = [pool.submit(httpx.post, f"{gateway.url}{PATH}", json=chat(stream=True)) for _ in range(12)]
        answers = [asked.result() for asked in ask]
    assert [answer.status_code for answer in answers] == [200] * 12
    assert {answer.headers["x-slo-pool"] for answer in answers} == {"premium"}
    told = httpx.get(f"{gateway.admin}/admin/slo", params={"window": "1m"}).json()["total"]
    assert (told["offered"], told["refused"]) == (12, {})


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("serve", "--model", "m"), 2, "--pool are needed"),
        (("serve", "nowhere.yaml"), 78, "nowhere.yaml: cannot be read"),
        (("serve", "--model", "m", "--pool", "premium"), 78, "is not NAME[:GPU][:limit=N]=URL"),
        (("serve", "--model", "m", "--pool", "fast=http://a:1"), 78, "neither the name nor the GPU says a tier"),
        (("check", "nowhere.yaml"), 1, "nowhere.yaml: cannot be read"),
        (("init", "--from", "http://127.0.0.1:9"), 3, "no engine answered"),
        (("slo", "--url", "http://127.0.0.1:9"), 3, "is it the admin port?"),
        (("serv",), 2, "did you mean 'serve'?"),
        (("bogus",), 2, "No such command 'bogus'."),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_by_the_exit_status(arguments: tuple[str, ...], status: int, says: str) -> None:
    told = run(*arguments)
    assert told.returncode == status
    assert says in told.stdout + told.stderr
    assert "Traceback" not in told.stderr


def test_a_port_that_is_taken_is_said_and_not_traced(place: Place) -> None:
    engine = place.engine()
    told = run("serve", "--port", str(engine.port), "--admin-port", "0", "--model", "m", "--pool", f"premium={engine.url}")
    assert told.returncode == 2
    assert f"cannot listen on 127.0.0.1:{engine.port}" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_are_for_terminals_that_want_them(tmp_path: Path, env: dict[str, str], coloured: bool) -> None:
    (tmp_path / "bad.yaml").write_text("mod: enforce\n")
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "gateway", "check", str(tmp_path / "bad.yaml")],
        stdout=theirs,
        stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "TERM": "xterm"} | env,
    )
    assert child.wait(HANG_S) == 1
    with open(ours, "rb", buffering=0) as terminal:
        said = terminal.read(4096)
    assert b"did you mean 'mode'?" in said
    assert (b"\x1b[" in said) is coloured


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    told = run(verb, "--help")
    assert told.returncode == 0
    assert told.stdout.startswith("Usage: ")


def test_what_init_writes_passes_check_and_runs(place: Place) -> None:
    engine = place.engine()
    file = place.folder / "made.yaml"
    made = run("init", "--from", engine.url, "--out", str(file))
    again = run("init", "--from", engine.url, "--out", str(file))
    checked = run("check", str(file))
    gateway = spawn(place.folder / "made.log", "serve", str(file), "--port", "0", "--admin-port", "0", said="ready:")
    place.processes.append(gateway)
    assert made.returncode == 0
    assert (again.returncode, "--force" in again.stderr) == (2, True)
    assert checked.returncode == 0, checked.stdout
    assert httpx.post(f"{gateway.url}{PATH}", json=chat()).status_code == 200
