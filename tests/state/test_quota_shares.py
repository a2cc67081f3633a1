"""Quotas that several workers keep together, on a real server: what they take adds up to no more than the limit."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest

from gateway.core.flow import Outcome, Result
from gateway.openai.errors import ApiError
from gateway.quota.quotas import Quotas, Reserved
from gateway.state.quota_shares import SCRIPT, QuotaShares
from gateway.state.store import Arg
from tests.conftest import HANG_S
from tests.quota.test_quotas import settings, ticket
from tests.state.sharing import LONG_S, STANDS_S, Counting, Server

KEY = "{slo-gateway}:quotas"


class Slow(Counting):
    """A store whose answers may come late, or never."""

    meanwhile: Callable[[], object] | None = None  # happens after the server has answered and before we hear of it
    deaf = False

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        answer = await super().run(script, keys, args)
        if self.meanwhile is not None:
            self.meanwhile()
        if self.deaf:
            raise self.health.failed("no answer in time")
        return answer


class Worker:
    """A worker's quotas and its share of them."""

    def __init__(self, server: Server, name: str, quota: dict[str, Any], stands_s: float = LONG_S, timeout_s: float = HANG_S) -> None:
        self.quotas = Quotas(settings(quota), time.monotonic)
        self.store = Slow(server, timeout_s)
        self.shares = QuotaShares(lambda: self.quotas, self.store, KEY, name, stands_s=stands_s)
        self.shares.begin()
        self.taken: list[Reserved] = []
        self.refused = 0

    def take(self, rank: int = 1) -> bool:
        try:
            reserved = self.quotas.reserve("k0", ticket(rank))
        except ApiError:
            self.refused += 1
            return False
        assert reserved is not None
        self.taken.append(reserved)
        return True

    def over(self, tokens: int = 150) -> None:
        self.quotas.settle(self.taken.pop(0), Outcome(Result.COMPLETED, prompt_tokens=tokens))

    def remaining(self) -> int:
        return next(measure.remaining(time.monotonic()) for _, _, measure in self.quotas.rows())


async def look(*workers: Worker, times: int = 1) -> None:
    for _ in range(times):
        for worker in workers:
            await worker.shares.look()


def four(server: Server, stands_s: float = LONG_S, timeout_s: float = HANG_S, **quota: Any) -> list[Worker]:
    return [Worker(server, name, quota, stands_s, timeout_s) for name in "abcd"]


def test_a_worker_alone_may_spend_all_of_it(server: Server) -> None:
    async def run() -> None:
        worker = Worker(server, "a", {"requests_per_minute": 3})
        await look(worker)
        assert [worker.take() for _ in range(4)] == [True, True, True, False]

    asyncio.run(run())


@pytest.mark.parametrize("limit", [1, 7, 100, 1000])
def test_four_that_hammer_take_all_of_the_limit_and_not_one_more(server: Server, limit: int) -> None:
    async def run() -> None:
        workers = four(server, requests_per_minute=limit)
        end_s = time.monotonic() + HANG_S

        async def hammer(worker: Worker, chance: Random) -> None:
            while sum(len(w.taken) for w in workers) < limit and time.monotonic() < end_s:
                for _ in range(chance.randrange(60)):
                    worker.take()
                await worker.shares.look()
            for _ in range(5):
                worker.take()
                await worker.shares.look()

        await asyncio.gather(*(hammer(worker, Random(n)) for n, worker in enumerate(workers)))
        assert sum(len(worker.taken) for worker in workers) == limit

    asyncio.run(run())


def test_four_that_hammer_tokens_come_to_the_limit_and_not_beyond(server: Server) -> None:
    async def run() -> None:
        limit, cost = 30_000, 150  # a ticket's prompt and expected output
        workers = four(server, tokens_per_minute=limit)
        spent = 0

        async def hammer(worker: Worker, chance: Random) -> None:
            nonlocal spent
            for _ in range(60):
                for _ in range(chance.randrange(6)):
                    if worker.take():
                        came_to = chance.randrange(cost)
                        spent += came_to
                        worker.over(came_to)
                await worker.shares.look()

        await asyncio.gather(*(hammer(worker, Random(n)) for n, worker in enumerate(workers)))
        # What each request was charged beyond what it came to is back by now: at most one more would fit for each worker.
        assert limit - 4 * cost <= spent <= limit

    asyncio.run(run())


def test_four_that_hammer_never_have_more_running_than_their_key_may(server: Server) -> None:
    async def run() -> None:
        workers = four(server, concurrent=10)
        most = 0

        async def hammer(worker: Worker, chance: Random) -> None:
            nonlocal most
            for _ in range(100):
                for _ in range(chance.randrange(8)):
                    worker.take()
                    most = max(most, taken(*workers))
                for _ in range(chance.randrange(8)):
                    if worker.taken:
                        worker.over()
                await worker.shares.look()

        await asyncio.gather(*(hammer(worker, Random(n)) for n, worker in enumerate(workers)))
        assert 7 <= most <= 10

    asyncio.run(run())


def taken(*workers: Worker) -> int:
    return sum(len(worker.taken) for worker in workers)


@pytest.mark.parametrize("deaf", [False, True], ids=["late", "lost"])
def test_what_is_spent_while_an_answer_is_under_way_counts(server: Server, deaf: bool) -> None:
    async def run() -> None:
        first, second = (Worker(server, name, {"requests_per_minute": 100}) for name in "ab")
        await look(first, second, first, second)

        def spend() -> None:
            while first.take():
                pass

        for _ in range(100):  # all that is asked for is asked of the second: the first one's wallet is to become small
            second.take()
        first.store.meanwhile, first.store.deaf = spend, deaf
        await look(second, first)
        first.store.meanwhile, first.store.deaf = None, False
        for _ in range(20):
            for worker in (second, first):
                worker.take()
                await look(worker)
        assert taken(first, second) == 100

    asyncio.run(run())


def test_a_call_that_was_given_up_changes_nothing_when_the_server_finds_it_after_a_later_one(server: Server) -> None:
    async def run() -> None:
        worker = Worker(server, "a", {"requests_per_minute": 10})
        given_up: list[Sequence[Arg]] = []
        record = functools.partial(server.client().hget, KEY, "a")
        run_now = worker.store.run

        async def later(script: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
            given_up.append(args)
            raise worker.store.health.failed("no answer in time")

        await look(worker)
        worker.store.run = later  # type: ignore[method-assign]
        await look(worker)
        worker.store.run = run_now  # type: ignore[method-assign]
        assert all(worker.take() for _ in range(10))
        await look(worker)
        latest = record()
        await worker.store.run(SCRIPT, [KEY], given_up[0])
        assert record() == latest

    asyncio.run(run())


def test_a_worker_that_leaves_says_what_it_has_spent_and_gives_up_the_rest(server: Server) -> None:
    async def run() -> None:
        leaving, left = (Worker(server, name, {"requests_per_minute": 20}) for name in "ab")
        await look(leaving, left, leaving, left)
        for _ in range(4):
            assert leaving.take()
        await leaving.shares.leave()
        for _ in range(20):
            left.take()
            await look(left)
        assert taken(left) == 16

    asyncio.run(run())


def test_who_could_not_ask_claims_nothing_when_it_can(server: Server) -> None:
    async def run() -> None:
        there, cut_off = (Worker(server, name, {"requests_per_minute": 20}) for name in "ab")
        await look(there)
        cut_off.store.deaf = True
        await look(cut_off)  # its first answer: nothing stands yet
        assert cut_off.shares.lost
        assert cut_off.take()  # it knows of nobody else
        while there.take():
            pass
        await look(there)
        cut_off.store.deaf = False
        await look(cut_off)
        assert not cut_off.take()

    asyncio.run(run())


def test_the_one_that_is_asked_gets_what_the_others_do_not_need(server: Server) -> None:
    async def run() -> None:
        workers = four(server, requests_per_minute=100)
        await look(*workers, times=3)
        while sum(worker.take() for worker in workers[:1]):
            pass
        for _ in range(100):
            workers[0].take()
            await look(*workers)
        assert len(workers[0].taken) >= 95
        assert sum(len(worker.taken) for worker in workers) <= 100

    asyncio.run(run())


def test_a_first_request_anywhere_finds_something_in_its_wallet(server: Server) -> None:
    async def run() -> None:
        workers = four(server, requests_per_minute=40)
        await look(*workers, times=5)
        assert all([worker.take() for _ in range(5)] == [True] * 5 for worker in workers)

    asyncio.run(run())


def test_everybody_sees_what_all_have_used(server: Server) -> None:
    async def run() -> None:
        workers = four(server, requests_per_minute=40)
        await look(*workers, times=3)
        for worker in workers:
            worker.take()
        await look(*workers, times=2)
        assert [worker.remaining() for worker in workers] == [36] * 4

    asyncio.run(run())


def test_running_requests_are_counted_together_and_free_again_when_over(server: Server) -> None:
    async def run() -> None:
        workers = four(server, concurrent=5)
        for _ in range(6):
            for worker in workers:
                worker.take()
                await look(worker)
            assert sum(len(worker.taken) for worker in workers) <= 5
        first = next(worker for worker in workers if worker.taken)
        first.over()
        other = next(worker for worker in workers if worker is not first)
        held = len(other.taken)
        for _ in range(20):
            other.take()
            await look(*workers)
            assert sum(len(worker.taken) for worker in workers) <= 5
        assert len(other.taken) > held

    asyncio.run(run())


def test_tokens_that_came_to_more_are_everybodys_loss(server: Server) -> None:
    async def run() -> None:
        first, second = (Worker(server, name, {"tokens_per_minute": 1000}) for name in "ab")
        await look(first, second, times=3)
        assert first.take()
        first.over(tokens=900)
        await look(first, second, times=3)
        assert second.remaining() == 100
        assert not second.take()

    asyncio.run(run())


def test_a_killed_workers_wallet_is_back_and_what_it_spent_is_not(server: Server) -> None:
    async def run() -> None:
        killed, left = (Worker(server, name, {"requests_per_minute": 20, "concurrent": 20}, STANDS_S) for name in "ab")
        await look(killed, left, times=3)
        for _ in range(6):
            assert killed.take()
        await look(killed)
        end_s = time.monotonic() + HANG_S
        while len(left.taken) < 14 and time.monotonic() < end_s:
            left.take()
            await look(left)
            await asyncio.sleep(0.005)
        left.take()
        assert len(left.taken) == 14

    asyncio.run(run())


@pytest.mark.parametrize(
    "harm",
    [
        lambda client: client.flushall(),
        lambda client: client.set(KEY, "garbage"),
        lambda client: client.hset(KEY, "a", b"\xff\xfegarbage"),
        lambda client: client.hset(KEY, "", "never"),
    ],
    ids=["flushall", "wrong type", "a record overwritten", "the date overwritten"],
)
def test_whatever_becomes_of_the_key_the_limit_holds(server: Server, harm: Callable[[Any], Any]) -> None:
    async def run() -> None:
        workers = four(server, 1.5, requests_per_minute=100)
        await look(*workers, times=3)
        for worker in workers:
            for _ in range(15):
                worker.take()
        await look(*workers)
        harm(server.client())
        end_s, rounds = time.monotonic() + HANG_S, 0
        while rounds < 10 and time.monotonic() < end_s:
            rounds += taken(*workers) >= 100
            for worker in reversed(workers):
                worker.take()
                worker.take()
                await look(worker)
            await asyncio.sleep(0.01)
        assert taken(*workers) == 100

    asyncio.run(run())


def test_when_nobody_answers_each_goes_on_with_its_part(server: Server) -> None:
    async def run() -> None:
        workers = four(server, STANDS_S, 0.1, requests_per_minute=40)
        await look(*workers, times=3)
        server.pause()
        end_s = time.monotonic() + HANG_S
        while not all(worker.shares.lost for worker in workers):
            assert time.monotonic() < end_s
            await asyncio.gather(*(look(worker) for worker in workers))
        for worker in workers:
            for _ in range(30):
                worker.take()
        assert [len(worker.taken) for worker in workers] == [10] * 4
        server.go_on()
        await look(*workers, times=2)
        assert not any(worker.shares.lost for worker in workers)
        assert not any(worker.take() for worker in workers)

    asyncio.run(run())


def test_when_nobody_answers_the_last_wallets_hold_and_not_one_more(server: Server) -> None:
    async def run() -> None:
        workers = four(server, STANDS_S, 0.1, requests_per_minute=40)
        await look(*workers, times=3)
        while len(workers[0].taken) < 28:
            workers[0].take()
            await look(*workers)
        await look(*workers, times=60)  # until what the others may spend is spread evenly again
        server.pause()
        end_s = time.monotonic() + HANG_S
        while not all(worker.shares.lost for worker in workers):
            assert time.monotonic() < end_s
            await asyncio.gather(*(look(worker) for worker in workers))
        for worker in workers:
            for _ in range(30):
                worker.take()
        assert taken(*workers) == 40
        assert all(worker.taken for worker in workers)
        server.go_on()

    asyncio.run(run())


def test_with_very_many_keys_those_at_rest_are_not_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.state.quota_shares.MOST_ROWS", 1)

    async def run() -> None:
        worker = Worker(server, "a", {"requests_per_minute": 4, "concurrent": 4})
        await look(worker)
        assert server.client().hlen(KEY) <= 1
        assert all(worker.take() for _ in range(4))
        await look(worker)
        assert not worker.take()

    asyncio.run(run())
