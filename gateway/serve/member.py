"""One worker process of several: the same worker as ever, without an operators' port and without signals of its own. The supervisor tells
it what to do, over a link; it tells what it has counted, and answers for itself.

Begun by supervisor.py with its number, the link, both ends of the pair over which workers hand connections on, and the listening sockets
of all workers. It ends when it is told to, and when the link ends: a worker without a supervisor finishes what it has and goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import uvloop
from starlette.exceptions import HTTPException

import gateway
from gateway.admin.answers import STEP_S
from gateway.config.handed import taken
from gateway.config.loaded import ConfigError, Loaded
from gateway.core import trail
from gateway.serve.accounts import Teller
from gateway.serve.adviser import Pieces
from gateway.serve.link import VERSION, Link, LinkError
from gateway.serve.memory import settled
from gateway.serve.process import drain
from gateway.serve.public_port import PublicPort
from gateway.serve.views import WorkerViews
from gateway.serve.worker import Seat, Worker
from gateway.state.blob import edges_of as listed
from gateway.telemetry.readings import READINGS

log = logging.getLogger("slo_gateway")

TELL_EVERY_S = 1.0
LOOK_S = 0.1  # between looks whether this worker has become ready, or is no more
CELLS_AT_ONCE = 20
STORIES_AT_ONCE = 20
BEGIN_S = 10.0
LAST_WORDS_S = 2.0
ADVICE_S = 150.0  # for a second opinion, those asked for before it included
_PR_SET_PDEATHSIG = 1


class MemberViews(WorkerViews):
    """What the applications' port tells of the whole gateway, whichever worker is asked."""

    def __init__(self, worker: Worker, link: Link) -> None:
        super().__init__(worker)
        self.whole: str | None = None  # why the gateway is not ready; None: nobody has said
        self._link = link
        self._metrics = ""

    def not_ready(self) -> str:
        return self.own_not_ready() if self.whole is None else self.whole

    async def look(self, openmetrics: bool = False) -> None:
        try:
            self._metrics = await self._link.ask("metrics", openmetrics)
        except LinkError as error:
            raise HTTPException(503, f"The workers cannot be asked: {error}.") from None

    def metrics(self, openmetrics: bool = False) -> Iterator[str]:
        yield self._metrics


class LinkedAdviser:
    """The supervisor's."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def ask(self, pieces: Pieces) -> list[float] | None:
        told: list[float] | None = await self._link.ask("advise", pieces, ADVICE_S)
        return told


class Member:
    """One process."""

    def __init__(self, number: int, link: socket.socket, take: socket.socket, give: socket.socket, listening: list[socket.socket]) -> None:
        self.number = number
        self.link = Link(self._told)
        self._sockets = (link, take, give)
        self._listening = listening
        self._teller, self._telling = Teller(), asyncio.Lock()
        self._now, self._going, self._leaving = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._prepared: Loaded | None = None
        self._taking: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Until told to go. The exit status: 1 when answers had to be cut."""
        link, take, _ = self._sockets
        await self.link.open(link)
        linked = asyncio.ensure_future(self.link.run())
        begin = await self.link.ask("begin", {"version": VERSION, "gateway": gateway.__version__}, BEGIN_S)
        seat = Seat(self.number, begin["of"], begin["instance_id"], begin["store_forgets"])
        self.worker = Worker(taken(begin["loaded"]), seat=seat, adviser=LinkedAdviser(self.link))
        self.views = MemberViews(self.worker, self.link)
        self.port = PublicPort(self.views, self.worker.front, self._listening)
        for instance_id in begin["drained"]:
            self.worker.drain(instance_id, True)
        if self.worker.sharing is not None:
            await self.worker.sharing.start()
        self.worker.start(self.views)
        await self.port.start()
        self.views.serving = False
        settled()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._leaving.set)
        linked.add_done_callback(self._alone)
        self.link.tell("ready", self.worker.loaded.digest)
        loop.add_reader(take, self._take, take)
        telling = [asyncio.ensure_future(self._tell_regularly()), asyncio.ensure_future(self._tell_readiness())]
        await self._leaving.wait()
        cut = await self._leave()
        loop.remove_reader(take)
        for task in telling:
            task.cancel()
        await self.port.stop(self._now.is_set())
        await self.worker.keep_learnt()
        self.worker.stop()
        if self.worker.sharing is not None:
            await self.worker.sharing.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._last_words(), LAST_WORDS_S)
        return 1 if cut else 0

    def _alone(self, _: object) -> None:
        """The supervisor has ended, whatever became of it."""
        self._going.set()
        self._leaving.set()

    async def _leave(self) -> int:
        if self.link.ended:
            # Whoever starts the gateway anew wants the port: no time for load balancers to notice.
            self.views.draining = True
            return await self.port.leave(self._now, self.worker.loaded.settings.timeouts.drain_s)
        if self._going.is_set():
            return await drain(self.worker, self.views, self.port, self._now)
        self.link.tell("retiring")
        asyncio.get_running_loop().remove_reader(self._sockets[1])  # or it would take what it has just given
        return await self.port.leave(self._now, self.worker.loaded.settings.timeouts.drain_s, self._sockets[2], self._going)

    async def _last_words(self) -> None:
        self.link.tell("bye", await self._figures(every=False))
        await self.link.flushed()
        if not self._going.is_set():  # else nobody is there to ask
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._remembered(), LAST_WORDS_S / 2)
        self.link.close()
        await asyncio.sleep(0.02)

    async def _remembered(self) -> None:
        """Tell why requests went as they did, the last ones first."""
        told: list[tuple[str, bytes]] = []
        for ticket in self.worker.live.core.trails.newest():
            told.append((ticket.request.request_id, msgspec.json.encode(trail.tell(ticket))))
            if len(told) >= STORIES_AT_ONCE:
                self.link.tell("remembered", told)
                told = []
                await self.link.flushed()
                await asyncio.sleep(0)
        self.link.tell("remembered", told)
        await self.link.flushed()

    def _take(self, take: socket.socket) -> None:
        try:
            _, given, _, _ = socket.recv_fds(take, 16, 1)
        except (BlockingIOError, OSError):  # another worker was faster
            return
        for number in given:
            task = asyncio.ensure_future(self._taken(socket.socket(fileno=number)))
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    async def _taken(self, connection: socket.socket) -> None:
        try:
            await self.port.take(connection)
        except OSError:
            connection.close()  # its client has gone meanwhile

    # ---- what it tells

    async def _tell_regularly(self) -> None:
        while True:
            self.link.tell("figures", await self._figures(every=False))
            await self.link.flushed()  # a supervisor that does not read is not told more and more
            await asyncio.sleep(TELL_EVERY_S)

    async def _tell_readiness(self) -> None:
        said: str | None = None
        while True:
            reason = self.views.own_not_ready()
            if reason != said:
                said = reason
                self.link.tell("reason", reason)
            await asyncio.sleep(LOOK_S)

    async def _figures(self, every: bool) -> dict[str, Any]:
        """Tell the cells that have changed, and return what else there is: all readings, or only those that add up over time."""
        async with self._telling:
            edges = listed(self.worker.attainment.edges)
            cells: list[Any] = []
            until_s = time.perf_counter() + STEP_S
            for told in self._teller.changed(self.worker.attainment.cells):
                if told is not None:
                    cells.append(told)
                if len(cells) >= CELLS_AT_ONCE:
                    self.link.tell("cells", [edges, cells])
                    cells = []
                if time.perf_counter() >= until_s:
                    await asyncio.sleep(0)
                    until_s = time.perf_counter() + STEP_S
            if cells:
                self.link.tell("cells", [edges, cells])
            readings: dict[str, Any] = {}
            keys = [cell.key for cell in self.worker.attainment.cells.values()]
            for metric in READINGS:
                if every or metric.kind == "counter":
                    readings[metric.name] = [(labels, float(figure)) for labels, figure in metric.of(self.views, keys)]
                    if time.perf_counter() >= until_s:
                        await asyncio.sleep(0)
                        until_s = time.perf_counter() + STEP_S
            return {"readings": readings}

    async def _everything(self) -> dict[str, Any]:
        """What operators may ask of all workers, in steps."""
        views = self.views
        told = await self._figures(every=True)
        told["fleet"] = views.fleet()
        await asyncio.sleep(0)
        told["queues"] = views.queues()
        told["shares"] = views.shares()
        told["view"] = views.view()
        return told

    async def _exemplars(self) -> list[Any]:
        """Those that this worker has: metric, cell, value, trace, span, time."""
        otlp = self.worker.otlp
        found = otlp.exemplars() if otlp is not None else {}
        await asyncio.sleep(0)
        rows = ((name, cell, one) for (name, cell), every in found.items() for one in every)
        return [(name, cell, one.value_s, one.trace_id.to_bytes(16), one.span_id, one.at_unix_s) for name, cell, one in rows]

    # ---- what it is told

    async def _told(self, word: str, value: Any) -> Any:
        match word:
            case "accept":
                if not self._leaving.is_set():
                    await self.port.accept_from(*value)
            case "whole":
                self.views.whole = value
            case "look":
                return await self._everything()
            case "exemplars":
                return await self._exemplars()
            case "slo":
                window_s, by = value
                return msgspec.json.encode(await self.views.slo(window_s, by)).decode()
            case "explain":
                story = await self.views.explain(value)
                return None if story is None else msgspec.json.encode(story)
            case "drain":
                return await self.views.drain(*value)
            case "prepare":
                return self._prepare(value)
            case "commit":
                if self._prepared is None:
                    raise LinkError("nothing was prepared")
                loaded, self._prepared = self._prepared, None
                return self.worker.change(loaded)
            case "retire":
                self._leaving.set()
            case "stop":
                self.views.draining = True
                self._going.set()
                self._leaving.set()
            case "now":
                self._now.set()
        return None

    def _prepare(self, data: bytes) -> list[str]:
        try:
            loaded = taken(data)
        except ConfigError as error:
            return [str(finding) for finding in error.findings]
        self._prepared = loaded
        return []


def main() -> None:
    """`... NUMBER LINK TAKE GIVE LISTENING...`: the number of this worker and file descriptors."""
    number, link, take, give, *listening = map(int, sys.argv[1:])
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)  # they are for the supervisor
    form = f"%(asctime)s %(levelname)s worker {number}: %(message)s"
    logging.basicConfig(format=form, level=logging.INFO, stream=sys.stderr)
    for quiet in ("httpx", "httpcore", "asyncio", "uvicorn"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    sockets = [socket.socket(fileno=fd) for fd in (link, take, give, *listening)]
    for sock in sockets:
        sock.setblocking(False)
        os.set_inheritable(sock.fileno(), False)

    async def run() -> int:
        try:
            return await Member(number, sockets[0], sockets[1], sockets[2], sockets[3:]).run()
        except (LinkError, ConfigError, OSError) as error:
            log.error("this worker cannot go on: %s", error)
            os._exit(1)  # nobody is being served, and nothing that has begun in the background is worth waiting for

    sys.exit(uvloop.run(run()))
