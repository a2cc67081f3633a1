"""A worker's place in a gateway of several, and the process that has it, as the supervisor knows them: starting one, and what it says of
itself. Whether and when is supervisor.py's business."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import gateway
from gateway.serve.link import Handler, Link

# The package is where ours was found, and the working directory is not looked at unless that is where it was.
BEGIN = "import sys; place = sys.argv.pop(1); place in sys.path or sys.path.insert(0, place); from gateway.serve.member import main; main()"


FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
SETTLED_S = 10.0


@dataclass(eq=False)
class Member:
    """A worker. `state` is as in admin/views.WorkerView; instants are on the monotonic clock."""

    number: int
    process: asyncio.subprocess.Process
    link: Link
    instance_id: str
    started_at_s: float
    started_unix_s: float
    state: str = "starting"
    reason: str = "starting"  # why it cannot serve
    digest: str = ""  # of the configuration it has
    heard_at_s: float = 0.0
    said_bye: bool = False
    accepting: list[int] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)  # it is ready, or has ended

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def name(self) -> str:
        """Of no other worker, ever."""
        return f"{self.number}.{self.pid}.{self.started_unix_s:.3f}"

    def send(self, number: int) -> None:
        """A signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


@dataclass(eq=False)
class Seat:
    """Where one worker is: its listening socket, and who sits there. `generation` counts upgrades; who comes after a crash is the same
    worker again."""

    number: int
    socket: socket.socket
    member: Member | None = None
    generation: int = 0
    wait_s: float = 0.0  # before a next one is tried

    def left(self, lived_s: float) -> None:
        """Whoever sat here has gone after so long: one that lived is followed at once, the others later and later."""
        self.member = None
        self.wait_s = 0.0 if lived_s >= SETTLED_S else min(max(self.wait_s * 2.0, FIRST_WAIT_S), LONGEST_WAIT_S)


async def seated(seat: Seat, seats: Sequence[Seat], take: socket.socket, give: socket.socket, generation: int, handler: Handler) -> Member:
    """Start a worker for a seat: a new interpreter, so that it runs what is installed now. Its link is open, to be run by the caller.
    OSError when the machine has no room for another process."""
    ours, theirs = socket.socketpair()
    fds = [theirs.fileno(), take.fileno(), give.fileno(), *(one.socket.fileno() for one in seats)]
    with contextlib.closing(theirs):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-c",
            BEGIN,
            str(Path(gateway.__file__).parents[1]),
            str(seat.number),
            *map(str, fds),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=fds,
            start_new_session=True,  # a Ctrl-C is for the supervisor
        )
    ours.setblocking(False)
    link = Link(handler)
    await link.open(ours)
    return Member(seat.number, process, link, instance_id(seat, generation), time.monotonic(), time.time())


def instance_id(seat: Seat, generation: int) -> str:
    """What OpenTelemetry calls it: of this worker alone, and the same for whoever takes its place after a crash or a restart of the whole.
    While an upgrade goes on there are two in a seat, which must not be taken for one."""
    port = seat.socket.getsockname()[1]
    return str(uuid5(NAMESPACE_URL, f"slo-gateway://{socket.gethostname()}:{port}/{seat.number}.{generation}"))
