"""Reads streams of classes that do not mind a little less often: several tokens then share one system call each way.

Which streams these are is the relay's and the configuration's choice. Ticks are spread over streams, so that one wake-up never serves all.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.wire.upstream import EngineConnection

SLOTS: Final = 8


class Coalescer:
    """A held stream is read again after `tick_s` at most."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tick_s: float) -> None:
        self.tick_s = tick_s
        self._loop = loop
        self._slots: list[list[EngineConnection]] = [[] for _ in range(SLOTS)]
        self._at = 0
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None

    def hold(self, connection: EngineConnection) -> None:
        """Until its next tick: a full turn from now, so that streams stay where they first fell."""
        self._slots[self._at].append(connection)
        self._held += 1
        if self._timer is None:
            self._timer = self._loop.call_later(self.tick_s / SLOTS, self._tick)

    def _tick(self) -> None:
        self._at = (self._at + 1) % SLOTS
        due = self._slots[self._at]
        if due:
            self._slots[self._at] = []
            self._held -= len(due)
            for connection in due:
                connection.release()
        self._timer = self._loop.call_later(self.tick_s / SLOTS, self._tick) if self._held else None
