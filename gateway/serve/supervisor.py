"""Several workers on one port, and the process that starts, watches and replaces them. It holds the sockets and no request.

The port has a listening socket for each worker's seat (port.py). They are this process's: what waits in one is not lost when its worker
ends, however it ends; until somebody sits there again, the others accept from it too. A worker that is replaced sees its running answers
to their end, and hands its idle connections to those that stay.

SIGTERM and SIGINT: all workers drain, then the end; again: at once. SIGHUP: the configuration is read and judged here, once; all workers
take it or none does. SIGUSR2: a new worker in the place of each, one after the other. Exit status 0, or 1 when an answer had to be cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import uvloop

from gateway.admin.views import LostView, ReloadView, RestartView
from gateway.config.loaded import ConfigError, Loaded
from gateway.serve.adviser import Adviser
from gateway.serve.agreement import Agreement
from gateway.serve.link import VERSION, LinkError
from gateway.serve.own_store import OwnStore
from gateway.serve.past import Past
from gateway.serve.seats import SETTLED_S, Member, Seat, seated
from gateway.telemetry.readings import RESTARTS

if TYPE_CHECKING:
    from gateway.serve.accounts import Accounts
    from gateway.serve.reader import Reads
    from gateway.serve.whole import WholeViews

log = logging.getLogger("slo_gateway")

START_S = 60.0  # for a worker to become ready, on a machine that has other things to do
ACT_S = 10.0  # for a worker to take a configuration, or to accept
SILENT_S = 5.0  # without a word: others accept for it
DEAD_S = 30.0  # without a word: it is killed
LAST_S = 10.0  # beyond drain, for workers to end
MISSING_S = 1.2  # a worker tells what it has counted once a second


def run(
    loaded: Loaded,
    reload: Reads | None = None,
    changed: Callable[[], bool] | None = None,
    ready: Callable[[int, int], None] | None = None,
) -> int:
    """Serve with `settings.workers` workers until told to stop; as process.run. NoServer when they would have nothing to share with."""
    return uvloop.run(_run(loaded, reload, changed, ready))


async def _run(loaded: Loaded, reload: Reads | None, changed: Callable[[], bool] | None, ready: Callable[[int, int], None] | None) -> int:
    from gateway.serve.port import listen, listen_together

    settings = loaded.settings
    sockets = listen_together(settings.listen.host, settings.listen.port, settings.workers)
    operators = listen(settings.admin.host, settings.admin.port)
    own_store = OwnStore() if not settings.state.url else None
    supervisor = Supervisor(loaded, sockets, operators, own_store, reload, changed)
    try:
        return await supervisor.run(ready)
    finally:
        for member in supervisor.members:
            member.send(signal.SIGKILL)
        await supervisor.adviser.stop()
        if own_store is not None:
            await own_store.stop()


class Supervisor:
    """`run` is its whole life. `own_store` is where workers share, when the configuration does not say."""

    accounts: Accounts
    views: WholeViews

    def __init__(
        self,
        loaded: Loaded,
        sockets: list[socket.socket],
        operators: socket.socket,
        own_store: OwnStore | None,
        reload: Reads | None,
        changed: Callable[[], bool] | None,
    ) -> None:
        self.agreement = Agreement(loaded, own_store.url if own_store is not None else "")
        self.seats = [Seat(number, sock) for number, sock in enumerate(sockets)]
        self.members: list[Member] = []  # all that run, retiring ones too
        self.started_unix_s = time.time()
        self.restarts = dict.fromkeys(RESTARTS, 0)
        self.lost: deque[LostView] = deque(maxlen=16)
        self.past = Past()
        self.changing = ""  # upgrade, reload
        self.adviser = Adviser()  # for all workers; begun when there is to be one
        self.reload_refused = False
        self._operators, self._own_store, self._reader, self._changed = operators, own_store, reload, changed
        self._changes = asyncio.Lock()
        self._give, self._take = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._stop, self._now = asyncio.Event(), asyncio.Event()
        self._up = self._failed = False
        self._whole: str | None = None  # as the workers were told
        self._drained: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cut = False

    # ---- what operators ask

    @property
    def loaded(self) -> Loaded:
        """The configuration in force."""
        return self.agreement.loaded

    @property
    def answering(self) -> list[Member]:
        """Workers that can be asked."""
        return [member for member in self.members if member.state in ("serving", "retiring") and not member.link.ended]

    def not_ready(self) -> str:
        """Why no traffic should be sent here, "" when it should: one worker that can serve is enough, it accepts for all."""
        if self._stop.is_set():
            return "shutting down"
        reasons = [member.reason for member in self.members if member.state == "serving"]
        return min(reasons, key=bool, default="no worker is ready")

    async def reload(self) -> ReloadView:
        """Read the configuration again. All workers have it after this, or none."""
        if self._reader is None:
            return ReloadView(ok=False, problems=("this gateway was started without a file; start it again with other arguments",))
        async with self._changes:  # after an upgrade that is under way
            self.changing = "reload"
            try:
                loaded = await self._reader()
                told = await self.agreement.change(loaded, [member for member in self.members if member.state in ("serving", "silent")])
                self.reload_refused = not told.ok
                if told.ok:
                    self.accounts.change_edges(self._edges_of(loaded.catalog))
                return told
            except ConfigError as error:
                self.reload_refused = True
                return ReloadView(ok=False, problems=tuple(str(finding) for finding in error.findings))
            finally:
                self.changing = ""

    async def restart(self) -> RestartView:
        """A new worker in the place of each, one after the other."""
        if self._changes.locked() or not self._up or self._stop.is_set():
            return RestartView(ok=False, problem=f"not now: {self.changing or 'start or end'} is under way")
        async with self._changes:
            self.changing = "upgrade"
            try:
                for seat in self.seats:
                    problem = await self._replace(seat)
                    if problem:
                        log.error("workers are not replaced any further: %s", problem)
                        return RestartView(ok=False, problem=problem)
            finally:
                self.changing = ""
        log.info("all %d workers have been replaced", len(self.seats))
        return RestartView(ok=True)

    async def drain(self, instance_id: str, draining: bool) -> bool:
        """Take an instance out at every worker, or back in. False when there is none of that name."""
        asked = (member.link.ask("drain", [instance_id, draining]) for member in self.answering)
        if True not in await asyncio.gather(*asked, return_exceptions=True):
            return False
        (self._drained.add if draining else self._drained.discard)(instance_id)
        return True

    # ---- from the first to the last moment

    async def run(self, ready: Callable[[int, int], None] | None) -> int:
        """Until told to stop. The exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: (self._now if self._stop.is_set() else self._stop).set())
        for number in (signal.SIGHUP, signal.SIGUSR2):
            loop.add_signal_handler(number, lambda: log.warning("not yet: the gateway begins"))
        if self._own_store is not None:
            await self._own_store.spawn()
        await asyncio.gather(*(self._start(seat, seat.generation) for seat in self.seats))
        # What this process needs itself is imported while the workers import what they need.
        from gateway.measure.attainment import edges_of
        from gateway.serve.accounts import Accounts
        from gateway.serve.port import admin_server
        from gateway.serve.reloading import reload_and_tell, watch
        from gateway.serve.whole import WholeViews

        self._edges_of = edges_of
        self.accounts = Accounts(edges_of(self.loaded.catalog))
        views = self.views = WholeViews(self)
        key = self.loaded.settings.admin.key
        server = admin_server(views, key.get_secret_value() if key else None)
        running = await server.up([self._operators])
        if self._own_store is not None:
            await self._own_store.up()
        started = list(self.members)
        until_s = time.monotonic() + START_S
        while not (self._stop.is_set() or self._failed or all(member.begun.is_set() for member in started)):
            if time.monotonic() > until_s:
                self._failed = True
            await asyncio.sleep(0.005)
        if not self._stop.is_set() and self._failed:
            log.error("a worker could not start, so none does")
            self._stop.set()
            self._now.set()
        elif not self._stop.is_set():
            self._up = True
            if self.loaded.settings.classify.second_opinion:
                self.adviser.begin()
            loop.add_signal_handler(signal.SIGHUP, lambda: self._do(reload_and_tell(views)))
            loop.add_signal_handler(signal.SIGUSR2, lambda: self._do(self.restart()))
            self._do(self._watch_over())
            if self._changed is not None:
                self._do(watch(self._changed, lambda: self._do(reload_and_tell(views))))
            if ready is not None:
                ready(self.seats[0].socket.getsockname()[1], self._operators.getsockname()[1])
        await self._stop.wait()
        await self._end()
        server.should_exit = server.force_exit = True
        await asyncio.wait([running], timeout=2.0)
        for task in self._tasks:
            task.cancel()
        return 1 if self._cut or self._failed else 0

    async def _end(self) -> None:
        """All workers drain, and go."""
        timeouts = self.loaded.settings.timeouts
        self._tell_whole()
        for seat in self.seats:
            seat.socket.close()  # the workers' copies go on for as long as new requests are taken
        for member in self.members:
            member.link.tell("stop")
        until_s = time.monotonic() + timeouts.drain_grace_s + timeouts.drain_s + LAST_S
        hurried = False
        while self.members and time.monotonic() < until_s:
            if self._now.is_set() and not hurried:
                hurried, until_s = True, time.monotonic() + LAST_S
                for member in self.members:
                    member.link.tell("now")
                    if member.state == "starting":
                        member.send(signal.SIGKILL)
            await asyncio.sleep(0.02)
        for member in self.members:
            log.error("worker %d does not end; it is killed", member.number)
            self._cut = True
            member.send(signal.SIGKILL)

    def _do(self, what: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(what)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("the supervisor could not do something", exc_info=task.exception())

    # ---- workers come and go

    async def _start(self, seat: Seat, generation: int) -> Member:
        """A new process, which may become the one that sits there."""

        async def heard(word: str, value: Any) -> Any:
            return await self._heard(member, word, value)

        member = await seated(seat, self.seats, self._take, self._give, generation, heard)
        self.members.append(member)
        self._do(self._follow(member))
        if seat.member is None:
            seat.member = member
        return member

    async def _follow(self, member: Member) -> None:
        """Listen to it, and see what there is to do when it has ended."""
        await member.link.run()
        try:
            status = await asyncio.wait_for(member.process.wait(), LAST_S)
        except TimeoutError:
            member.send(signal.SIGKILL)
            status = await member.process.wait()
        self.members.remove(member)
        member.state = "ended"
        if member.begun.is_set():
            self.accounts.end(member.name)
        self._cut = self._cut or (self._stop.is_set() and status != 0)
        if not member.begun.is_set():
            self._failed = True
            member.begun.set()
        seat = self.seats[member.number]
        if not member.said_bye and member.reason != "starting":
            self.lost.append(
                LostView(worker=str(member.number), pid=member.pid, ended_unix_s=time.time(), status=status, missing_s=MISSING_S)
            )
            what = "worker %d (pid %d) ended with %d; at most the last %.1f s of what it counted is missing"
            log.error(what, member.number, member.pid, status, MISSING_S)
        if seat.member is member:
            seat.left(time.monotonic() - member.started_at_s)
            if self._up and not self._stop.is_set():
                await self._assign()
                self._do(self._refill(seat))
        self._tell_whole()

    async def _refill(self, seat: Seat) -> None:
        """Somebody is to sit there again. Who ends before being ready comes back here, by _follow."""
        if seat.wait_s:
            log.info("worker %d is started again in %.1f s", seat.number, seat.wait_s)
            await asyncio.sleep(seat.wait_s)
        if self._stop.is_set() or seat.member is not None:
            return
        try:
            member = await self._start(seat, seat.generation)
        except OSError as error:
            log.error("worker %d cannot be started: %s", seat.number, error)
            seat.left(0.0)
            self._do(self._refill(seat))
            return
        self.restarts["crash"] += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(member.begun.wait(), START_S)
        if member.state == "starting":
            member.send(signal.SIGKILL)
        elif seat.member is not member:
            member.link.tell("retire")  # an upgrade was faster

    async def _replace(self, seat: Seat) -> str:
        """A new worker accepts before the old one stops to. Why it could not be done, "" when it was."""
        old = seat.member
        try:
            new = await self._start(seat, seat.generation + 1)
        except OSError as error:
            return f"worker {seat.number} cannot be started: {error}"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(new.begun.wait(), START_S)
        if new.state != "serving":
            new.send(signal.SIGKILL)
            return f"a new worker {seat.number} was not ready within {START_S:.0f} s, or ended before"
        if self._stop.is_set():
            return "the gateway ends"
        # Meanwhile the old one may have crashed, and somebody else may sit there.
        old = seat.member if seat.member is not new else None
        seat.member, seat.generation = new, seat.generation + 1
        if old is not None:
            old.state = "retiring"
        await self._assign()
        if old is not None:
            self.restarts["upgrade"] += 1
            old.link.tell("retire")
        return ""

    async def _assign(self) -> None:
        """Each worker accepts from its own seat's socket; where nobody serves, all do."""
        serving = {seat.number: seat.member for seat in self.seats if seat.member is not None and seat.member.state == "serving"}
        empty = [seat.number for seat in self.seats if seat.number not in serving]
        for number, member in serving.items():
            wanted = sorted([number, *empty])
            if member.accepting != wanted:
                try:
                    await member.link.ask("accept", wanted, ACT_S)
                    member.accepting = wanted
                except LinkError as error:
                    log.warning("worker %d does not accept: %s", number, error)

    async def _watch_over(self) -> None:
        """A worker that says nothing for long has others accept for it; for longer, it is killed."""
        while True:
            await asyncio.sleep(1.0)
            now_s = time.monotonic()
            for member in list(self.members):
                silent_s = now_s - member.heard_at_s
                if member.state == "serving" and silent_s > SILENT_S:
                    log.warning("worker %d has said nothing for %.0f s; the others accept for it", member.number, silent_s)
                    member.state = "silent"
                    self._do(self._assign())
                elif member.state in ("silent", "retiring") and silent_s > DEAD_S:
                    log.error("worker %d has said nothing for %.0f s; it is killed", member.number, silent_s)
                    member.send(signal.SIGKILL)
            self._tell_whole()

    # ---- what workers say

    async def _heard(self, member: Member, word: str, value: Any) -> Any:
        member.heard_at_s = time.monotonic()
        if member.state == "silent":
            member.state = "serving"
            member.accepting = []
            self._do(self._assign())
        match word:
            case "begin":
                if value["version"] != VERSION:
                    raise LinkError(f"its words are of version {value['version']}, the supervisor's of {VERSION}: start the gateway anew")
                member.digest = self.loaded.digest
                return {
                    "loaded": self.agreement.handed(),
                    "of": len(self.seats),
                    "instance_id": member.instance_id,
                    "store_forgets": self._own_store is not None,
                    "drained": sorted(self._drained),
                }
            case "ready":
                await self._is_ready(member)
            case "reason":
                member.reason = value
                self._tell_whole()
            case "cells":
                self.accounts.take(member.name, *value)
            case "figures" | "bye":
                self.accounts.take_figures(member.name, value["readings"])
                member.said_bye = word == "bye"
            case "remembered":
                self.past.take(member.name, value)
            case "retiring":
                if member.state != "retiring":
                    member.state = "retiring"  # somebody else told it to go; another one is needed
                    seat = self.seats[member.number]
                    if seat.member is member and self._up and not self._stop.is_set():
                        seat.left(SETTLED_S)
                        self._do(self._assign())
                        self._do(self._refill(seat))
            case "advise":
                return await self.adviser.ask(value)
            case "metrics":
                return await self.views.metrics_at_once(value)
        return None

    async def _is_ready(self, member: Member) -> None:
        member.state, member.reason = "serving", ""
        if member.digest != self.loaded.digest:
            self._do(self.agreement.catch_up(member))
        member.link.tell("whole", self._whole if self._whole is not None else self.not_ready())
        if self.seats[member.number].member is member:
            self._do(self._assign())
        member.begun.set()
        self._tell_whole()

    def _tell_whole(self) -> None:
        """Every worker says the same of the gateway."""
        whole = self.not_ready()
        if whole != self._whole:
            self._whole = whole
            for member in self.members:
                member.link.tell("whole", whole)
