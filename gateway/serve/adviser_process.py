"""What runs in the process for second opinions: a sentence model and a head, at the lowest priority, that judge what they are asked.

Begun by adviser.py with one end of a link; it ends when the link does. Nothing that it is asked is kept or written anywhere, an error's
message included.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from gateway.serve.link import Link, LinkError

MOST_MEMORY_BYTES = 1024**3
"""of address space; the model takes 160 MB"""
_PR_SET_PDEATHSIG = 1


def step_back() -> None:
    """Everything else on the machine comes first."""
    os.nice(19)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def serve(link_socket: socket.socket) -> None:
    """Until the other end has gone."""
    from gateway.classify.second import Second

    second = Second.load()

    async def judge(word: str, pieces: Any) -> list[float]:
        try:
            return second.probabilities([(int(zone), str(text)) for zone, text in pieces])
        except Exception as error:
            raise LinkError(type(error).__name__) from None  # its message may quote what was asked

    link = Link(judge)
    await link.open(link_socket)
    link.tell("ready")
    await link.run()


def main() -> None:
    """`... LINK`: a file descriptor."""
    step_back()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is there
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)  # they are for the gateway
    logging.basicConfig(format="%(asctime)s %(levelname)s second opinions: %(message)s", level=logging.WARNING, stream=sys.stderr)
    link_socket = socket.socket(fileno=int(sys.argv[1]))
    link_socket.setblocking(False)
    os.set_inheritable(link_socket.fileno(), False)
    asyncio.run(serve(link_socket))
