"""The process around a worker: ports, signals, draining, and the garbage collector kept out of the way.

SIGTERM and SIGINT drain: readiness says no at once, new requests are taken a little longer, running answers may finish within `drain`; a
second signal ends it at once. SIGHUP reads the configuration again. Exit status 0, or 1 when an answer had to be cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable, Generator

import uvicorn
import uvloop

from gateway.admin.control import admin_app
from gateway.admin.public import public_app
from gateway.config.load import Loaded
from gateway.serve.views import WorkerViews
from gateway.serve.worker import Worker
from gateway.wire.protocol import bound

log = logging.getLogger("slo_gateway")

BACKLOG = 4096
WATCH_EVERY_S = 1.0


class _Server(uvicorn.Server):
    """uvicorn's, but signals are ours: two servers share this process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. OSError says what is wrong."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def run(
    loaded: Loaded,
    reload: Callable[[], Loaded] | None = None,
    changed: Callable[[], bool] | None = None,
    ready: Callable[[int, int], None] | None = None,
) -> int:
    """Serve until told to stop. `reload` reads the configuration again, `changed` asks whether its file has changed since, `ready` is
    told both ports. The exit status."""
    return uvloop.run(_run(loaded, reload, changed, ready))


async def _run(
    loaded: Loaded, reload: Callable[[], Loaded] | None, changed: Callable[[], bool] | None, ready: Callable[[int, int], None] | None
) -> int:
    settings = loaded.settings
    public, admin = listen(settings.listen.host, settings.listen.port), listen(settings.admin.host, settings.admin.port)
    worker = Worker(loaded, reload)
    views = WorkerViews(worker)
    key = settings.admin.key.get_secret_value() if settings.admin.key else None
    servers = [
        _Server(
            uvicorn.Config(
                public_app(views),
                http=bound(worker.front),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
            )
        ),
        _Server(
            uvicorn.Config(
                admin_app(views, key), ws="none", lifespan="off", log_config=None, access_log=False, server_header=False, backlog=64
            )
        ),
    ]
    if worker.sharing is not None:
        await worker.sharing.start()
    worker.start(views)
    running = [asyncio.ensure_future(server.serve(sockets=[sock])) for server, sock in zip(servers, (public, admin), strict=True)]
    while not all(server.started for server in servers):
        if any(task.done() for task in running):
            break
        await asyncio.sleep(0.005)
    # What exists now lives as long as the process: no collection need ever look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    stop, now = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def told_to_stop() -> None:
        (now if stop.is_set() else stop).set()

    def read_again() -> None:
        task = loop.create_task(_reload(views))
        pending.add(task)
        task.add_done_callback(pending.discard)

    pending: set[asyncio.Task[None]] = set()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop)
    loop.add_signal_handler(signal.SIGHUP, read_again)
    if ready is not None:
        ready(public.getsockname()[1], admin.getsockname()[1])
    watching = loop.create_task(_watch(changed, read_again)) if changed is not None else None
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
    if watching is not None:
        watching.cancel()
    cut = await _drain(worker, views, servers[0], now)
    for server in servers:
        server.should_exit = True
        server.force_exit = now.is_set()
    await asyncio.wait(running, timeout=5.0)
    worker.stop()
    if worker.learnt is not None:
        await worker.learnt.save()
    if worker.sharing is not None:
        await worker.sharing.stop()
    return 1 if cut else 0


async def _drain(worker: Worker, views: WorkerViews, server: uvicorn.Server, now: asyncio.Event) -> int:
    """Let running answers finish. How many had to be cut."""
    timeouts = worker.loaded.settings.timeouts
    views.draining = True
    front = worker.front
    busy = [c for c in front.connections if c.busy]
    log.info("stopping: %d requests are running", len(busy))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(now.wait(), timeouts.drain_grace_s)
    for listener in server.servers:
        listener.close()
    for connection in list(front.connections):
        connection.shutdown()
    deadline_s = asyncio.get_running_loop().time() + timeouts.drain_s
    while any(c.busy for c in front.connections) and not now.is_set() and asyncio.get_running_loop().time() < deadline_s:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(now.wait(), 0.05)
    cut = front.cut_all()
    if cut:
        log.warning("%d answers were cut: they had not finished within drain", cut)
    return cut


async def _reload(views: WorkerViews) -> None:
    told = await views.reload()
    if told.ok:
        log.info("configuration read again: %s", "; ".join(told.changed) or "nothing has changed")
    else:
        for problem in told.problems:
            log.error("configuration refused, the old one goes on: %s", problem)


async def _watch(changed: Callable[[], bool], read_again: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(WATCH_EVERY_S)
        if changed():
            read_again()
