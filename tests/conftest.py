"""A gateway and engines in processes of their own, on free ports, and engines that do exactly what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings

from gateway.config.load import shipped_catalog

# A busy machine is no reason to fail: what has to be fast is measured in loadtests/.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

MODEL = "llama-8b"
HANG_S = 90.0
"""What has not come after this long never will. No promise is measured by it: a busy machine may take 50 times as long as a quiet one."""
# httpx would give up after 5 s.
_patience: httpx.Timeout = inspect.signature(httpx.get).parameters["timeout"].default
_patience.connect = _patience.read = _patience.write = _patience.pool = HANG_S
SHIPPED: dict[str, Any] = {"use_cases": {}, "classes": {}}
"""The promises that ship, for `Place.config`: where a test is about what is late"""
_EASY = {"ttft": "100s", "itl": "10s"}
EASY: dict[str, Any] = {
    "use_cases": {name: {"targets": _EASY | {"e2e": "1000s"}} for name in shipped_catalog().use_cases},
    "classes": {name: {"tolerance": _EASY} for name in shipped_catalog().classes},
}
"""Promises that are kept on a machine that has hardly any time for them: nothing is refused, cut or missed for its slowness"""
WAITS = ("header", "body_base", "connect", "probe", "head_hold", "slow_reader")
PATIENCE = {"drain": "5s", "drain_grace": "0s"} | dict.fromkeys(WAITS, "90s")
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def until(true: Callable[[], Any], within_s: float = HANG_S, what: str = "") -> Any:
    """Wait for something to become true; what it then is."""
    end_s = time.monotonic() + within_s
    while True:
        value = true()
        if value:
            return value
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {within_s} s: {what or true}")
        threading.Event().wait(0.01)


@dataclass
class Process:
    """A child, its log, and the addresses it has said."""

    child: subprocess.Popen[bytes]
    log: Path
    url: str = ""
    admin: str = ""

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            return self.child.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()

    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.child.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1].split("/")[0])

    def fleet(self) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = httpx.get(f"{self.admin}/admin/fleet").json()
        return answer

    def in_flight(self) -> int:
        return sum(instance["in_flight"] for instance in self.fleet())

    def waiting(self) -> int:
        return sum(queue["requests"] for queue in httpx.get(f"{self.admin}/admin/queues").json())


def spawn(log: Path, *arguments: str, said: str, env: dict[str, str] | None = None) -> Process:
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "gateway", *arguments],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
        )
    process = Process(child, log)

    def line() -> str:
        if child.poll() is not None:
            raise AssertionError(f"it ended with {child.returncode}: {process.text()}")
        return next((text for text in process.text().splitlines() if said in text), "")

    try:
        words = until(line, what=f"{arguments} to say {said!r}").split()
    except BaseException:
        process.stop()
        raise
    urls = [word for word in words if word.startswith("http")]
    process.url = urls[0].removesuffix("/v1")
    process.admin = urls[-1].removesuffix("/admin/")
    return process


@dataclass
class Place:
    """Where processes of one test (or one module) are started, and ended."""

    folder: Path
    processes: list[Process] = field(default_factory=list)
    _number: int = 0

    def _log(self, name: str) -> Path:
        self._number += 1
        return self.folder / f"{name}-{self._number}.log"

    def engine(self, gpu: str = "H100", *more: str) -> Process:
        process = spawn(self._log("engine"), "engine", "--gpu", gpu, "--model", MODEL, "--port", "0", *more, said=" serving ")
        self.processes.append(process)
        return process

    def config(self, pools: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Of a gateway that is patient with a slow machine, but for what `more` says."""
        timeouts, state = PATIENCE | more.pop("timeouts", {}), {"timeout": "1s"} | more.pop("state", {})
        return (
            EASY
            | {
                "listen": {"port": 0},
                "admin": {"port": 0},
                "models": [{"name": MODEL, "aliases": {"copilot": {"use_case": "code_completion"}}}],
                "pools": pools,
                "timeouts": timeouts,
                "state": state,
            }
            | more
        )

    def gateway(self, config: dict[str, Any], env: dict[str, str] | None = None) -> Process:
        file = self.folder / f"gateway-{len(self.processes)}.yaml"
        file.write_text(json.dumps(config))
        process = spawn(self._log("gateway"), "serve", str(file), said="ready:", env=env)
        self.processes.append(process)
        return process

    def before(self, *urls: str, limit: int = 64, **more: Any) -> Process:
        """A gateway before engines at these addresses, all of one premium pool with a fixed limit."""
        pool = {"tier": "premium", "gpu": "H100", "model": MODEL, "instances": list(urls), "limit": {"start": limit, "pinned": True}}
        return self.gateway(self.config({"premium": pool}, **more))

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def shared_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("shared"))
    yield made
    made.stop()


class ScriptedEngine:
    """An engine that does what a script says with each connection. GET is answered well whatever it says, or as `pages` has it."""

    def __init__(self, script: Script, pages: dict[str, bytes] | None = None) -> None:
        self.script = script
        self.pages = pages or {}
        self.looked_at: list[str] = []  # by GET
        self.requests: list[bytes] = []
        self.open = 0
        self.closed = 0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(HANG_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()

    async def _listen(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=2**22)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while True:
                request = await read_request(reader)
                if request is None:
                    return
                if request.startswith(b"GET "):
                    path = request.split(b" ")[1].decode()
                    self.looked_at.append(path)
                    writer.write(self.pages.get(path, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"))
                    await writer.drain()
                    continue
                self.requests.append(request)
                await self.script(reader, writer)
                if writer.is_closing():
                    return
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # cancelled by `stop` alone
        finally:
            self.open -= 1
            self.closed += 1
            writer.close()

    def stop(self) -> None:
        async def close() -> None:
            assert self._server is not None
            self._server.close()
            for task in asyncio.all_tasks(self._loop):
                if task is not asyncio.current_task():
                    task.cancel()
            await asyncio.sleep(0)

        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(close(), self._loop).result(HANG_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(HANG_S)
        self._loop.close()


async def read_request(reader: asyncio.StreamReader) -> bytes | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return head + (await reader.readexactly(lengths[0]) if lengths else b"")


@pytest.fixture
def scripted() -> Iterator[Callable[[Script], ScriptedEngine]]:
    made: list[ScriptedEngine] = []

    def make(script: Script) -> ScriptedEngine:
        made.append(ScriptedEngine(script))
        return made[-1]

    yield make
    for engine in made:
        engine.stop()


_reserved: list[socket.socket] = []


def closed_port() -> int:
    """A port that refuses connections for as long as the tests run: bound, so that nobody else is given it, and not listening."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    _reserved.append(sock)
    port: int = sock.getsockname()[1]
    return port


def chat(stream: bool = False, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}], "stream": stream, "max_tokens": 8} | more


def event(text: str) -> bytes:
    delta = json.dumps({"choices": [{"index": 0, "delta": {"content": text}}], "object": "chat.completion.chunk"})
    return f"data: {delta}\n\n".encode()


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def json_answer(value: Any, status: int = 200, more: bytes = b"") -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (status, more, len(body), body)


def whole(text: str = "hello") -> Any:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
