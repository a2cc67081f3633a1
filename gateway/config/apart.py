"""A configuration is read in a process of its own, which ends when it has told what it read: whoever serves for weeks need not hold what
judges a file, and no stream waits while a thousand keys in YAML are parsed. Started by serve/reader.py.
"""

from __future__ import annotations

import os
import signal
import sys

import msgspec

from gateway.config.handed import handed
from gateway.config.loaded import ConfigError
from gateway.config.oneline import from_file, loaded_from_args


class Asked(msgspec.Struct, frozen=True):
    """What is to be read: a file (None: the one that ships) or a model and its pools, and what the command line had over either."""

    file: str | None = None
    model: str | None = None
    pools: tuple[str, ...] = ()
    over: dict[str, str | int | None] = {}
    patient: bool = False
    """requests are being served meanwhile, and come first"""


def main() -> None:
    """`... ASKED`, as JSON: `+` and the configuration, or `-` and all that is wrong with it, on standard output."""
    for ignored in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)  # they are for the gateway
    asked = msgspec.json.decode(sys.argv[1], type=Asked)
    if asked.patient:
        os.nice(5)
    try:
        over: dict[str, object] = dict(asked.over)
        loaded = loaded_from_args(asked.model, asked.pools, **over) if asked.model else from_file(asked.file, **over)  # type: ignore[arg-type]
        told = b"+" + handed(loaded)
    except ConfigError as error:
        told = b"-" + msgspec.msgpack.encode(error.findings)
    sys.stdout.buffer.write(told)
