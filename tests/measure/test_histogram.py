"""Latencies as counts: mergeable, a quantile within 1.09 %, and exact at every target."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.measure.histogram import LARGEST_S, OTEL_TTFT_EDGES_S, SMALLEST_S, Edges, Histogram, bucket_of, lower_bound_s

ERROR_RATIO = (2 ** (1 / 32) - 1) / (2 ** (1 / 32) + 1)
EDGES = Edges((0.1, 0.15, 0.3, 0.6, 1.0, 2.0, *OTEL_TTFT_EDGES_S))
OTHER_EDGES = Edges((0.02, 0.151, 5.0))

durations = st.one_of(
    st.floats(SMALLEST_S, 100.0),
    st.sampled_from(EDGES.values_s),
    st.sampled_from([math.nextafter(edge, math.inf) for edge in EDGES.values_s]),
    st.sampled_from([math.nextafter(edge, 0.0) for edge in EDGES.values_s]),
)
anything = st.one_of(durations, st.just(0.0), st.floats(allow_nan=True, allow_infinity=True))


def of(values: list[float], edges: Edges = EDGES) -> Histogram:
    made = Histogram(edges)
    for value in values:
        made.record(value)
    return made


def state(histogram: Histogram) -> tuple[dict[int, int], list[int], int]:
    return histogram.counts, histogram.below, histogram.zeros


@given(st.lists(durations, min_size=1, max_size=200), st.floats(0.001, 1.0))
def test_a_quantile_is_at_most_1_09_percent_off(values: list[float], q: float) -> None:
    true = sorted(values)[max(0, math.ceil(q * len(values) - 1e-9) - 1)]
    answer = of(values).quantile(q)
    assert answer == pytest.approx(true, rel=ERROR_RATIO + 1e-9)


@given(st.lists(durations, min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_a_quantile_is_never_on_the_wrong_side_of_a_target(values: list[float], q: float) -> None:
    true = sorted(values)[math.ceil(q * len(values) - 1e-9) - 1]
    answer = of(values).quantile(q)
    assert answer is not None
    for edge in EDGES.values_s:
        assert (answer <= edge) == (true <= edge)


@given(st.lists(anything, max_size=200))
def test_what_is_within_a_target_is_exact(values: list[float]) -> None:
    histogram = of(values)
    counted = [value if value >= SMALLEST_S else 0.0 for value in values]  # NaN and negative ones count as zero
    for edge, cumulative in zip(EDGES.values_s, histogram.cumulative(), strict=True):
        assert histogram.within(edge) == cumulative == sum(value <= edge for value in counted)
    assert histogram.count == len(values)


@given(st.lists(st.lists(anything, max_size=60), min_size=1, max_size=5))
def test_merged_histograms_are_those_of_all_values(parts: list[list[float]]) -> None:
    merged = Histogram(EDGES)
    for part in parts:
        merged.merge(of(part))
    together = of([value for part in parts for value in part])
    assert state(merged) == state(together)
    assert merged.sum_s == pytest.approx(together.sum_s)


@given(st.lists(anything, max_size=60), st.lists(anything, max_size=60))
def test_the_order_of_merging_changes_nothing(first: list[float], second: list[float]) -> None:
    one, other = of(first), of(second)
    one.merge(of(second))
    other.merge(of(first))
    assert state(one) == state(other)


@given(st.lists(anything, max_size=100), st.lists(anything, max_size=100))
def test_a_packed_histogram_merges_like_the_histogram(first: list[float], second: list[float]) -> None:
    packed = b"before" + of(second).pack()
    by_bytes, by_value = of(first), of(first)
    assert by_bytes.merge_packed(packed, at=6) == len(packed)
    by_value.merge(of(second))
    assert state(by_bytes) == state(by_value)
    assert by_bytes.sum_s == pytest.approx(by_value.sum_s)


@given(st.lists(durations, max_size=100))
def test_counts_under_other_targets_are_right_to_a_bucket(values: list[float]) -> None:
    moved = Histogram(OTHER_EDGES)
    moved.merge(of(values))
    assert moved.counts == of(values).counts
    for edge in OTHER_EDGES.values_s:
        at_least = sum(value <= lower_bound_s(bucket_of(edge)) for value in values)
        at_most = sum(value <= lower_bound_s(bucket_of(edge) + 1) for value in values)
        assert at_least <= moved.within(edge) <= at_most


@given(st.binary(max_size=80))
def test_bytes_that_are_no_histogram_are_refused(data: bytes) -> None:
    histogram = Histogram(EDGES)
    try:
        histogram.merge_packed(data)
    except (ValueError, OverflowError, struct.error):
        assert histogram.count == 0
    else:
        assert len(data) >= 28


def test_a_cut_histogram_is_refused() -> None:
    packed = of([0.1, 0.2, 0.3]).pack()
    for length in range(len(packed)):
        with pytest.raises(ValueError, match="cut short"):
            Histogram(EDGES).merge_packed(packed[:length])


@given(st.floats(SMALLEST_S, LARGEST_S))
def test_a_bucket_holds_what_is_above_its_lower_bound_and_at_most_its_upper(value: float) -> None:
    bucket = bucket_of(value)
    assert lower_bound_s(bucket) * (1 - 1e-12) <= value <= lower_bound_s(bucket + 1) * (1 + 1e-12)


def test_a_value_recorded_many_times_is_as_many_values() -> None:
    many, one_by_one = Histogram(EDGES), of([0.15] * 7)
    many.record(0.15, 7)
    assert state(many) == state(one_by_one)


def test_an_empty_histogram_has_no_quantile() -> None:
    assert Histogram(EDGES).quantile(0.95) is None
    assert not Histogram(EDGES)


def test_a_copy_goes_its_own_way() -> None:
    histogram = of([0.1, 0.2])
    twin = histogram.copy()
    twin.record(0.3)
    assert (histogram.count, twin.count) == (2, 3)
    assert twin.sum_s == pytest.approx(0.6)


def test_an_edge_outside_the_range_is_refused() -> None:
    with pytest.raises(ValueError, match="an edge must lie between"):
        Edges((0.0, 1.0))


@given(st.lists(durations, max_size=60), st.lists(durations, max_size=60))
def test_an_edge_that_both_have_stays_exact_whatever_the_others_are(first: list[float], second: list[float]) -> None:
    ours, theirs = of(first, Edges((0.15, 0.1501))), of(second, Edges((0.1499, 0.15)))
    ours.merge(theirs)
    assert ours.within(0.15) == sum(value <= 0.15 for value in (*first, *second))
