"""When the configuration is read again without anybody waiting for the answer: at a signal, and when its file has changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.admin.views import Views

log = logging.getLogger("slo_gateway")

WATCH_EVERY_S = 1.0


async def reload_and_tell(views: Views) -> None:
    """As a signal asks for it: the log has the answer."""
    told = await views.reload()
    if told.ok:
        log.info("configuration read again: %s", "; ".join(told.changed) or "nothing has changed")
    else:
        for problem in told.problems:
            log.error("configuration refused, the old one goes on: %s", problem)


async def watch(changed: Callable[[], bool], read_again: Callable[[], None]) -> None:
    """Read the configuration again whenever its file has changed."""
    while True:
        await asyncio.sleep(WATCH_EVERY_S)
        if changed():
            read_again()
