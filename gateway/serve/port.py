"""The sockets of a gateway: bound ports, the server on the applications' port, and connections that move between workers.

A port that several workers share has one listening socket for each of them (SO_REUSEPORT): the kernel spreads connections over these
by their addresses. Who holds them and who accepts from which is the supervisor's business; nothing that waits in one is lost as long as
somebody holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Generator
from typing import TYPE_CHECKING

import uvicorn

from gateway.admin.control import admin_app

if TYPE_CHECKING:
    from gateway.admin.views import Views

log = logging.getLogger("slo_gateway")

BACKLOG = 4096


class Server(uvicorn.Server):
    """uvicorn's, but signals are ours: two servers share a process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def up(self, sockets: list[socket.socket]) -> asyncio.Task[None]:
        """Serve from now on; the task ends with the server."""
        running = asyncio.ensure_future(self.serve(sockets=sockets))
        while not self.started and not running.done():
            await asyncio.sleep(0.002)
        return running


def admin_server(views: Views, key: str | None) -> Server:
    """Of the operators' port."""
    app = admin_app(views, key)
    return Server(uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False, backlog=64))


def listen(host: str, port: int, reuse_port: bool = False) -> socket.socket:
    """A bound socket. OSError says what is wrong."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
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


def listen_together(host: str, port: int, count: int) -> list[socket.socket]:
    """So many sockets bound to one port. OSError when somebody else has it: SO_REUSEPORT alone would let two gateways share it, and
    neither would notice."""
    with contextlib.closing(listen(host, port)) as probe:
        port = probe.getsockname()[1]
    return [listen(host, port, reuse_port=True) for _ in range(count)]
