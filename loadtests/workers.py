"""Several workers: how soon they serve, how evenly the kernel spreads connections, what a scrape costs, and whether a rolling restart loses
anything under load.

    python loadtests/workers.py [--only start,spread,scrape,restart] [--workers 4] [--seconds 60]

Times are wall times: they say little on a machine that has other things to do, so the load average is printed with them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

MODEL = "llama-8b"
ROUNDS = 5


def spawn(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen([sys.executable, "-m", "gateway", *arguments], stdout=output, stderr=output)


def said(child: subprocess.Popen[bytes], log: Path, what: str) -> list[str]:
    while True:
        for line in log.read_text().splitlines():
            if what in line:
                return [word for word in line.split() if word.startswith("http")]
        if child.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.005)


@contextlib.contextmanager
def gateway(workers: int, engines: list[str], **more: Any) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """The process, and both addresses."""
    with tempfile.TemporaryDirectory() as made:
        file, log = Path(made) / "gateway.yaml", Path(made) / "gateway.log"
        pool = {"tier": "premium", "gpu": "H100", "model": MODEL, "instances": engines, "limit": {"start": 256, "pinned": True}}
        config = {"listen": {"port": 0}, "admin": {"port": 0}, "workers": workers, "models": [{"name": MODEL}], "pools": {"premium": pool}}
        file.write_text(json.dumps(config | {"timeouts": {"drain": "30s", "drain_grace": "0s"}} | more))
        child = spawn(log, "serve", str(file))
        try:
            public, admin = said(child, log, "ready:")
            yield child, public.removesuffix("/v1"), admin.removesuffix("/admin/")
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(60.0)


@contextlib.contextmanager
def engine() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as made:
        log = Path(made) / "engine.log"
        child = spawn(log, "engine", "--gpu", "H100", "--model", MODEL, "--port", "0")
        try:
            yield said(child, log, " serving ")[0]
        finally:
            child.terminate()
            child.wait()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(workers: int) -> None:
    """From the process's start to the first 200 of /readyz."""
    port, rows = _free_port(), []
    for _ in range(ROUNDS):
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory() as made:
            pool = f"premium:H100=http://127.0.0.1:{_free_port()}"
            options = ["--workers", str(workers), "--port", str(port), "--admin-port", "0", "--model", MODEL, "--pool", pool]
            child = spawn(Path(made) / "log", "serve", *options)
            ready_s = cpu = 0.0
            while not ready_s:
                if _is_ready(port):
                    ready_s, cpu = time.monotonic() - began_s, cpu_s(child.pid)
                time.sleep(0.005)
            said(child, Path(made) / "log", "ready:")
            all_s = time.monotonic() - began_s
            child.send_signal(signal.SIGTERM)
            child.send_signal(signal.SIGTERM)  # twice: at once
            child.wait()
        rows.append((ready_s, all_s, cpu))
    ready, every, cpus = (sorted(row[n] for row in rows) for n in range(3))
    middle = ROUNDS // 2
    print(
        f"start    {workers} workers: /readyz after {ready[middle]:.2f} s (best {ready[0]:.2f}), all serve after {every[middle]:.2f} s"
        f" (best {every[0]:.2f}); CPU of the first process until then {cpus[middle]:.2f} s; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def body(tokens: int, stream: bool) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens, "stream": stream}


async def spread(workers: int) -> None:
    """How many of so many kept connections each worker has."""
    with engine() as url, gateway(workers, [url]) as (_, public, admin):
        for connections in (4, 16, 64, 256):
            async with contextlib.AsyncExitStack() as stack:
                limits = httpx.Limits(max_connections=1)
                clients = [await stack.enter_async_context(httpx.AsyncClient(limits=limits, trust_env=False)) for _ in range(connections)]
                for client in clients:
                    await client.get(f"{public}/livez")
                told = (await clients[0].get(f"{admin}/admin/workers")).json()["workers"]
                print(f"spread   {connections} connections: {sorted(worker['connections'] for worker in told)}", flush=True)


async def scrape(workers: int) -> None:
    """How late a worker's own timers are while /metrics is read ten times a second, by the worker that answers and by the others."""
    catalog = _use_cases()
    with engine() as url, gateway(workers, [url]) as (_, public, admin):
        for use_case, name in catalog:
            headers = {"x-slo-use-case": use_case, "x-slo-class": name}
            async with httpx.AsyncClient(headers=headers) as client:  # a connection each
                for _ in range(3):
                    await client.post(f"{public}/v1/chat/completions", json=body(2, False), timeout=60.0)
        async with httpx.AsyncClient(timeout=10.0) as client:
            series, took = 0, []
            await asyncio.sleep(3.0)
            for _ in range(50):
                began_s = time.monotonic()
                text = (await client.get(f"{admin}/metrics")).text
                took.append(time.monotonic() - began_s)
                series = sum(not line.startswith("#") for line in text.splitlines())
                await asyncio.sleep(0.1)
            lag = [worker["loop_lag_s"] for worker in (await client.get(f"{admin}/admin/workers")).json()["workers"]]
        took.sort()
        print(
            f"scrape   {series} series of {workers} workers: {took[25] * 1e3:.1f} ms in the middle, {took[-2] * 1e3:.1f} ms at worst; "
            f"lateness of the workers' timers {[f'{one * 1e3:.1f}' for one in lag]} ms; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )


def _use_cases() -> list[tuple[str, str]]:
    from gateway.config.load import shipped_catalog

    catalog = shipped_catalog()
    return [(name, one) for name in catalog.use_cases for one in catalog.classes][:24]


async def restart(workers: int, seconds: float) -> None:
    """Rolling restarts without a pause; every request that fails is told."""
    wrong: list[str] = []
    done: Counter[str] = Counter()
    stop = asyncio.Event()
    with engine() as url, gateway(workers, [url]) as (_, public, admin):
        host, port = public.removeprefix("http://").split(":")

        async def once(kind: str, tokens: int, stream: bool, line: Any) -> Any:
            data = json.dumps(body(tokens, stream)).encode()
            try:
                reader, writer = line or await asyncio.open_connection(host, int(port))
                head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slo-class: batch\r\ncontent-length: {len(data)}\r\n\r\n"
                writer.write(head.encode() + data)
                status = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30.0)
                if not status.startswith(b"HTTP/1.1 200"):
                    wrong.append(f"{kind}: {status[:60]!r}")
                    return None
                if stream:
                    text = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 30.0)
                    if b"[DONE]" not in text:
                        wrong.append(f"{kind}: no end")
                else:
                    length = next(int(field[15:]) for field in status.lower().split(b"\r\n") if field.startswith(b"content-length:"))
                    await asyncio.wait_for(reader.readexactly(length), 30.0)
            except (OSError, EOFError, TimeoutError) as error:
                wrong.append(f"{kind}: {error!r}")
                return None
            done[kind] += 1
            if kind == "kept":
                return reader, writer
            writer.close()
            return None

        async def go(kind: str, tokens: int, stream: bool, pause_s: float) -> None:
            line = None
            while not stop.is_set():
                line = await once(kind, tokens, stream, line)
                await asyncio.sleep(pause_s)

        async def again() -> None:
            until_s = time.monotonic() + seconds
            while time.monotonic() < until_s:
                async with httpx.AsyncClient(timeout=120.0) as client:
                    answer = (await client.post(f"{admin}/admin/restart")).json()
                    done["rolling restarts"] += answer["ok"]
            stop.set()

        kinds = [("new", 1, False, 0.0)] * 20 + [("kept", 1, False, 0.01)] * 30 + [("stream", 100, True, 0.0)] * 20
        await asyncio.gather(again(), *(go(*kind) for kind in kinds))
        print(f"restart  {workers} workers, {seconds:.0f} s: {dict(done)}, wrong: {len(wrong)} {wrong[:5]}; load {os.getloadavg()[0]:.1f}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--only", default="start,spread,scrape,restart")
    arguments.add_argument("--workers", type=int, default=4)
    arguments.add_argument("--seconds", type=float, default=60.0)
    asked = arguments.parse_args()
    names = asked.only.split(",")
    if "start" in names:
        for workers in sorted({1, 2, asked.workers}):
            start(workers)
    if "spread" in names:
        asyncio.run(spread(asked.workers))
    if "scrape" in names:
        asyncio.run(scrape(asked.workers))
    if "restart" in names:
        asyncio.run(restart(asked.workers, asked.seconds))


if __name__ == "__main__":
    main()
