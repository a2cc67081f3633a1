"""One limit: no minute sees more than it, wherever the minute begins, and what was not spent comes back."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from gateway.quota.measure import RETURNS_S, Measure, Window

SPENDING = st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(1, 30)), max_size=80)


@given(st.integers(1, 100), SPENDING)
def test_no_minute_sees_more_than_the_limit(limit: int, attempts: list[tuple[float, int]]) -> None:
    measure, now_s = Measure(limit, Window()), 1000.0
    taken: list[tuple[float, int]] = []
    for passes_s, amount in attempts:
        now_s += passes_s
        if measure.fits(amount, now_s):
            measure.spend(amount, now_s)
            taken.append((now_s, amount))
    for begins_s, _ in taken:
        assert sum(amount for at_s, amount in taken if begins_s <= at_s < begins_s + 60.0) <= limit


@given(st.integers(1, 100), SPENDING)
def test_what_fits_again_is_known_in_advance(limit: int, attempts: list[tuple[float, int]]) -> None:
    measure, now_s = Measure(limit, Window()), 1000.0
    for passes_s, amount in attempts:
        now_s += passes_s
        if measure.fits(amount, now_s):
            measure.spend(amount, now_s)
        elif amount <= limit:
            wait_s = measure.wait_s(amount, now_s, 1.0)
            assert 0.0 < wait_s <= RETURNS_S
            assert measure.fits(amount, now_s + wait_s)
            now_s += wait_s
        else:
            assert measure.wait_s(amount, now_s, 1.0) == inf


@given(st.lists(st.tuples(st.floats(0.0, 90.0), st.integers(0, 50), st.integers(0, 50), st.floats(0.0, 90.0)), max_size=30))
def test_corrections_leave_what_was_really_spent_and_never_less_than_nothing(work: list[tuple[float, int, int, float]]) -> None:
    window, now_s = Window(), 1000.0
    for passes_s, estimate, actual, lasts_s in work:
        now_s += passes_s
        window.expire(now_s)
        before = window.total
        window.add(estimate, now_s)
        began_s = now_s
        now_s += lasts_s
        window.expire(now_s)
        window.correct(actual - estimate, began_s, now_s)
        assert window.total >= 0
        if lasts_s < 1.0 and int(now_s) == int(began_s):
            assert window.total == before + actual
    window.expire(now_s + RETURNS_S + 1.0)
    assert window.total == 0


def test_a_count_is_free_again_when_what_runs_is_over() -> None:
    measure = Measure(2, None)
    for _ in range(2):
        assert measure.fits(1, 10.0)
        measure.spend(1, 10.0)
    assert not measure.fits(1, 10.0)
    measure.settle(1, 0, 10.0, 11.0)
    assert measure.fits(1, 11.0)


def test_a_wallet_is_all_that_may_be_spent_until_the_next_look() -> None:
    measure = Measure(100, Window())
    measure.wallet = 3
    for _ in range(3):
        assert measure.fits(1, 10.0)
        measure.spend(1, 10.0)
    assert not measure.fits(1, 10.0)
    assert measure.wait_s(1, 10.0, 0.2) == 0.2
    measure.settle(1, 0, 10.0, 10.5)
    assert measure.fits(1, 10.5)


def test_a_share_of_the_limit_counts_when_nobody_can_be_asked() -> None:
    measure = Measure(10, Window())
    measure.share = 0.25
    measure.spend(2, 10.0)
    assert not measure.fits(1, 10.0)


def test_the_rest_and_its_reset_are_those_of_the_last_minute() -> None:
    measure = Measure(10, Window())
    measure.spend(4, 10.0)
    measure.others_used = 3
    assert measure.remaining(10.0) == 3
    measure.others_used = 0
    assert measure.reset_s(20.0) == 51.0
    assert measure.remaining(10.0 + RETURNS_S) == 10
    assert measure.reset_s(10.0 + RETURNS_S) == 0.0
