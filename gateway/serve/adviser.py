"""The process that gives second opinions, as the gateway that started it knows it: one for all workers, at the lowest priority, started
again when it dies, and ended with us. adviser_process.py is what runs in it.

Questions wait in one short line, and go a few a second; when the line is full there is no answer, and nobody is the worse for it. What is
asked is in memory while it waits and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import gateway
from gateway.serve.link import Link, LinkError

log = logging.getLogger("slo_gateway")

MOST_WAITING = 32
LEAST_BETWEEN_S = 0.2
"""between two questions: what it costs is a few hundredths of one processor, whatever comes"""
ANSWER_S = 120.0
"""for one answer, and before the first for the model to be loaded: 1.4 s of a processor of which, when both are busy, little is left"""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0  # before it is started again
SETTLED_S = 60.0  # after so long the next death is a first one again

# As in seats.py: the package is where ours was found, and the working directory is not looked at.
BEGIN = (
    "import sys; place = sys.argv.pop(1); place in sys.path or sys.path.insert(0, place);"
    " from gateway.serve.adviser_process import main; main()"
)

Pieces = Sequence[tuple[int, str]]
"""(zone, text), as classify/text.Glance has them"""


class Adviser:
    """`begin` in a running loop, `stop` at the end."""

    def __init__(self) -> None:
        self.up = False  # it has its model and answers
        self.starts = 0
        self._link: Link | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._next_at_s = 0.0

    @property
    def pid(self) -> int:
        """0 when it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    def begin(self) -> None:
        """Start it, and keep it so. Once is enough."""
        if self._keeping is None:
            self._keeping = asyncio.ensure_future(self._keep())

    async def stop(self) -> None:
        """End it. It has nothing that could be lost."""
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        if self.pid and self._process is not None:
            self._process.kill()
            await self._process.wait()

    async def ask(self, pieces: Pieces) -> list[float] | None:
        """The probability of each kind (classify/model.KINDS), or None when too many are asking. LinkError when it does not run, or does
        not answer."""
        if self._waiting >= MOST_WAITING:
            return None
        self.begin()  # a configuration may have come to want it
        self._waiting += 1
        try:
            async with self._turn:
                await asyncio.sleep(max(self._next_at_s - time.monotonic(), 0.0))
                self._next_at_s = time.monotonic() + LEAST_BETWEEN_S
                return await self._answer(pieces)
        finally:
            self._waiting -= 1

    async def _answer(self, pieces: Pieces) -> list[float]:
        link, process = self._link, self._process
        if link is None or process is None:
            raise LinkError("it does not run")
        try:
            answer: list[float] = await link.ask("judge", pieces, ANSWER_S)
        except LinkError:
            if not link.ended and process.returncode is None:
                log.warning("the process for second opinions did not answer within %.0f s; it is started again", ANSWER_S)
                process.kill()
            raise
        return answer

    async def _keep(self) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            began_s = time.monotonic()
            try:
                status = await self._life()
                log.warning("the process for second opinions ended (%s); it is started again in %.1f s", status, wait_s)
            except OSError as error:
                log.warning("the process for second opinions cannot be started: %s", error.strerror)
            if time.monotonic() - began_s >= SETTLED_S:
                wait_s = FIRST_WAIT_S
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2.0, LONGEST_WAIT_S)

    async def _life(self) -> int:
        """From its start to its end; its exit status."""
        ours, theirs = socket.socketpair()
        with contextlib.closing(theirs):
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-c",
                BEGIN,
                str(Path(gateway.__file__).parents[1]),
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a Ctrl-C is for the gateway
            )
        self.starts += 1
        ours.setblocking(False)
        self._link = Link(self._heard)
        await self._link.open(ours)
        try:
            await self._link.run()  # it ends when the process does
        finally:
            self.up, self._link = False, None
        return await self._process.wait()

    async def _heard(self, word: str, _: object) -> None:
        if word == "ready":
            self.up = True
