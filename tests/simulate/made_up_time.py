"""A gateway that serves, its engines and its callers in one process on real sockets, with a clock that jumps from timer to timer.

    python tests/simulate/made_up_time.py FOLDER < {"engines": [...], "config": {...}, "shots": [...], "span_s": 20}

Time stands still while anything can still happen and then jumps to the next timer, so that a busy machine delays nothing and an hour takes
as long as its work. Everything else is as ever: the process's own start, ports, signals and drain, every byte over loopback. Writes
gateway.yaml and requests.jsonl into FOLDER, and what callers saw to the standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

# A jump is made when nothing has come for this long of real time: bytes on loopback may lag behind the call that sends them.
SETTLES_S = 0.0


class Clock:
    """Seconds since some moment."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Jumping(selectors.DefaultSelector):
    """Where a loop would sleep, its clock goes on instead."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if found or timeout == 0:
            return found
        found = super().select(SETTLES_S)
        if found or timeout is None:
            return found
        self.clock.now_s += timeout
        return super().select(0)


def in_made_up_time(main: Coroutine[Any, Any, None]) -> None:
    """Run it on a clock of its own. Before anything that reads `time.monotonic` by name is imported."""
    clock = time.monotonic = Clock()  # type: ignore[assignment]
    loop = asyncio.SelectorEventLoop(Jumping(clock))
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main)


async def drive(folder: Path, said: dict[str, Any]) -> None:
    from gateway.cli.engine import facts_of
    from gateway.config.load import load
    from gateway.load.bodies import Shot
    from gateway.load.client import Gun, Shown
    from gateway.serve import process
    from gateway.simulate.engine import Engine, serve

    for seed, one in enumerate(said["engines"], said["jitter_seed"]):
        server = await serve(Engine(said["model"], facts_of(one["gpu"], one["engine_config"]), seed), "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        said["config"]["pools"][one["pool"]].setdefault("instances", []).append(url)
    file = folder / "gateway.yaml"
    file.write_text(json.dumps(said["config"] | {"telemetry": {"request_log": str(folder / "requests.jsonl")}}))
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(process._run(load(file), None, None, lambda public, admin: ready.set_result(public)))
    await asyncio.wait([ready, serving], return_when=asyncio.FIRST_COMPLETED)
    shown: list[Shown] = []
    shots = [Shot(one["at_s"], "/v1/chat/completions", one["body"].encode(), one["use_case"], one["tokens"]) for one in said["shots"]]
    await Gun(f"http://127.0.0.1:{ready.result()}", shown.append, tagged=True).fire(shots, said["span_s"])
    os.kill(os.getpid(), signal.SIGTERM)
    await serving
    print(json.dumps([{"status": s.status, "error": s.error, "ttft_s": s.ttft_s, "e2e_s": s.e2e_s} for s in shown]))


if __name__ == "__main__":
    in_made_up_time(drive(Path(sys.argv[1]), json.load(sys.stdin)))
