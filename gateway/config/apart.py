"""A configuration is read in a process of its own, which ends when it has told what it read: whoever serves for weeks need not hold what
judges a file, and no stream waits while a thousand keys in YAML are parsed. Started by serve/reader.py.
"""

from __future__ import annotations

import os
import signal
import sys

import msgspec

from gateway.config.asked import Asked
from gateway.config.handed import handed
from gateway.config.loaded import ConfigError
from gateway.config.oneline import from_file, loaded_from_args


def main() -> None:
    """`... ASKED`, as JSON: `+` and the configuration, or `-` and all that is wrong with it, on standard output."""
    for ignored in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)  # they are for the gateway
    asked = msgspec.json.decode(sys.argv[1], type=Asked)
    if asked.patient:
        os.nice(5)
    try:
        loaded = loaded_from_args(asked.model, asked.pools, asked.over) if asked.model else from_file(asked.file, asked.over)
        told = b"+" + handed(loaded)
    except ConfigError as error:
        told = b"-" + msgspec.msgpack.encode(error.findings)
    sys.stdout.buffer.write(told)
