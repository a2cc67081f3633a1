"""Who attained, over what, and in which window."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.flow import FailReason, Outcome, RefuseReason, Result
from gateway.measure.attainment import MAX_CELLS, MAX_TENANTS, OTHER_TENANTS, Attainment, judge, tally_edges
from gateway.measure.stopwatch import Stopwatch
from gateway.measure.tally import COUNTERS, Counts, Tally
from gateway.measure.windows import Merged
from tests.measure.conftest import CHAT, START_S, SUMMARY, completed, placed, ticked, waiting

REFUSED = Outcome(Result.REFUSED, refuse_reason=RefuseReason.CANNOT_MEET_SLO, status=429)
FAILED = Outcome(Result.FAILED, fail_reason=FailReason.CUT, status=200)
GONE = Outcome(Result.CLIENT_GONE, status=499)
CALLERS_MISTAKE = Outcome(Result.FAILED, fail_reason=FailReason.ENGINE_ERROR, status=400)
ENDS = {
    "attained": completed(),
    "late": completed(ttft_s=0.2),
    "refused": REFUSED,
    "failed": FAILED,
    "gone": GONE,
    "mistake": CALLERS_MISTAKE,
}


def total_of(merged: Merged) -> Counts:
    total = Counts()
    for tally in merged.cells.values():
        total.merge(tally)
    return total


def test_a_request_attains_when_it_meets_every_target_to_the_very_edge() -> None:
    verdict = judge(completed(ttft_s=0.15, tpot_s=0.025, itl_p95_s=0.025, e2e_s=7.0), CHAT, stream=True)
    assert verdict.attained
    assert verdict.attained_strict


@pytest.mark.parametrize(
    ("figures", "missed"),
    [
        ({"ttft_s": 0.1501}, (True, False, False)),
        ({"tpot_s": 0.0251}, (False, True, False)),
        ({"e2e_s": 7.001}, (False, False, True)),
        ({"ttft_s": 1.0, "tpot_s": 1.0, "e2e_s": 60.0}, (True, True, True)),
    ],
)
def test_one_missed_target_is_enough_to_miss(figures: dict[str, float], missed: tuple[bool, bool, bool]) -> None:
    verdict = judge(completed(**figures), CHAT, stream=True)
    assert verdict.offered
    assert not verdict.attained
    assert (verdict.missed_ttft, verdict.missed_itl, verdict.missed_e2e) == missed


def test_strict_takes_the_p95_gap_where_the_other_takes_the_mean() -> None:
    uneven = judge(completed(tpot_s=0.02, itl_p95_s=0.03), CHAT, stream=True)
    assert (uneven.attained, uneven.attained_strict) == (True, False)
    slow = judge(completed(tpot_s=0.026, itl_p95_s=0.025), CHAT, stream=True)
    assert (slow.attained, slow.attained_strict) == (False, True)


def test_a_client_that_sees_only_the_end_is_promised_only_the_end() -> None:
    verdict = judge(completed(ttft_s=3.0, tpot_s=1.0, e2e_s=6.9), CHAT, stream=False)
    assert verdict.attained
    assert judge(completed(e2e_s=7.1), CHAT, stream=False).missed_e2e


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_a_callers_own_mistake_is_not_offered(status: int) -> None:
    outcome = Outcome(Result.FAILED, fail_reason=FailReason.ENGINE_ERROR, status=status)
    assert not judge(outcome, CHAT, stream=True).offered


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_failure_of_ours_is_offered_and_missed(status: int) -> None:
    verdict = judge(Outcome(Result.FAILED, fail_reason=FailReason.ENGINE_ERROR, status=status), CHAT, stream=True)
    assert verdict.offered
    assert not verdict.attained


def test_attainment_is_over_all_that_was_offered(attainment: Attainment) -> None:
    for name in ("attained", "attained", "late", "refused", "failed", "gone", "mistake"):
        attainment.observe(placed(), ENDS[name], START_S + 1)
    tally = total_of(attainment.merged(START_S + 2, 60.0))
    assert tally.offered == 5
    assert tally.attained_ratio == pytest.approx(2 / 5)
    assert (tally.client_gone, tally.client_error) == (1, 1)
    assert tally.refused == {"cannot_meet_slo": 1}
    assert tally.failed == {"cut": 1}


def test_a_cell_is_told_apart_by_class_use_case_pool_model_and_endpoint(attainment: Attainment) -> None:
    attainment.observe(placed("premium"), completed(), START_S)
    attainment.observe(placed("cost"), completed(), START_S)
    attainment.observe(waiting(), REFUSED, START_S)
    attainment.observe(placed(use_case="summarization_short", experience_class="interactive", targets=SUMMARY), completed(), START_S)
    assert set(attainment.cells) == {
        ("conversational", "chatbot", "premium", "llama-8b", "chat"),
        ("conversational", "chatbot", "cost", "llama-8b", "chat"),
        ("conversational", "chatbot", "", "llama-8b", "chat"),
        ("interactive", "summarization_short", "premium", "llama-8b", "chat"),
    }


def test_a_request_that_accepted_a_looser_class_is_judged_by_it(attainment: Attainment) -> None:
    placement = placed(experience_class="interactive", targets=SUMMARY)
    placement.ticket.degraded_from = "conversational"
    verdict = attainment.observe(placement, completed(ttft_s=0.5), START_S)
    assert verdict.attained
    assert total_of(attainment.merged(START_S, 60.0)).degraded == 1


def test_a_failure_leaves_no_latency_behind(attainment: Attainment) -> None:
    attainment.observe(placed(), Outcome(Result.FAILED, fail_reason=FailReason.STALLED, ttft_s=0.1, e2e_s=90.0), START_S)
    [tally] = attainment.merged(START_S, 60.0).cells.values()
    assert not any(tally.histograms)


def test_an_answer_that_is_not_streamed_has_no_first_token(attainment: Attainment) -> None:
    attainment.observe(placed(stream=False), completed(), START_S)
    [tally] = attainment.merged(START_S, 60.0).cells.values()
    assert (tally.ttft.count, tally.tpot.count, tally.e2e.count, tally.queue.count) == (0, 0, 1, 1)


def test_every_target_is_counted_exactly() -> None:
    edges = tally_edges([CHAT, SUMMARY])
    assert {0.15, 0.6} <= set(edges.ttft.values_s)
    assert {0.025, 0.03} <= set(edges.itl.values_s) & set(edges.tpot.values_s)
    assert {7.0, 15.0, 20.0} <= set(edges.e2e.values_s)


def test_tenants_beyond_the_bound_are_counted_together(attainment: Attainment) -> None:
    for number in range(MAX_TENANTS + 5):
        attainment.observe(placed(tenant=f"t{number}"), completed(), START_S)
    tenants = attainment.merged(START_S, 60.0).tenants
    assert len(tenants) == MAX_TENANTS + 1
    assert tenants[OTHER_TENANTS].completed == 5


def test_cells_beyond_the_bound_are_counted_together(attainment: Attainment) -> None:
    for number in range(MAX_CELLS + 7):
        attainment.observe(placed(use_case=f"u{number}"), REFUSED, START_S)
    assert len(attainment.cells) == MAX_CELLS + 1
    merged = attainment.merged(START_S, 60.0)
    assert merged.cells[("conversational", "(others)", "", "(others)", "chat")].offered == 7
    assert total_of(merged).offered == MAX_CELLS + 7


def test_a_window_forgets_what_is_older(attainment: Attainment) -> None:
    ticked(attainment, START_S, START_S + 120, lambda now_s: attainment.observe(placed(), completed(), now_s))
    last_minute = attainment.merged(START_S + 120, 60.0)
    assert total_of(last_minute).completed == 60
    assert last_minute.covered_s == pytest.approx(60.0)


def test_an_hour_is_answered_from_minutes(attainment: Attainment) -> None:
    ticked(attainment, START_S, START_S + 5400, lambda now_s: attainment.observe(placed(), completed(), now_s))
    merged = attainment.merged(START_S + 5400, 3600.0)
    assert 3600.0 <= merged.covered_s <= 3660.0
    assert total_of(merged).completed == pytest.approx(merged.covered_s, abs=0.5)


@given(st.lists(st.tuples(st.sampled_from(sorted(ENDS)), st.floats(0.0, 30.0)), max_size=60), st.integers(0, 2**32))
def test_what_was_observed_is_in_the_total_and_in_the_window_once(events: list[tuple[str, float]], seed: int) -> None:
    attainment = Attainment(tally_edges([CHAT]), START_S)
    now_s = START_S
    for name, pause_s in events:
        now_s += pause_s
        attainment.tick(now_s)
        attainment.observe(placed(tenant=f"t{seed % 3}"), ENDS[name], now_s)
    counted = total_of(attainment.merged(now_s, 7200.0))
    total = Counts()
    for cell in attainment.cells.values():
        total.merge(cell.total())
    expected = Counts()
    for name, _ in events:
        outcome = ENDS[name]
        expected.completed += name in ("attained", "late")
        expected.attained += name == "attained"
        if name not in ("attained", "late"):
            expected.count_uncompleted(outcome, name in ("refused", "failed"))
    for counts in (counted, total):
        assert counts.offered == expected.offered
        assert (counts.attained, counts.client_gone, counts.client_error) == (
            expected.attained,
            expected.client_gone,
            expected.client_error,
        )
        assert (counts.refused, counts.failed) == (expected.refused, expected.failed)


@pytest.mark.parametrize("steps_before", range(12))
def test_an_answer_made_while_a_window_closes_counts_nothing_twice_and_loses_nothing(attainment: Attainment, steps_before: int) -> None:
    ticked(attainment, START_S, START_S + 35, lambda now_s: attainment.observe(placed("ab"[int(now_s) % 2]), completed(), now_s))
    steps = attainment.merging(START_S + 35, 300.0)
    answer: Merged | None = None
    for step in range(1000):
        if step == steps_before:
            attainment.tick(START_S + 41)
        try:
            next(steps)
        except StopIteration as end:
            answer = end.value
            break
    assert answer is not None
    assert total_of(answer).completed == 35
    assert answer.tenants["acme"].completed == 35


def test_closed_tallies_do_not_gather_when_nobody_asks(attainment: Attainment) -> None:
    ticked(attainment, START_S, START_S + 600, lambda now_s: attainment.observe(placed(), completed(), now_s))
    [cell] = attainment.cells.values()
    assert len(cell._closed) <= 1
    assert cell.total().completed == 600


def test_asking_again_after_the_next_request_tells_of_it(attainment: Attainment) -> None:
    attainment.observe(placed(), completed(), START_S)
    assert total_of(attainment.merged(START_S + 1, 60.0)).completed == 1
    attainment.observe(placed(), completed(), START_S + 1)
    assert total_of(attainment.merged(START_S + 2, 60.0)).completed == 2


counters = st.dictionaries(st.sampled_from(COUNTERS), st.integers(0, 2**40))
reasons = st.dictionaries(st.sampled_from(["queue_full", "expired", "cut"]), st.integers(1, 10**6))


@given(counters, reasons, reasons, st.lists(st.floats(1e-6, 100.0), max_size=20))
def test_a_packed_tally_is_the_tally(named: dict[str, int], refused: dict[str, int], failed: dict[str, int], ttft_s: list[float]) -> None:
    tally = Tally(tally_edges([CHAT]))
    for name, count in named.items():
        setattr(tally, name, count)
    tally.refused, tally.failed = refused, failed
    for value_s in ttft_s:
        tally.ttft.record(value_s)
    again = Tally(tally.edges)
    again.merge_packed(tally.pack())
    assert again.pack() == tally.pack()
    assert again.offered == tally.offered


def test_bytes_that_are_no_tally_are_refused() -> None:
    packed = Tally(tally_edges([CHAT])).pack()
    for data in (b"", packed[:-1], b"\x93" + packed[1:], b"nonsense"):
        with pytest.raises(ValueError):
            Tally(tally_edges([CHAT])).merge_packed(data)


def test_changed_targets_lose_nothing_and_are_exact_from_then_on(attainment: Attainment) -> None:
    ticked(attainment, START_S, START_S + 95, lambda now_s: attainment.observe(placed(), completed(ttft_s=0.15), now_s))
    [cell] = attainment.cells.values()
    tighter = replace(CHAT, ttft_s=0.1234)
    attainment.change_edges(tally_edges([CHAT, tighter]))
    for ttft_s in (0.1233, 0.1234, 0.1235):
        attainment.observe(placed(targets=tighter), completed(ttft_s=ttft_s), START_S + 95)
    for histogram in (cell.total().ttft, *(tally.ttft for tally in attainment.merged(START_S + 96, 300.0).cells.values())):
        assert histogram.count == 98
        assert histogram.within(0.1234) == 2
    assert cell.total().ttft.within(0.15) == 98  # an edge that stays is exact all along
    assert cell.total().completed == 98


def test_a_stream_goes_on_counting_when_targets_change_in_the_middle(attainment: Attainment) -> None:
    cell = attainment.cell(waiting(), "premium")
    watch = Stopwatch(cell, 0.025)
    for step in range(6):
        if step == 3:
            attainment.change_edges(tally_edges([SUMMARY]))
        watch.delta(10.0 + step * 0.02)
    watch.fold()
    assert cell.total().itl.count == 5
