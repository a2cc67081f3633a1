"""Leases on a real server: never above the limit, whoever hammers; killed workers' slots come back; the server may do what it likes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway.state import slots
from tests.conftest import HANG_S
from tests.state.sharing import KEY, STANDS_S, Server, Worker, round_of


@pytest.fixture(params=["valkey", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def becomes(true: Callable[[], Any], step: Callable[[], Awaitable[Any]], within_s: float = HANG_S) -> None:
    end_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end_s, "not in time"
        await step()
        await asyncio.sleep(0.005)


async def settled(*workers: Worker) -> None:
    await becomes(lambda: all(w.slots.settled for w in workers), lambda: round_of(*workers))


def total(workers: list[Worker], instance_id: str = "premium/a") -> int:
    return sum(worker.in_flight(instance_id) for worker in workers)


def test_a_worker_alone_has_all_slots_after_one_answer(server: Server) -> None:
    async def run() -> None:
        worker = Worker(server, "a", 8)
        worker.arrive(count=1)
        assert worker.in_flight() == 0
        await worker.slots.renew()
        assert worker.leased() == 8
        assert worker.in_flight() == 1
        assert worker.told == [False]

    asyncio.run(run())


@pytest.mark.parametrize("limits", [(1,), (4,), (7, 16)])
def test_four_workers_that_hammer_never_have_more_running_than_the_limit(server: Server, limits: tuple[int, ...]) -> None:
    async def run() -> None:
        chance = Random(7)
        workers = [Worker(server, name, *limits) for name in "abcd"]
        ids = list(workers[0].core.fleet.by_id)
        started = 0
        end_s = time.monotonic() + 1.3  # long enough for a turn to change

        async def hammer(worker: Worker) -> None:
            nonlocal started
            while time.monotonic() < end_s or (started <= 50 and time.monotonic() < end_s + HANG_S):  # a busy machine needs longer
                for _ in range(chance.randrange(4)):
                    worker.arrive(chance.randrange(5), n=chance.choice((1, 1, 1, 2)) if min(limits) > 1 else 1)
                for _ in range(chance.randrange(4)):
                    started += bool(worker.running)
                    worker.finish(chance)
                for number, instance_id in enumerate(ids):
                    assert total(workers, instance_id) <= limits[number]
                await worker.slots.renew()

        await asyncio.gather(*map(hammer, workers))
        assert started > 50

    asyncio.run(run())


def test_an_idle_worker_hands_its_slots_to_one_that_starves(server: Server) -> None:
    async def run() -> None:
        idle, busy = Worker(server, "a", 8), Worker(server, "b", 8)
        await round_of(idle, busy, times=3)
        assert idle.leased() == busy.leased() == 2  # half of it all, and the other half is whose it must be
        busy.arrive(rank=0, count=20)
        await round_of(busy, idle, busy)
        assert (idle.leased(), busy.in_flight()) == (0, 8)

    asyncio.run(run())


def test_two_workers_that_want_everything_get_half_each(server: Server) -> None:
    async def run() -> None:
        first, second = Worker(server, "a", 8), Worker(server, "b", 8)
        await first.slots.renew()

        async def step() -> None:
            for worker in (first, second):
                worker.finish()
                worker.arrive(rank=0, count=9)
            await round_of(first, second)

        await becomes(lambda: first.in_flight() == second.in_flight() == 4, step)
        assert first.leased() == second.leased() == 4

    asyncio.run(run())


def test_a_killed_workers_slots_are_back_within_the_time_a_lease_stands(server: Server) -> None:
    async def run() -> None:
        killed, left = (Worker(server, name, 8, stands_s=STANDS_S) for name in "ab")
        await killed.slots.renew()
        killed.arrive(rank=0, count=8)
        await round_of(killed, left)
        renewed_at_s = time.monotonic()
        await round_of(killed, left)
        left.arrive(rank=0, count=8)
        await round_of(left)
        assert (killed.in_flight(), left.in_flight()) == (8, 0)

        async def step() -> None:
            await round_of(left)
            left.arrive(rank=0)

        await becomes(lambda: left.in_flight() == 8, step)
        assert time.monotonic() - renewed_at_s >= STANDS_S  # it stood for as long as it was promised

    asyncio.run(run())


def test_a_worker_that_leaves_gives_its_slots_back_at_once(server: Server) -> None:
    async def run() -> None:
        leaving, left = Worker(server, "a", 8), Worker(server, "b", 8)
        await round_of(leaving, left, times=2)
        await leaving.slots.leave()
        await round_of(left, times=2)
        assert left.leased() == 8

    asyncio.run(run())


@pytest.mark.parametrize(
    "harm",
    [
        lambda client: client.flushall(),
        lambda client: client.set(KEY, "garbage"),
        lambda client: client.hset(KEY, "a", b"\xff\xfegarbage"),
        lambda client: client.hset(KEY, "zz", b"\x92\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00\x80"),
        lambda client: client.hset(KEY, "", "never"),
        lambda client: client.delete(KEY) and client.rpush(KEY, "x"),
    ],
    ids=["flushall", "wrong type", "a record overwritten", "a record that never expires", "the date overwritten", "a list"],
)
def test_whatever_becomes_of_the_keys_what_is_held_is_kept_and_no_limit_is_passed(server: Server, harm: Callable[[Any], Any]) -> None:
    async def run() -> None:
        workers = [Worker(server, name, 8, stands_s=STANDS_S) for name in "abc"]
        await settled(*workers)
        workers[0].arrive(rank=0, count=8)
        await round_of(workers[0], workers[1], workers[2], workers[0], times=2)
        assert workers[0].in_flight() == 8
        harm(server.client())
        for worker in workers[1:]:
            worker.arrive(rank=0, count=8)
        for _ in range(5):
            await round_of(*reversed(workers))
            assert total(workers) <= 8
            workers[0].finish()

        async def step() -> None:
            for worker in workers[1:]:
                worker.arrive(rank=0)
            workers[0].finish()
            await round_of(*workers)
            assert total(workers) <= 8

        await becomes(lambda: workers[1].in_flight() and workers[2].in_flight(), step)
        assert not any(True in worker.told for worker in workers)

    asyncio.run(run())


def test_slots_move_again_as_soon_as_all_that_were_there_have_called_an_emptied_server(server: Server) -> None:
    async def run() -> None:
        workers = [Worker(server, name, 4, stands_s=30.0) for name in "abc"]  # nothing runs out meanwhile
        first, *others = workers
        await round_of(*workers, times=3)
        first.arrive(rank=0)
        await round_of(first)
        for harm in (lambda client: client.flushall(), lambda client: client.hset(KEY, "c", b"\xff\xfe")):
            harm(server.client())
            others[0].arrive(rank=0)
            await round_of(first, others[0], times=4)  # the third is not heard of: it may hold whatever it held
            assert others[0].in_flight() == 0
            await round_of(others[1], others[0])
            assert others[0].in_flight() == 1
            others[0].finish()
            await round_of(*workers, times=2)
        assert total_leased(workers) <= 4

    asyncio.run(run())


def test_whatever_is_lost_and_whoever_is_cut_off_for_a_while_no_limit_is_passed(server: Server) -> None:
    seed = 3

    async def run() -> None:
        chance = Random(seed)
        workers = [Worker(server, name, 5, stands_s=30.0) for name in "abcd"]
        await settled(*workers)
        started = moved = 0
        for step in range(1500):
            worker = chance.choice(workers)
            worker.store.cut_off = chance.random() < 0.02 or (worker.store.cut_off and chance.random() < 0.8)
            if chance.random() < 0.02:
                server.client().flushall()
            if chance.random() < 0.02:
                server.client().hset(KEY, chance.choice("abcd"), b"\xff\xfe")
            if chance.random() < 0.5:
                worker.arrive(chance.randrange(5))
            elif chance.random() < 0.8:
                started += bool(worker.running)
                worker.finish(chance)
            before = worker.leased()
            await worker.slots.renew()
            moved += worker.leased() > before
            assert total(workers) <= 5, f"seed {seed}, step {step}"
        assert started > 100
        assert moved > 50

    asyncio.run(run())


def test_a_server_that_is_emptied_again_and_again_is_not_asked_more_often_for_it(server: Server) -> None:
    """What nobody may have for the moment is not asked for every ten milliseconds."""

    async def run() -> None:
        workers = [Worker(server, name, 4, stands_s=30.0) for name in "ab"]
        lost = Worker(server, "c", 4, stands_s=30.0)
        await round_of(*workers, lost, times=3)
        workers[0].arrive(rank=0, count=4)
        await round_of(*workers, times=2)
        server.client().flushall()  # the third is not there any more, and nobody knows what it held
        workers[1].arrive(rank=0, count=4)
        await round_of(*workers)
        for worker in workers:
            assert not worker.slots.settled
            assert worker.slots._due_at_s() == worker.slots._asked_at_s + slots.EVERY_S

    asyncio.run(run())


def test_while_the_server_is_silent_leases_hold_and_then_a_fixed_share_does(server: Server) -> None:
    async def run() -> None:
        workers = [Worker(server, name, 7, timeout_s=0.1, stands_s=STANDS_S) for name in "abc"]
        await settled(*workers)
        workers[0].arrive(rank=0, count=5)
        await round_of(*workers, times=2)
        held = [worker.leased() for worker in workers]
        assert held[0] >= 5
        server.pause()
        await asyncio.gather(*(worker.slots.renew() for worker in workers))
        assert workers[0].leased() >= 5 - 1

        async def step() -> None:
            await asyncio.gather(*(w.slots.renew() for w in workers))
            assert sum(worker.leased() for worker in workers) <= 7

        await becomes(lambda: {worker.leased() for worker in workers} == {2, 3}, step)
        assert all(worker.slots.lost for worker in workers)
        assert sum(worker.leased() for worker in workers) == 7
        for worker in workers:
            worker.arrive(rank=0)
        assert all(worker.in_flight() for worker in workers)
        server.go_on()
        await becomes(lambda: not any(w.slots.lost for w in workers), lambda: round_of(*workers))
        assert all(worker.told[:3] == [False, True, False] for worker in workers)  # a machine that stands still may repeat it

    asyncio.run(run())


def test_who_falls_back_first_takes_nothing_that_another_one_still_holds(server: Server) -> None:
    async def run() -> None:
        early, late = (Worker(server, name, 8, timeout_s=0.1, stands_s=STANDS_S) for name in "ab")
        await settled(early, late)
        late.arrive(rank=0, count=8)
        await becomes(lambda: late.leased() == 8, lambda: round_of(early, late))
        server.pause()

        async def step() -> None:
            await early.slots.renew()
            assert early.leased() + late.leased() <= 8
            await asyncio.sleep(0.005)

        await becomes(lambda: bool(early.slots.lost), step)
        await becomes(lambda: bool(late.slots.lost), late.slots.renew)
        await becomes(lambda: early.leased() == late.leased() == 4, lambda: asyncio.gather(step(), late.slots.renew()))
        server.go_on()

    asyncio.run(run())


def test_what_a_worker_holds_is_kept_for_it_longer_than_it_goes_by_it(server: Server) -> None:
    async def run() -> None:
        delayed, other = (Worker(server, name, 8, stands_s=STANDS_S) for name in "ab")
        await delayed.slots.renew()
        delayed.arrive(rank=0, count=8)
        await delayed.slots.renew()
        until_s = delayed.slots._until_s + STANDS_S * 0.25
        other.arrive(rank=0, count=8)
        while time.monotonic() < until_s:
            await other.slots.renew()
            assert not other.leased() or time.monotonic() >= until_s

    asyncio.run(run())


def test_the_first_that_is_back_takes_nothing_that_the_others_go_on_with(server: Server) -> None:
    async def run() -> None:
        workers = [Worker(server, name, 7, stands_s=STANDS_S) for name in "abc"]
        await settled(*workers)
        await round_of(*workers, times=2)
        for worker in workers:
            worker.store.cut_off = True
        await becomes(
            lambda: {worker.leased() for worker in workers} == {2, 3}, lambda: asyncio.gather(*(w.slots.renew() for w in workers))
        )
        over_s = time.monotonic() + STANDS_S * 2.0
        # They have nothing on the server any more.
        await becomes(lambda: time.monotonic() > over_s, lambda: asyncio.gather(*(w.slots.renew() for w in workers)))
        for worker in workers:
            worker.store.cut_off = False
        first = workers[0]
        first.arrive(rank=0, count=7)

        async def step() -> None:
            await first.slots.renew()
            assert total_leased(workers) <= 7

        await becomes(lambda: first.slots.lost is False, step)
        for _ in range(5):
            await step()

        async def all_back() -> None:
            first.arrive(rank=0)
            for worker in workers:
                await worker.slots.renew()
                assert total_leased(workers) <= 7

        await becomes(lambda: first.in_flight() == 7, all_back)

    asyncio.run(run())


def total_leased(workers: list[Worker]) -> int:
    return sum(worker.leased() for worker in workers)


def test_closed_uses_no_slot_once_its_leases_have_run_out(server: Server) -> None:
    async def run() -> None:
        worker = Worker(server, "a", 8, closed=True, timeout_s=0.1, stands_s=STANDS_S)
        await worker.slots.renew()
        server.pause()
        await becomes(lambda: worker.slots.lost, worker.slots.renew)
        worker.arrive(rank=3)
        assert (worker.leased(), worker.in_flight()) == (0, 0)
        server.go_on()
        await becomes(lambda: worker.in_flight() == 1, worker.slots.renew)

    asyncio.run(run())


def test_a_server_that_comes_back_empty_finds_everybody_holding_what_they_held(server: Server) -> None:
    async def run() -> None:
        workers = [Worker(server, name, 8) for name in "ab"]
        await round_of(*workers, times=3)
        workers[0].arrive(rank=0, count=6)
        await round_of(*workers, times=3)
        held = [worker.leased() for worker in workers]
        server.kill()
        server.start()
        await round_of(*workers)
        assert [worker.leased() for worker in workers] == held
        assert workers[0].in_flight() == 6

    asyncio.run(run())


def test_without_a_server_at_the_start_each_goes_on_with_its_share_of_the_expected(tmp_path: Path) -> None:
    async def run() -> None:
        server = Server(tmp_path)
        server.kill()
        worker = Worker(server, "a", 8, expected=4)
        await worker.slots.renew()
        assert (worker.slots.lost, worker.leased()) == (True, 2)
        scarce = Worker(server, "b", 2, expected=4)
        await scarce.slots.renew()
        assert scarce.leased() == 1  # going on means that each may do something

    asyncio.run(run())


def test_slots_that_waiting_work_does_not_take_are_left_to_others(server: Server) -> None:
    async def run() -> None:
        picky, other = Worker(server, "a", 4, 4), Worker(server, "b", 4, 4)
        await settled(picky, other)
        picky.arrive(rank=0, count=4)
        await round_of(picky, other, picky)
        # Whoever waits here has tried both instances and failed: it can use neither.
        for _ in range(3):
            picky.arrive(rank=0)
        for queues in picky.core.queues.by_model.values():
            for lane in queues.lanes:
                for ticket in lane.tickets():
                    ticket.tried = tuple(picky.core.fleet.by_id)
        other.arrive(rank=0, count=20)
        await becomes(lambda: total([picky, other]) + total([picky, other], "premium/b") == 8, lambda: round_of(picky, other))
        assert other.in_flight() + other.in_flight("premium/b") > 0

    asyncio.run(run())


def test_commands_do_not_grow_with_requests(server: Server) -> None:
    async def run() -> None:
        worker = Worker(server, "a", 8)
        await worker.slots.renew()
        before = worker.store.calls
        for _ in range(500):
            worker.arrive(rank=0)
            worker.finish()
        assert worker.store.calls == before
        await worker.slots.renew()
        assert worker.store.calls <= before + 2

    asyncio.run(run())


def test_the_lowest_limit_that_somebody_with_work_there_vouches_for_is_in_force(server: Server) -> None:
    async def run() -> None:
        from tests.core import conftest as made

        workers = [Worker(server, name, 16) for name in "ab"]
        for worker in workers:
            worker.live.instances_changed([made.instance("premium/a", limit=16, limit_pinned=False)])
        await settled(*workers)
        first, second = workers
        first.arrive(rank=0, count=3)
        first.core.fleet.by_id["premium/a"].limit = 16
        first.core.fleet._set_slots(first.core.fleet.by_id["premium/a"], 6)
        await round_of(first, second, times=4)
        second.arrive(rank=0, count=16)
        await round_of(first, second, times=4)
        assert total(workers) <= 6

    asyncio.run(run())


def test_a_burst_at_one_worker_takes_what_nobody_holds_with_one_call(server: Server) -> None:
    async def run() -> None:
        workers = [Worker(server, name, 32) for name in "abcd"]
        await round_of(*workers, times=3)
        bursting = workers[0]
        held, calls = bursting.leased(), bursting.store.calls
        assert held == 4
        bursting.arrive(rank=0, count=16)
        assert bursting.in_flight() == held
        await bursting.slots.renew()
        assert bursting.in_flight() == 16
        assert bursting.store.calls == calls + 1
        assert total_leased(workers) <= 32

    asyncio.run(run())


def test_a_lease_that_is_wanted_is_asked_for_at_once(server: Server) -> None:
    async def run() -> None:
        workers = [Worker(server, name, 4) for name in "abcd"]
        await round_of(*workers, times=3)
        assert total_leased(workers) == 0  # too few to spread: all are anybody's
        task = asyncio.ensure_future(workers[0].slots.run())
        await becomes(lambda: workers[0].slots._bell._waiting is not None, lambda: asyncio.sleep(0))
        calls = workers[0].store.calls
        await workers[0].slots.renew()  # that there was a call just now, for another reason, is no reason to wait
        asked_at_s = workers[0].slots._asked_at_s
        workers[0].arrive(rank=0)
        assert workers[0].slots._due_at_s() < asked_at_s
        await becomes(lambda: workers[0].in_flight() == 1, lambda: asyncio.sleep(0))
        assert workers[0].store.calls == calls + 2
        workers[0].arrive(rank=0)
        assert workers[0].slots._due_at_s() == workers[0].slots._moved_at_s + slots.BORROW_S  # but one after the other, they do
        task.cancel()

    asyncio.run(run())


def test_without_an_answer_nothing_is_counted_on_but_what_is_held(server: Server) -> None:
    async def run() -> None:
        first, second = Worker(server, "a", 8, timeout_s=1.0), Worker(server, "b", 8)
        await round_of(first, second, times=4)
        shared = first.core.fleet.by_id["premium/a"]
        assert (shared.leased, shared.reach) == (2, 6)
        server.pause()
        await first.slots.renew()
        assert (shared.leased, shared.reach) == (2, 2)
        server.go_on()
        await becomes(lambda: shared.reach == 6, first.slots.renew)

    asyncio.run(run())


def test_what_is_told_of_stakes_that_cannot_be_true_weighs_nothing(server: Server) -> None:
    async def run() -> None:
        import msgspec

        worker = Worker(server, "a", 8)
        await worker.slots.renew()
        for stake in (float("nan"), float("inf"), -1.0, 1e300):
            row = [1, 8, [1, 0, 0, [1, 0, 0, 0, 0]], [stake, -3.0]]
            until_ms = int(time.time() * 1000) + 30_000
            server.client().hset(KEY, "liar", msgspec.msgpack.encode([until_ms, {"premium/a": row}, 1]))
            await worker.slots.renew()
            instance = worker.core.fleet.by_id["premium/a"]
            assert instance.others_in_flight == 1
            assert (instance.stake_per_s, instance.tightest_itl_s) == (0.0, float("inf"))

    asyncio.run(run())
