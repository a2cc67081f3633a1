"""What any worker says of the whole fleet equals what one worker would have counted of it all."""

from __future__ import annotations

import asyncio
import math
import zlib
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.measure.attainment import tally_edges
from gateway.measure.tally import Tally
from gateway.state.blob import VERSION, WindowBlob, edges_of, pack, unpack
from gateway.state.memory import MemoryStore
from gateway.state.store import StoreError
from tests.measure.conftest import CHAT, SUMMARY
from tests.state.sharing import Server, store_at
from tests.state.telling import NAMES, UNIX_S, Clock, Teller, completed_in, pass_time

EDGES = tally_edges([CHAT, SUMMARY])


def nearest_rank(samples: list[float], q: float) -> float:
    return sorted(samples)[max(math.ceil(q * len(samples) - 1e-9), 1) - 1]


samples_s = st.lists(st.floats(1e-4, 100.0), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(by_worker=st.lists(samples_s, min_size=1, max_size=5), at=st.sampled_from([CHAT.ttft_s, SUMMARY.ttft_s]))
def test_percentiles_of_all_workers_are_those_of_the_pooled_samples_and_counts_at_targets_are_exact(
    by_worker: list[list[float]], at: float
) -> None:
    async def run() -> None:
        clock, store = Clock(), MemoryStore()
        tellers = [Teller(store, f"w{n}", clock, booted_s=n * 3333.3) for n in range(len(by_worker))]
        for teller, samples in zip(tellers, by_worker, strict=True):
            for sample_s in samples:
                teller.serve(ttft_s=sample_s, gaps_s=(sample_s / 10,))
        await pass_time(2, *tellers)
        pooled = [sample_s for samples in by_worker for sample_s in samples]
        for teller in tellers:
            [tally] = (await teller.fleet()).cells.values()
            assert tally.completed == tally.ttft.count == len(pooled)
            assert tally.attained == sum(sample_s <= CHAT.ttft_s for sample_s in pooled)
            assert tally.missed_ttft == sum(sample_s > CHAT.ttft_s for sample_s in pooled)
            assert tally.ttft.within(at) == sum(sample_s <= at for sample_s in pooled)
            for q in (0.5, 0.95, 0.99):
                assert tally.ttft.quantile(q) == pytest.approx(nearest_rank(pooled, q), rel=0.02)
                assert tally.itl.quantile(q) == pytest.approx(nearest_rank(pooled, q) / 10, rel=0.02)

    asyncio.run(run())


@pytest.mark.parametrize("window_s", [300.0, 3600.0])
def test_every_worker_answers_the_same_for_minutes_of_traffic(window_s: float) -> None:
    async def run() -> None:
        clock, chance = Clock(), Random(5)
        store = MemoryStore(lambda: clock.now_s)
        tellers = [Teller(store, name, clock, booted_s) for name, booted_s in (("a", 7.7), ("b", 12_345.6))]
        for _ in range(240):
            for teller in tellers:
                teller.serve(ttft_s=chance.random())
            await pass_time(1, *tellers)
        assert completed_in(await tellers[0].fleet(window_s)) == completed_in(await tellers[1].fleet(window_s)) == 480

    asyncio.run(run())


def test_history_outlives_workers_and_a_last_word_leaves_nothing_missing() -> None:
    async def run() -> None:
        clock = Clock()
        store = MemoryStore(lambda: clock.now_s)
        left, stays = Teller(store, "left", clock), Teller(store, "stays", clock, 50.0)
        for _ in range(95):
            left.serve()
            await pass_time(1, left, stays)
        left.serve()
        await left.telemetry.leave()
        await pass_time(20, stays)
        others = await stays.others()
        assert completed_in(await stays.fleet()) == 96
        assert others.lost == []
        assert others.present == []
        await pass_time(800, stays)
        assert completed_in(await stays.fleet(3600.0)) == 96

    asyncio.run(run())


@pytest.mark.parametrize("later_s", [15, 1000])
def test_a_killed_worker_takes_its_last_second_with_it_and_the_answer_says_so(later_s: int) -> None:
    async def run() -> None:
        clock = Clock()
        store = MemoryStore(lambda: clock.now_s)
        killed, stays = Teller(store, "killed", clock), Teller(store, "stays", clock, 50.0)
        for _ in range(77):
            killed.serve()
            await pass_time(1, killed, stays)
        killed.serve()
        await pass_time(later_s, stays)
        others = await stays.others(7200.0)
        assert completed_in(await stays.fleet(7200.0)) == 77
        assert [(heard.worker, round(heard.age_s)) for heard in others.lost] == [("killed", later_s)]

    asyncio.run(run())


def test_who_is_there_and_how_old_their_word_is_stands_in_the_answer() -> None:
    async def run() -> None:
        clock, store = Clock(), MemoryStore()
        tellers = [Teller(store, name, clock) for name in "abc"]
        await pass_time(5, *tellers)
        clock.now_s += 0.8
        others = await tellers[0].others()
        assert sorted((heard.worker, round(heard.age_s, 3)) for heard in others.present) == [("b", 0.8), ("c", 0.8)]

    asyncio.run(run())


def test_workers_with_other_targets_are_added_at_the_targets_both_have() -> None:
    async def run() -> None:
        clock, store = Clock(), MemoryStore()
        old, new = Teller(store, "old", clock), Teller(store, "new", clock)
        new.attainment.change_edges(tally_edges([CHAT]))
        for ttft_s in (0.149, 0.15, 0.151):
            old.serve(ttft_s=ttft_s)
            new.serve(ttft_s=ttft_s)
        await pass_time(1, old, new)
        for teller in (old, new):
            [tally] = (await teller.fleet()).cells.values()
            assert tally.ttft.within(CHAT.ttft_s) == 4

    asyncio.run(run())


def test_garbage_and_foreign_keys_under_the_windows_change_no_count(server: Server) -> None:
    async def run() -> None:
        clock, store = Clock(), store_at(server)
        told, reads = Teller(store, "told", clock), Teller(store, "reads", clock)
        told.serve()
        await pass_time(12, told, reads)
        client, chance = server.client(), Random(3)
        good = next(value for key in client.scan_iter() for field, value in client.hgetall(key).items() if field.startswith(b"told"))
        hostile = WindowBlob(VERSION, "liar", UNIX_S, UNIX_S + 1, False, edges_of(EDGES), [(("a",) * 5, b"\xc1")], [("t", b"\x00")])
        for key in client.scan_iter():
            client.hset(key, mapping={"x": b"", "y": b"\xff" * 999, "z": good[: len(good) // 2], "liar 1": pack(hostile)})
            for n in range(20):
                broken = bytearray(good)
                broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
                client.hset(key, f"broken {n}", bytes(broken))
        client.set(NAMES.window(10, UNIX_S - 100), b"text")
        client.lpush(NAMES.window(10, UNIX_S - 110), "list")
        assert completed_in(await reads.fleet()) == 1
        # And what stands where we write is replaced.
        for key in client.scan_iter():
            client.set(key, b"text")
        await pass_time(2, told, reads)
        assert completed_in(await reads.fleet()) == 1

    asyncio.run(run())


def test_a_bomb_is_not_unpacked() -> None:
    assert unpack(zlib.compress(bytes(200 * 1024 * 1024))) is None


async def two_minutes_of(server: Server) -> tuple[Teller, Teller]:
    """One who has told of 130 requests, one a second, and one who reads."""
    clock, store = Clock(), store_at(server)
    told = Teller(store, "told", clock)
    for _ in range(130):
        told.serve()
        await pass_time(1, told)
    return told, Teller(store, "reads", clock)


def test_what_an_emptied_server_has_lost_is_told_again_within_two_flushes(server: Server) -> None:
    async def run() -> None:
        told, reads = await two_minutes_of(server)
        server.client().flushall()
        await pass_time(2, told)
        assert completed_in(await reads.fleet()) == 130
        assert completed_in(await reads.fleet(3600.0)) == 130

    asyncio.run(run())


def test_a_server_that_loses_everything_every_second_is_not_told_everything_every_second(server: Server) -> None:
    async def run() -> None:
        told, reads = await two_minutes_of(server)
        written = 0
        for _ in range(20):
            server.client().flushall()
            server.client().config_resetstat()
            told.serve()
            await pass_time(1, told)
            written += server.client().info("commandstats")["cmdstat_hset"]["calls"]
        assert written <= 3 * (13 + 2 + 2) + 20 * 3  # windows of ten seconds and minutes there are, and those that are open
        await pass_time(12, told)
        assert completed_in(await reads.fleet()) == 150

    asyncio.run(run())


def test_what_could_not_be_told_while_the_server_was_away_is_told_afterwards(server: Server) -> None:
    async def run() -> None:
        clock, store = Clock(), store_at(server)
        told, reads = Teller(store, "told", clock), Teller(store, "reads", clock)
        told.serve()
        await pass_time(1, told)
        server.kill()
        for _ in range(25):
            told.serve()
            clock.now_s += 1.0
            told.attainment.tick(told.at_s)
            with pytest.raises(StoreError):
                await told.telemetry.flush()
        others = await reads.others()
        assert others.unreachable
        await asyncio.to_thread(server.start)
        await pass_time(2, told)
        assert completed_in(await reads.fleet()) == 26

    asyncio.run(run())


def test_a_blob_is_read_back_as_it_was_written() -> None:
    tally = Tally(EDGES)
    tally.completed = 3
    tally.ttft.record(0.15, 3)
    blob = WindowBlob(VERSION, "w", 1.0, 2.0, True, edges_of(EDGES), [(("c", "u", "p", "m", "chat"), tally.pack())], [])
    assert unpack(pack(blob)) == blob
