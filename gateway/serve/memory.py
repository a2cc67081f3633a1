"""What a process keeps of memory: what its start has made is never collected again, what traffic needed goes back to the system.

The C library keeps freed blocks for the next allocation; after a wave of requests that is tens of megabytes nobody uses. Bounds of what
one request may take are config's limits; this only gives back.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

LEAST_APART_S = 5.0
MOST_APART_S = 60.0  # where it is never idle: a trim takes about a millisecond


def settled() -> None:
    """What exists now lives as long as the process: no collection need ever look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    trim()  # what was needed to get here: a configuration's text, a model's file


def trim() -> None:
    """Give freed blocks back to the system, where the C library knows how."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Ebb:
    """Tells when a trim is worth it: once traffic has gone, and now and then while it has not."""

    def __init__(self) -> None:
        self._at_s = 0.0
        self._served = 0

    def due(self, served: int, in_flight: int, now_s: float) -> bool:
        """Asked about once a second. `served`: requests so far, `in_flight`: those being answered."""
        since_s = now_s - self._at_s
        if served == self._served or since_s < (LEAST_APART_S if not in_flight else MOST_APART_S):
            return False
        self._at_s, self._served = now_s, served
        return True
