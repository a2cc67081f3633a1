"""The server for shared state that several workers of one gateway get when the configuration names none: found on this machine, started on
a private socket, kept running, and ended with the gateway.

It listens on no network, writes nothing to disk, and forgets the oldest history first when its memory is full. Losing it costs what it
knew, and workers are built for that (docs/state.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gateway.config.state_server import SERVER_REMEDY, server_binary

log = logging.getLogger("slo_gateway")

MAX_MEMORY_MB = 256
"""some hours of history of a busy gateway, beside what is needed now"""
START_S = 10.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 10.0  # before it is started again
SETTLED_S = 10.0  # after so long the next death is a first one again
LONGEST_SOCKET_PATH = 100

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork: a child must not import
_PR_SET_PDEATHSIG = 1


class NoServer(Exception):
    """There is no server for shared state, and none can be started; the message says what to do."""


def folder() -> Path:
    """A new folder that only we may enter, short enough for a socket's path. NoServer when nothing can be written anywhere."""
    problem = ""
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR"), "/tmp", "/dev/shm"):  # noqa: S108  (mkdtemp is safe)
        if parent and len(parent) < LONGEST_SOCKET_PATH - 40:
            try:
                return Path(tempfile.mkdtemp(prefix="slo-gateway-", dir=parent))
            except OSError as error:
                problem = f"{parent}: {error.strerror}"
    raise NoServer(f"no folder for the workers' shared state can be made ({problem}); set TMPDIR, or name a server in state.url")


def _end_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class OwnStore:
    """`spawn` and `up` in the loop, `stop` at the end. NoServer when there is nothing to start."""

    def __init__(self) -> None:
        self.binary = server_binary()
        if not self.binary:
            raise NoServer(f"several workers need a server for what they share, and there is none: {SERVER_REMEDY}")
        self.folder = folder()
        self.socket = self.folder / "state.sock"
        self.url = f"unix://{self.socket}"
        self.starts = 0
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """0 when it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    def arguments(self) -> Sequence[str]:
        """Of the server: a socket and nothing else, nothing on disk, a bound of memory."""
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "save": "",
            "appendonly": "no",
            "maxmemory": f"{MAX_MEMORY_MB}mb",
            # The keys that matter are touched several times a second: what is evicted is old history.
            "maxmemory-policy": "allkeys-lru",
            "loglevel": "warning",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    async def up(self) -> None:
        """See that it answers, and keep it so. NoServer when it does not."""
        until_s = time.monotonic() + START_S
        while not await self._answers():
            if not self.pid or time.monotonic() > until_s:
                raise NoServer(f"{self.binary} did not start; try it by hand, or name a server in state.url")
            await asyncio.sleep(0.01)
        self._task = asyncio.ensure_future(self._keep())

    async def stop(self) -> None:
        """End it and leave nothing behind."""
        if self._task is not None:
            self._task.cancel()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def spawn(self) -> None:
        """Start it; somebody else waits for it."""
        self.socket.unlink(missing_ok=True)
        self.starts += 1
        self._process = await asyncio.create_subprocess_exec(
            self.binary,
            *self.arguments(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for the gateway, which ends it last
            preexec_fn=_end_with_parent,
        )

    async def _answers(self) -> bool:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(str(self.socket)), 1.0)
            try:
                writer.write(b"PING\r\n")
                return (await asyncio.wait_for(reader.readline(), 1.0)).startswith(b"+PONG")
            finally:
                writer.close()
        return False

    async def _keep(self) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            began_s = time.monotonic()
            if self._process is not None:
                status = await self._process.wait()
                log.error("the server for shared state ended (%s); starting it again", status)
            if time.monotonic() - began_s >= SETTLED_S:
                wait_s = FIRST_WAIT_S
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2.0, LONGEST_WAIT_S)
            try:
                await self.spawn()
            except OSError as error:
                log.error("the server for shared state cannot be started: %s", error)
                self._process = None
