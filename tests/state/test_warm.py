"""A new worker begins with what the fleet has learnt, and with nothing that could not have been learnt."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Callable
from random import Random

import msgspec
import pytest

from gateway.core.instance import Instance
from gateway.predict.predictor import LearningPredictor
from gateway.state.controller import ControllerLease
from gateway.state.memory import MemoryStore
from gateway.state.names import Names
from gateway.state.warm import WarmStart, packed, read
from tests.predict.conftest import Bench, bench, ticket_of

__all__ = ["bench"]
NAMES = Names("warm")


def side(predictor: LearningPredictor, store: MemoryStore, name: str) -> WarmStart:
    return WarmStart(predictor, store, NAMES, ControllerLease(store, NAMES, name, holds_s=60.0))


async def told(made: Bench) -> MemoryStore:
    store = MemoryStore()
    teller = side(made.predictor, store, "old")
    assert not await teller.begin()
    assert await teller._controller.renew()
    assert await teller.tell()
    return store


def test_a_new_worker_predicts_what_the_fleet_predicts(bench: Callable[..., Bench]) -> None:
    async def run() -> None:
        made = bench(misjudged=2.0)
        made.run(300)
        store = await told(made)
        new = LearningPredictor({}, cautious=False)
        assert await side(new, store, "new").begin()
        for known in made.instances.values():
            for tokens in (100, 4_000):
                ticket = ticket_of(tokens)
                assert new.expected_output_tokens(ticket) == pytest.approx(made.predictor.expected_output_tokens(ticket), rel=0.1)
                mine, theirs = new.predict_idle(ticket, Instance(known.spec)), made.predictor.predict_idle(ticket, known)
                assert mine.ttft_s == pytest.approx(theirs.ttft_s, rel=0.01)
                assert mine.itl_s == pytest.approx(theirs.itl_s, rel=0.01)

    asyncio.run(run())


def test_only_the_controller_tells_and_only_what_it_has_learnt(bench: Callable[..., Bench]) -> None:
    async def run() -> None:
        made, store = bench(), MemoryStore()
        fresh = side(LearningPredictor({}), store, "fresh")
        assert await fresh._controller.renew()
        assert not await fresh.tell()
        made.run(200)
        assert not await side(made.predictor, store, "other").tell()
        assert await store.get(NAMES.learnt) is None

    asyncio.run(run())


def test_a_worker_that_has_learnt_by_itself_keeps_what_it_knows(bench: Callable[..., Bench]) -> None:
    async def run() -> None:
        made = bench(misjudged=2.0)
        made.run(300)
        store = await told(made)
        late = bench()
        late.run(300)
        before = late.predictor.state()
        assert not await side(late.predictor, store, "late").begin()
        assert late.predictor.state() == before

    asyncio.run(run())


def test_garbage_is_never_taken_over(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.run(100)
    state = made.predictor.state()
    good, chance = packed(state), Random(11)
    assert read(good) is not None
    hostile = [b"", b"\x00" * 50, good[:-5], zlib.compress(b"\xc1"), zlib.compress(bytes(100_000_000))]
    [kind] = state["latencies"]["keys"]
    for path, value in (
        (("latencies", "keys", kind, "step", "weights"), [math.nan, 1.0, 1.0, 1.0]),
        (("latencies", "keys", kind, "step", "weights"), [1.0]),
        (("latencies", "keys", kind, "step", "covariance"), [[math.inf] * 4] * 4),
        (("latencies", "keys", kind, "first_ratio", "counts"), [1.0]),
        (("latencies", "keys", kind, "first_ratio", "p90"), -1.0),
        (("latencies", "instances"), {"pool/0": {"ttft": 0.0, "step": 1.0, "own": None}}),
        (("lengths",), [[["chatbot"], 0.0, 3, [[1, 2.0]]]]),
        (("lengths",), [[["chatbot"], 1.0, 3, [[64, 2.0]]]]),
        (("prompts",), [["t", "m", 0.0, 3]]),
        (("prefixes",), {"pool/0": 2.0}),
        (("version",), 99),
    ):
        twisted = msgspec.msgpack.decode(msgspec.msgpack.encode(state))
        inner = twisted
        for word in path[:-1]:
            inner = inner[word]
        inner[path[-1]] = value
        hostile.append(packed(twisted))
    assert [data for data in hostile if read(data) is not None] == []
    for _ in range(300):
        broken = bytearray(good)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        found = read(bytes(broken))
        assert found is None or found.state() == made.predictor.state()
