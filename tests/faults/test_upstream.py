"""Connections to engines, without a gateway around them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from gateway.core.flow import InstanceSpec
from gateway.wire.upstream import EngineConnection, Upstream


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_standstill_of_our_own_is_not_taken_for_an_engine_that_cannot_be_reached(run: Callable[[Any], Any], turns: int) -> None:
    async def open_one() -> EngineConnection | None:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        loop = asyncio.get_running_loop()
        spec = InstanceSpec("premium/a", "premium", "premium", 0, "m", "H100", 1.0, 4, url=url)
        upstream = Upstream(spec, loop, api_key=None, tls=None, connect_s=0.05, idle_s=1.0, user_agent="t")
        opened: asyncio.Future[EngineConnection | None] = loop.create_future()
        upstream.open(opened.set_result)
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(0.2)
        connection = await opened
        server.close()
        return connection

    connection = run(open_one())
    assert connection is not None
