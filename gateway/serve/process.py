"""One worker that is the whole gateway: its ports, signals and draining.

SIGTERM and SIGINT drain: readiness says no at once, new requests are taken a little longer, running answers may finish within `drain`; a
second signal ends it at once. SIGHUP reads the configuration again. Exit status 0, or 1 when an answer had to be cut. Several workers are
supervisor.py's and member.py's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvloop

from gateway.config.loaded import Loaded
from gateway.serve.adviser import Adviser
from gateway.serve.memory import settled
from gateway.serve.port import admin_server, listen
from gateway.serve.public_port import PublicPort
from gateway.serve.reloading import reload_and_tell, watch
from gateway.serve.views import WorkerViews
from gateway.serve.worker import Worker

if TYPE_CHECKING:
    from gateway.serve.reader import Reads

log = logging.getLogger("slo_gateway")


def run(
    loaded: Loaded,
    reload: Reads | None = None,
    changed: Callable[[], bool] | None = None,
    ready: Callable[[int, int], None] | None = None,
) -> int:
    """Serve until told to stop. `reload` reads the configuration again, `changed` asks whether its file has changed since, `ready` is
    told both ports. The exit status."""
    return uvloop.run(_run(loaded, reload, changed, ready))


async def _run(loaded: Loaded, reload: Reads | None, changed: Callable[[], bool] | None, ready: Callable[[int, int], None] | None) -> int:
    settings = loaded.settings
    public, admin = listen(settings.listen.host, settings.listen.port), listen(settings.admin.host, settings.admin.port)
    adviser = Adviser()
    if settings.classify.second_opinion:
        adviser.begin()
    worker = Worker(loaded, reload, adviser=adviser)
    views = WorkerViews(worker, adviser)
    port = PublicPort(views, worker.front, [public])
    operators = admin_server(views, settings.admin.key.get_secret_value() if settings.admin.key else None)
    if worker.sharing is not None:
        await worker.sharing.start()
    worker.start(views)
    await port.start()
    await port.accept_from(0)
    running = [task for task in (port.running, await operators.up([admin])) if task is not None]
    settled()
    stop, now = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def told_to_stop() -> None:
        (now if stop.is_set() else stop).set()

    def read_again() -> None:
        task = loop.create_task(reload_and_tell(views))
        pending.add(task)
        task.add_done_callback(pending.discard)

    def cannot_upgrade() -> None:
        log.warning("SIGUSR2 replaces workers one after the other: this gateway has one; see `workers` in the configuration")

    pending: set[asyncio.Task[None]] = set()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop)
    loop.add_signal_handler(signal.SIGHUP, read_again)
    loop.add_signal_handler(signal.SIGUSR2, cannot_upgrade)
    if ready is not None:
        ready(public.getsockname()[1], admin.getsockname()[1])
    watching = loop.create_task(watch(changed, read_again)) if changed is not None else None
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
    if watching is not None:
        watching.cancel()
    cut = await drain(worker, views, port, now)
    operators.should_exit = True
    operators.force_exit = now.is_set()
    await port.stop(now.is_set())
    await asyncio.wait(running, timeout=5.0)
    worker.stop()
    await adviser.stop()
    await worker.keep_learnt()
    if worker.sharing is not None:
        await worker.sharing.stop()
    return 1 if cut else 0


async def drain(worker: Worker, views: WorkerViews, port: PublicPort, now: asyncio.Event) -> int:
    """Let running answers finish. How many had to be cut."""
    timeouts = worker.loaded.settings.timeouts
    views.draining = True
    log.info("stopping: %d requests are running", sum(connection.busy for connection in worker.front.connections))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(now.wait(), timeouts.drain_grace_s)
    return await port.leave(now, timeouts.drain_s)
