"""A limit on time which a standstill of our own does not use up.

It is counted in two halves, between which the loop has looked at its sockets: after a process was not given the processor for a while,
every engine would else be called silent, all at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def within(limit_s: float) -> AsyncIterator[None]:
    """TimeoutError when what is inside takes longer."""
    loop, half_s = asyncio.get_running_loop(), limit_s / 2.0
    async with asyncio.timeout(None) as limit:
        halfway = loop.call_later(half_s, lambda: limit.reschedule(loop.time() + half_s))
        try:
            yield
        finally:
            halfway.cancel()
