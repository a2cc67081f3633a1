"""Second opinions, as a worker asks for them: of the messages that the classifier names, after their requests have gone on, and without
anything waiting for the answer. Who answers is adviser.py's business.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from gateway.classify.text import OPINION, glance
from gateway.serve.link import LinkError

if TYPE_CHECKING:
    from gateway.classify.apps import App
    from gateway.openai.body import Body
    from gateway.serve.adviser import Pieces

MOST_ASKED = 32
"""at the same time"""
ENDS = ("agreed", "changed", "dropped", "failed")


class Advises(Protocol):
    """adviser.Adviser, or the supervisor's over a link."""

    async def ask(self, pieces: Pieces) -> list[float] | None: ...


class SecondOpinion:
    """`about` is what classify/learned.Learned takes as `second`. Counts how questions ended, and how long answers took."""

    def __init__(self, adviser: Advises, loop: asyncio.AbstractEventLoop) -> None:
        self.ended = dict.fromkeys(ENDS, 0)
        self.answers_s = 0.0  # of all answers together, waiting included
        self._adviser, self._loop = adviser, loop
        self._asking: set[asyncio.Task[None]] = set()

    def about(self, app: App, body: Body) -> None:
        """Ask, once the request is on its way."""
        if len(self._asking) >= MOST_ASKED:
            self.ended["dropped"] += 1
            return
        task = self._loop.create_task(self._ask(app, body))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def stop(self) -> None:
        """Wait for no answer any more."""
        for task in self._asking:
            task.cancel()

    async def _ask(self, app: App, body: Body) -> None:
        pieces = [(zone, text.encode("utf8", "replace").decode()) for zone, text in glance(body, OPINION).pieces]
        del body  # it may be large, and the answer takes a while
        asked_at_s = time.monotonic()
        try:
            told = await self._adviser.ask(pieces)
        except LinkError:
            self.ended["failed"] += 1
            return
        if told is None:
            self.ended["dropped"] += 1
            return
        self.answers_s += time.monotonic() - asked_at_s
        self.ended["changed" if app.is_advised(told) else "agreed"] += 1
