"""Between tenants it is the fleet's turns that are fair, whichever worker serves them."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest

from gateway.core.queues import Queues
from gateway.state.memory import MemoryStore
from gateway.state.names import Names
from gateway.state.turns import Told, Turns
from tests.core import conftest as made

NAMES = Names("turns")
COST = 100


class Side:
    """A worker's queues, and what tells of them."""

    def __init__(self, store: MemoryStore, name: str, **waiting: int) -> None:
        self.unix_s = 1_000_000.0
        core = made.core_with(made.instance("premium/a"))
        self.queues: Queues = core.queues
        self.turns = Turns(self.queues, store, NAMES, name, unix=lambda: self.unix_s)
        self.served: Counter[str] = Counter()
        for tenant, count in waiting.items():
            for _ in range(count):
                request = made.request(arrived_at_s=0.0, tenant=tenant)
                ticket = core.ticket(request, made.tag(1))
                self.queues.push(ticket)

    @property
    def lane(self):  # type: ignore[no-untyped-def]
        return self.queues.of(made.MODEL).lanes[1]

    def serve(self, count: int = 1) -> None:
        for _ in range(count):
            heads = self.lane.heads(1)
            if heads:
                self.served[heads[0].request.tenant] += 1
                self.queues.took(heads[0])


def test_a_tenant_that_another_worker_serves_a_lot_comes_later_here() -> None:
    async def run() -> None:
        store = MemoryStore()
        busy, here = Side(store, "busy", big=100), Side(store, "here", big=100, small=100)
        await busy.turns.look()
        await here.turns.look()
        for _ in range(40):
            busy.serve()
            await busy.turns.look()
            await here.turns.look()
            here.serve()
        assert busy.served["big"] == 40
        # Of 80 turns of the fleet each tenant should have had 40; all of big's were elsewhere.
        assert here.served["small"] >= 38

    asyncio.run(run())


def test_alone_both_get_the_same() -> None:
    async def run() -> None:
        store = MemoryStore()
        here = Side(store, "here", big=100, small=100)
        for _ in range(40):
            await here.turns.look()
            here.serve()
        assert here.served == {"big": 20, "small": 20}

    asyncio.run(run())


def test_what_was_served_before_a_worker_was_first_seen_is_no_debt() -> None:
    async def run() -> None:
        store = MemoryStore()
        busy, here = Side(store, "busy", big=60), Side(store, "here", big=50, small=50)
        busy.serve(60)
        await busy.turns.look()
        for _ in range(20):
            await here.turns.look()
            here.serve()
        assert here.served == {"big": 10, "small": 10}

    asyncio.run(run())


def test_a_debt_is_counted_once_also_when_the_minute_changes() -> None:
    async def run() -> None:
        store = MemoryStore()
        busy, here = Side(store, "busy", big=60), Side(store, "here", big=50, small=50)
        await busy.turns.look()
        await here.turns.look()
        busy.serve(4)
        for _ in range(3):
            await busy.turns.look()
            await here.turns.look()
            busy.unix_s += 60.0
            here.unix_s += 60.0
        here.serve(24)
        assert here.served == {"small": 14, "big": 10}

    asyncio.run(run())


@pytest.mark.parametrize("data", [b"", b"\xc1", msgspec.msgpack.encode(Told(2, [])), msgspec.msgpack.encode([1, [["m", "c"]]])])
def test_garbage_moves_no_turn(data: bytes) -> None:
    async def run() -> None:
        store = MemoryStore()
        here = Side(store, "here", big=50, small=50)
        for _ in range(2):
            await store.put_fields(NAMES.turns(int(here.unix_s // 60)), {"liar": data}, 60.0)
            await here.turns.look()
        here.serve(20)
        assert here.served == {"big": 10, "small": 10}

    asyncio.run(run())


@pytest.mark.parametrize("tokens", [-1e9, 1e300, float("nan"), float("inf")])
def test_figures_that_cannot_be_true_move_no_turn(tokens: float) -> None:
    async def run() -> None:
        store = MemoryStore()
        here = Side(store, "here", big=50, small=50)
        lane = here.lane.experience_class
        for told in (0.0, tokens):
            rows = [(made.MODEL, lane, "big", told)]
            await store.put_fields(NAMES.turns(int(here.unix_s // 60)), {"liar": msgspec.msgpack.encode(Told(1, rows))}, 60.0)
            await here.turns.look()
        here.serve(20)
        assert here.served == {"big": 10, "small": 10}

    asyncio.run(run())
