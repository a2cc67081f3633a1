"""What a worker does about the shared state in the background: it looks again and again, whatever comes of a look.

When a look is due, and what is done then, is the business of those who look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from random import Random

from gateway.state.store import StoreError

log = logging.getLogger("slo_gateway")

LAST_LOOK_S = 1.0


class Bell:
    """Wakes whoever waits for it, or for the next to wait."""

    def __init__(self) -> None:
        self._rung = False
        self._waiting: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """There is something to look at."""
        self._rung = True
        self._stop_waiting()

    async def within(self, pause_s: float) -> None:
        """Until it rings, for `pause_s` at most."""
        if not self._rung:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = loop.call_later(pause_s, self._stop_waiting)
            try:
                await self._waiting
            finally:
                timer.cancel()
                self._waiting = None
        self._rung = False

    def _stop_waiting(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


async def again(every_s: float | Callable[[], float], what: str, look: Callable[[], Awaitable[object]], bell: Bell | None = None) -> None:
    """Wait for `every_s`, up to a tenth longer so that workers spread out, or for the bell, and look; until it is cancelled. A store that
    does not answer is told by its health, anything else that goes wrong by the log."""
    chance = Random()  # noqa: S311
    bell = bell or Bell()
    myself = asyncio.current_task()
    # Below a look, a cancellation that meets a timeout may be taken for one; that it was asked for stays known.
    while myself is None or not myself.cancelling():
        await bell.within((every_s if isinstance(every_s, float) else every_s()) * (1.0 + 0.1 * chance.random()))
        try:
            await look()
        except StoreError as error:
            log.debug("%s: %s", what, error)
        except Exception:
            log.exception("%s could not be shared", what)


async def ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel them, and wait until they have ended, for a second at most."""
    left = set(tasks)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=LAST_LOOK_S)
