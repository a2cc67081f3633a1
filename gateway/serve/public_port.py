"""The applications' port as one worker sees it: from which sockets it accepts, its connections, and how it leaves without losing any."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import uvicorn

from gateway.admin.public import public_app
from gateway.serve.port import BACKLOG, Server
from gateway.wire.protocol import ClientConnection

if TYPE_CHECKING:
    from gateway.serve.views import WorkerViews
    from gateway.wire.front import Front

log = logging.getLogger("slo_gateway")

LOOK_S = 0.02  # while leaving: between looks at which connections have become idle


class PublicPort:
    """The applications' port as one worker sees it: some listening sockets, from which it accepts as it is told, and its connections."""

    def __init__(self, views: WorkerViews, front: Front, sockets: Sequence[socket.socket]) -> None:
        self.front = front
        self._sockets = sockets
        self._views = views
        self._config = uvicorn.Config(
            public_app(views),
            http=ClientConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
        )
        self.server = Server(self._config)
        self.running: asyncio.Task[None] | None = None
        self._listening: dict[int, asyncio.Server] = {}

    async def start(self) -> None:
        """Be ready; nothing is accepted yet."""
        self.running = await self.server.up([])

    async def accept_from(self, *numbers: int) -> None:
        """Accept from these sockets and no others. What waits in one that is let go is for whoever accepts from it next."""
        for number in self._listening.keys() - set(numbers):
            self._listening.pop(number).close()
        for number in set(numbers) - self._listening.keys():
            loop = asyncio.get_running_loop()
            self._listening[number] = await loop.create_server(self._protocol, sock=self._sockets[number].dup(), backlog=BACKLOG)
        self._views.serving = bool(self._listening)

    async def take(self, connection: socket.socket) -> None:
        """A client's connection that another worker had."""
        connection.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        return ClientConnection(self.front, self._config, self.server.server_state, {})

    def hand_over(self, to: socket.socket) -> None:
        """Give connections that are between two requests to whoever reads from the other end of `to`. Nothing of theirs is lost: what a
        client sends from now on waits in its socket."""
        for connection in list(self.front.connections):
            transport = connection.transport
            if connection.busy or transport.is_closing() or transport.get_write_buffer_size():
                continue
            transport.pause_reading()
            try:
                socket.send_fds(to, [b"c"], [transport.get_extra_info("socket").fileno()])
            except (BlockingIOError, OSError):  # full: somebody will have read by the next look
                transport.resume_reading()
                return
            transport.close()

    async def leave(self, now: asyncio.Event, drain_s: float, to: socket.socket | None = None, going: asyncio.Event | None = None) -> int:
        """Accept nothing more, and see running answers to their end. Idle connections are handed over while there is somebody who takes
        them (`to`, until `going` says that all go), else closed. After `drain_s`, or when `now` is set, what is left is cut: how many."""
        await self.accept_from()
        for sock in self._sockets:
            sock.close()
        until_s = time.monotonic() + drain_s
        while self.front.connections and not now.is_set() and time.monotonic() < until_s:
            if to is not None and not (going is not None and going.is_set()):
                self.hand_over(to)
            else:
                for connection in list(self.front.connections):
                    connection.shutdown()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(now.wait(), LOOK_S)
        cut = self.front.cut_all()
        if cut:
            log.warning("%d answers were cut: they had not finished within drain", cut)
        return cut

    async def stop(self, force: bool) -> None:
        """Nothing runs any more."""
        self.server.should_exit = True
        self.server.force_exit = force
        if self.running is not None:
            await asyncio.wait([self.running], timeout=5.0)
