"""A stream's tokens on the clock, by the rules of the wire contract."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.measure.attainment import Attainment, Cell, tally_edges
from gateway.measure.stopwatch import Stopwatch
from tests.measure.conftest import CHAT, START_S, waiting


def watch_of(itl_target_s: float = 0.025, choices: int = 1) -> tuple[Stopwatch, Cell]:
    cell = Attainment(tally_edges([CHAT]), START_S).cell(waiting(), "premium")
    return Stopwatch(cell, itl_target_s, choices), cell


def test_one_sample_is_taken_per_gap_between_deltas() -> None:
    watch, cell = watch_of()
    for at_s in (10.0, 10.02, 10.05, 10.06):
        watch.delta(at_s)
    watch.fold()
    assert cell.now.itl.count == 3
    assert cell.now.itl.sum_s == pytest.approx(0.06)
    assert cell.now.itl.within(0.025) == 2
    assert watch.first_at_s == 10.0
    assert watch.deltas == 4


def test_deltas_that_arrive_in_one_read_share_the_gap_before_it() -> None:
    watch, cell = watch_of()
    watch.delta(10.0)
    watch.delta(10.06, deltas=3)
    watch.fold()
    assert cell.now.itl.count == 3
    assert cell.now.itl.within(0.025) == 3  # 20 ms each
    assert watch.tpot_s(4) == pytest.approx(0.02)


def test_deltas_beside_the_first_are_no_samples() -> None:
    watch, cell = watch_of()
    watch.delta(10.0, deltas=5)
    watch.fold()
    assert cell.now.itl.count == 0
    assert watch.itl_p95_s() is None
    assert watch.tpot_s(5) is None  # all at once: there is no pace to tell


def test_a_step_of_several_choices_is_one_gap() -> None:
    bundled, bundled_cell = watch_of(choices=2)
    bundled.delta(10.0, deltas=2)
    bundled.delta(10.02, deltas=2)
    bundled.delta(10.04, deltas=2)
    apart, apart_cell = watch_of(choices=2)
    for at_s in (10.0, 10.0, 10.02, 10.02, 10.04, 10.04):
        apart.delta(at_s)
    bundled.fold()
    apart.fold()
    assert bundled_cell.now.itl.count == 2
    assert bundled_cell.now.itl.sum_s == pytest.approx(0.04)
    assert apart_cell.now.itl.sum_s == pytest.approx(0.04)
    assert bundled.tpot_s(6) == apart.tpot_s(6) == pytest.approx(0.02)


@given(st.lists(st.tuples(st.just(0.0) | st.floats(1e-6, 0.5), st.integers(1, 6)), min_size=1, max_size=100))
def test_the_samples_add_up_to_last_minus_first(reads: list[tuple[float, int]]) -> None:
    watch, cell = watch_of()
    now_s = 10.0
    for gap_s, deltas in reads:
        now_s += gap_s
        watch.delta(now_s, deltas)
    watch.fold()
    assert cell.now.itl.sum_s == pytest.approx(watch.last_at_s - watch.first_at_s, abs=1e-9)
    same_read = sum(deltas for gap_s, deltas in reads[1:] if not gap_s)
    assert cell.now.itl.count == watch.deltas - reads[0][1] - same_read


@given(st.lists(st.one_of(st.floats(0.001, 0.2), st.just(0.03125)), min_size=1, max_size=120))
def test_a_streams_own_p95_is_close_and_on_the_right_side_of_its_target(gaps_s: list[float]) -> None:
    target_s = 0.03125  # a binary fraction, so that times add up exactly where they meet it
    watch, _ = watch_of(itl_target_s=target_s)
    now_s = 0.0
    watch.delta(now_s)
    seen_s = []
    for gap_s in gaps_s:
        before_s, now_s = now_s, now_s + gap_s
        watch.delta(now_s)
        seen_s.append(now_s - before_s)
    true_s = sorted(seen_s)[math.ceil(0.95 * len(seen_s) - 1e-9) - 1]
    p95_s = watch.itl_p95_s()
    assert p95_s == pytest.approx(true_s, rel=0.0112)
    assert p95_s is not None
    assert (p95_s <= target_s) == (true_s <= target_s)


def test_tpot_takes_the_tokens_that_the_engine_reports() -> None:
    watch, _ = watch_of()
    for step in range(11):
        watch.delta(10.0 + step * 0.1)  # eleven deltas of two tokens each
    assert watch.tpot_s(22) == pytest.approx(1.0 / 21)


def test_one_token_has_no_pace() -> None:
    watch, _ = watch_of()
    watch.delta(10.0)
    assert watch.tpot_s(1) is None


def test_gaps_go_to_the_window_that_is_open() -> None:
    watch, cell = watch_of()
    watch.delta(10.0)
    watch.delta(10.02)
    watch.fold()
    closed = cell.close()
    watch.delta(10.04)
    assert closed.itl.count == 1
    watch.fold()
    assert cell.now.itl.count == 1
    assert cell.total().itl.count == 2
