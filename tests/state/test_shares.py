"""How workers divide a limit: never above it, tight work first, nobody left out, half of what is left to nobody."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.state.shares import block_of, shares, static_share

CEILINGS = (1.0, 0.9, 0.8, 0.7, 0.6)
LIMITS = st.integers(1, 256)
NEEDS = st.lists(st.lists(st.integers(0, 40), min_size=5, max_size=5), min_size=1, max_size=12)
TURNS = st.integers(0, 10_000)


def tight(*wanted: int) -> list[list[int]]:
    return [[want, 0, 0, 0, 0] for want in wanted]


@given(LIMITS, NEEDS, TURNS)
def test_shares_never_add_up_to_more_than_the_limit(limit: int, needs: list[list[int]], turn: int) -> None:
    divided = shares(limit, CEILINGS, needs, turn)
    assert sum(divided) <= limit
    assert min(divided) >= 0


@given(LIMITS, NEEDS, TURNS)
def test_a_slot_is_nobodys_only_once_all_needs_are_met(limit: int, needs: list[list[int]], turn: int) -> None:
    divided = shares(limit, (1.0,) * 5, needs, turn)
    if sum(divided) < limit:
        assert all(share >= sum(need) for share, need in zip(divided, needs, strict=True))


def test_a_worker_that_is_alone_has_it_all() -> None:
    assert shares(7, CEILINGS, tight(0)) == [7]


@given(LIMITS, NEEDS, TURNS)
def test_needs_that_fit_are_all_met(limit: int, needs: list[list[int]], turn: int) -> None:
    divided = shares(limit, (1.0,) * 5, needs, turn)
    if sum(map(sum, needs)) <= limit:
        assert all(share >= sum(need) for share, need in zip(divided, needs, strict=True))


@given(LIMITS, NEEDS, TURNS)
def test_the_tightest_work_takes_nothing_from_looser_work_it_does_not_need_and_everything_it_does(
    limit: int, needs: list[list[int]], turn: int
) -> None:
    divided = shares(limit, CEILINGS, needs, turn)
    tightest = [need[0] for need in needs]
    if sum(tightest) <= limit:
        assert all(share >= want for share, want in zip(divided, tightest, strict=True))
    else:
        assert all(share <= want for share, want in zip(divided, tightest, strict=True))


@given(LIMITS, st.lists(st.integers(1, 400), min_size=2, max_size=12), TURNS)
def test_workers_that_need_more_than_their_share_get_the_same_but_for_one(limit: int, wanted: list[int], turn: int) -> None:
    divided = shares(limit, CEILINGS, tight(*wanted), turn)
    short = [share for share, want in zip(divided, wanted, strict=True) if share < want]
    if short:
        assert max(short) - min(short) <= 1
        assert max(divided) <= max(short) + 1


@given(LIMITS, st.integers(1, 12), st.data())
def test_nobody_is_left_out_forever(limit: int, workers: int, data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.integers(1, 400), min_size=workers, max_size=workers))
    ever = [0] * workers
    for turn in range(workers):
        ever = [most + share for most, share in zip(ever, shares(limit, CEILINGS, tight(*wanted), turn), strict=True)]
    assert min(ever) > 0


@given(LIMITS, NEEDS, TURNS)
def test_loose_work_gets_no_more_than_its_ceiling_leaves_it(limit: int, needs: list[list[int]], turn: int) -> None:
    batch = [[0, 0, 0, 0, need[4]] for need in needs]
    divided = shares(limit, CEILINGS, batch, turn)
    spare = limit - min(sum(need[4] for need in batch), ceil(0.6 * limit))
    most = ceil(0.6 * limit) + spare // 2
    assert sum(divided) <= (limit if len(batch) == 1 else most)  # what is kept free for tight work is anybody's who asks


@given(LIMITS, st.integers(1, 12), TURNS)
def test_half_of_what_nobody_needs_is_spread_in_blocks(limit: int, workers: int, turn: int) -> None:
    divided = shares(limit, CEILINGS, tight(*[0] * workers), turn)
    assert max(divided) == min(divided)
    if workers > 1:
        assert all(share % block_of(limit) == 0 for share in divided)
        assert limit / 2 - block_of(limit) * workers < sum(divided) <= limit / 2


def test_an_idle_worker_holds_nothing_while_another_starves() -> None:
    assert shares(4, CEILINGS, tight(9, 0)) == [4, 0]


def test_tight_work_waiting_elsewhere_comes_before_loose_work_that_runs_here() -> None:
    assert shares(4, CEILINGS, [[0, 0, 0, 0, 4], [3, 0, 0, 0, 0]])[1] >= 3


@given(LIMITS, st.integers(1, 12), TURNS)
def test_static_shares_add_up_to_the_limit(limit: int, workers: int, turn: int) -> None:
    divided = [static_share(limit, workers, me, turn) for me in range(workers)]
    assert sum(divided) == limit
    assert max(divided) - min(divided) <= 1


@pytest.mark.parametrize("limit", [0, -3])
def test_nothing_is_divided_when_there_is_nothing(limit: int) -> None:
    assert shares(limit, CEILINGS, tight(1, 2)) == [0, 0]
    assert shares(4, CEILINGS, []) == []
