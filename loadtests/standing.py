"""What replicas.py needs before any load: engines in this process, a fleet for the mix and one for short requests, and gateways in
processes of their own."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.config.gpus import shipped_gpus
from gateway.simulate.engine import Engine, serve
from gateway.simulate.machine import MachineFacts

MODEL = "llama-8b"
FLEET = (("premium", "H100", "", 5), ("balanced", "L40S", "w8", 2), ("cost", "A10", "w4", 2))  # pool, GPU, configuration, instances
SHORT = "short"
START_S = 60.0  # for a gateway to be there


async def engines(limit: int) -> tuple[list[Engine], dict[str, Any], list[asyncio.Server]]:
    """Those of the mix, then the one for short requests."""
    made, pools, servers = [], {}, []
    for pool, gpu, engine_config, count in (*FLEET, (SHORT, "H100", "", 1)):
        facts = shipped_gpus().find(gpu)
        assert facts is not None
        times = facts.step_times(engine_config)
        assert times is not None
        model, machine = MODEL, MachineFacts(times.a, times.b, times.c, times.d, prefix_cache=True)
        if pool == SHORT:
            model, machine = SHORT, MachineFacts(1.0, 0.0, 0.0, 0.0, overhead_s=0.0, jitter_ratio=0.0)
        urls = []
        for _ in range(count):
            engine = Engine(model, machine, seed=len(made))
            server = await serve(engine, "127.0.0.1", 0)
            made.append(engine)
            servers.append(server)
            urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        pools[pool] = {
            "tier": "premium" if pool == SHORT else pool,
            "gpu": gpu,
            "engine_config": engine_config,
            "model": model,
            "instances": urls,
            "limit": {"start": 64 if pool == SHORT else limit, "pinned": True},
        }
    return made, pools, servers


class RowFailed(Exception):
    """This row has no figures."""


@dataclass
class Gateway:
    child: subprocess.Popen[bytes]
    url: str
    admin: str


async def gateway(folder: Path, number: int, pools: dict[str, Any], url: str, workers: int = 1, **more: Any) -> Gateway:
    """One that shares through `url`, or nothing if that is empty; `more` is of its configuration."""
    file, log = folder / f"gateway-{number}.yaml", folder / f"gateway-{number}.log"
    models = [{"name": MODEL}, {"name": SHORT}]
    config = {"listen": {"port": 0}, "admin": {"port": 0}, "models": models, "pools": pools, "workers": workers}
    config |= {"state": {"url": url}} if url else {}
    file.write_text(json.dumps(config | {"timeouts": {"drain": "1s", "drain_grace": "0s"}} | more))
    with log.open("wb") as output:
        child = subprocess.Popen([sys.executable, "-m", "gateway", "serve", str(file)], stdout=output, stderr=output)
    until_s = time.monotonic() + START_S
    while True:
        line = next((line for line in log.read_text().splitlines() if "ready:" in line), "")
        if line:
            urls = [word for word in line.split() if word.startswith("http")]
            return Gateway(child, urls[0].removesuffix("/v1"), urls[-1].removesuffix("/admin/"))
        if child.poll() is not None or time.monotonic() > until_s:
            child.kill()
            raise RowFailed(f"gateway {number} did not start: {log.read_text()[-2000:]}")
        await asyncio.sleep(0.02)


async def ended(started: list[Gateway]) -> None:
    """They are told to go, and gone."""
    for one_of_them in started:
        one_of_them.child.send_signal(signal.SIGTERM)
    for one_of_them in started:
        try:
            await asyncio.to_thread(one_of_them.child.wait, 20.0)
        except subprocess.TimeoutExpired:
            one_of_them.child.kill()
