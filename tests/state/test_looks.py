"""The loop below everything that is shared goes on whatever a look comes to, and ends when it is told to."""

from __future__ import annotations

import asyncio

from gateway.state.looks import Bell, again, ended
from gateway.state.store import StoreError
from tests.conftest import HANG_S


def test_looks_go_on_after_a_silent_store_and_after_a_mistake() -> None:
    async def run() -> None:
        looked: list[int] = []
        enough = asyncio.Event()

        async def look() -> None:
            looked.append(1)
            if len(looked) == 1:
                raise StoreError("no answer", "here")
            if len(looked) == 2:
                raise RuntimeError("a mistake")
            enough.set()

        task = asyncio.ensure_future(again(0.0, "a test", look))
        await asyncio.wait_for(enough.wait(), HANG_S)
        await ended([task])
        assert task.cancelled()

    asyncio.run(run())


def test_a_loop_ends_although_a_look_took_its_cancellation_for_something_else() -> None:
    async def run() -> None:
        looking = asyncio.Event()
        swallowed: list[int] = []

        async def look() -> None:
            looking.set()
            try:
                await asyncio.sleep(30.0)
            except asyncio.CancelledError:
                swallowed.append(1)

        task = asyncio.ensure_future(again(0.0, "a test", look))
        await looking.wait()
        await asyncio.wait_for(ended([task]), HANG_S)
        assert task.done()
        assert len(swallowed) == 1

    asyncio.run(run())


def test_a_bell_ends_the_pause_before_a_look_and_is_heard_by_who_comes_later() -> None:
    async def run() -> None:
        looked = asyncio.Event()
        bell = Bell()

        async def look() -> None:
            looked.set()

        task = asyncio.ensure_future(again(1000.0, "a test", look, bell))
        for _ in range(3):
            bell.ring()  # also while nobody waits for it
            await asyncio.wait_for(looked.wait(), HANG_S)
            looked.clear()
        await ended([task])
        assert task.cancelled()

    asyncio.run(run())
