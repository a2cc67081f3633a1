"""Latencies as integer counts: cheap to record, mergeable by addition, exact at every SLO target.

A value lands in a bucket of OpenTelemetry's base-2 exponential index at scale 5: bucket `i` holds (2^(i/32), 2^((i+1)/32)], so that a
quantile is at most 1.09 % off ((base - 1) / (base + 1)). Beside the buckets every *edge* (the catalogue's targets and OTel's advised
boundaries) has its own count, so that "how many were within 150 ms" is exact to the unit. The same arrays feed /metrics, OTLP, shared
state and the controller; who the samples belong to is attainment.py's business.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterable
from math import ceil, log2
from typing import Final

SCALE: Final = 5
BUCKETS_PER_OCTAVE: Final = 1 << SCALE
SMALLEST_S: Final = 1e-6  # below the clock's own noise: counted as zero
LARGEST_S: Final = 1e6  # eleven days; anything above is recorded as this

# Boundaries the GenAI semantic conventions advise for each histogram (status: development), so that dashboards written for other
# servers find the buckets they ask for.
OTEL_TTFT_EDGES_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
OTEL_TPOT_EDGES_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
OTEL_DURATION_EDGES_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
QUEUE_EDGES_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_HEAD: Final = struct.Struct("<IIIQd")  # key of the edges, buckets, edges, zeros, sum


def bucket_of(value_s: float) -> int:
    """The exponential index of a value within SMALLEST_S..LARGEST_S."""
    return ceil(log2(value_s) * 32.0) - 1


def lower_bound_s(bucket: int) -> float:
    """What a bucket's values are above."""
    return float(2.0 ** (bucket / BUCKETS_PER_OCTAVE))


def middle_s(bucket: int) -> float:
    """The value that is relatively nearest to all of a bucket's: at most 1.09 % from either end."""
    lower, upper = lower_bound_s(bucket), lower_bound_s(bucket + 1)
    return 2.0 * lower * upper / (lower + upper)


class Edges:
    """Where a histogram counts exactly. Built once from configuration and shared by all histograms of one kind."""

    __slots__ = ("buckets", "inside", "key", "values_s")

    def __init__(self, values_s: Iterable[float]) -> None:
        self.values_s: tuple[float, ...] = tuple(sorted({float(value) for value in values_s}))
        if self.values_s and not SMALLEST_S <= self.values_s[0] <= self.values_s[-1] <= LARGEST_S:
            raise ValueError(f"an edge must lie between {SMALLEST_S} and {LARGEST_S} seconds, not {self.values_s}")
        self.buckets = tuple(bucket_of(edge) for edge in self.values_s)
        # bucket -> the edges that cut it, with their positions
        self.inside: dict[int, tuple[tuple[float, int], ...]] = {}
        for position, (edge, bucket) in enumerate(zip(self.values_s, self.buckets, strict=True)):
            self.inside[bucket] = (*self.inside.get(bucket, ()), (edge, position))
        self.key = zlib.crc32(array("d", self.values_s).tobytes())


class Histogram:
    """Counts of durations in seconds. `counts` maps bucket to count, `below[p]` counts what lies in the bucket of edge `p` and not
    above the edge, `zeros` what was under SMALLEST_S, `sum_s` adds the values up."""

    __slots__ = ("below", "counts", "edges", "inside", "sum_s", "zeros")

    def __init__(self, edges: Edges) -> None:
        self.edges = edges
        self.inside = edges.inside
        self.counts: dict[int, int] = {}
        self.below = [0] * len(edges.values_s)
        self.zeros = 0
        self.sum_s = 0.0

    def record(self, value_s: float, times: int = 1) -> None:
        """Add a value, `times` over. Negative values and NaN count as zero, infinite ones as LARGEST_S."""
        if not value_s >= SMALLEST_S:
            self.zeros += times
            return
        if value_s > LARGEST_S:
            value_s = LARGEST_S
        bucket = ceil(log2(value_s) * 32.0) - 1
        counts = self.counts
        counts[bucket] = counts.get(bucket, 0) + times
        self.sum_s += value_s * times
        if bucket in self.inside:
            self.count_edges(bucket, value_s, times)

    def count_edges(self, bucket: int, value_s: float, times: int) -> None:
        """The part of `record` for a bucket in `inside`."""
        for edge, position in self.inside[bucket]:
            if value_s <= edge:
                self.below[position] += times

    @property
    def count(self) -> int:
        return self.zeros + sum(self.counts.values())

    def __bool__(self) -> bool:
        return bool(self.counts) or self.zeros > 0

    def within(self, edge_s: float) -> int:
        """How many values are at or below `edge_s`: exact if it is one of the edges, else to a bucket's width."""
        bucket = bucket_of(edge_s)
        lower = self.zeros + sum(count for at, count in self.counts.items() if at < bucket)
        for edge, position in self.inside.get(bucket, ()):
            if edge == edge_s:
                return lower + self.below[position]
        return lower + (self.counts.get(bucket, 0) if middle_s(bucket) <= edge_s else 0)

    def cumulative(self) -> list[int]:
        """For every edge, in order, how many values are at or below it: what a Prometheus histogram prints."""
        result = []
        items = sorted(self.counts.items())
        reached, so_far = 0, self.zeros
        for bucket, below in zip(self.edges.buckets, self.below, strict=True):
            while reached < len(items) and items[reached][0] < bucket:
                so_far += items[reached][1]
                reached += 1
            result.append(so_far + below)
        return result

    def quantile(self, q: float) -> float | None:
        """The nearest-rank quantile (0 < q <= 1) in seconds, None when empty. At most 1.09 % off, and never on the wrong side of an
        edge: the answer is <= an edge exactly if enough values are."""
        count = self.count
        if not count:
            return None
        rank = max(1, ceil(q * count - 1e-9))
        so_far = self.zeros
        if rank <= so_far:
            return 0.0
        for bucket in sorted(self.counts):
            so_far += self.counts[bucket]
            if rank <= so_far:
                return self._inside_bucket(bucket, rank - (so_far - self.counts[bucket]))
        raise AssertionError("a rank is never above the count")

    def _inside_bucket(self, bucket: int, rank: int) -> float:
        lower, upper = lower_bound_s(bucket), lower_bound_s(bucket + 1)
        for edge, position in self.inside.get(bucket, ()):
            if rank <= self.below[position]:
                upper = min(upper, edge)
                break
            lower = max(lower, edge)
        return 2.0 * lower * upper / (lower + upper)

    def merge(self, other: Histogram) -> None:
        """Add another's counts. Where it has other edges than ours (a reload changed the targets) those that both have stay exact, and
        the rest of our exact counts take the other's share from its buckets."""
        if other.edges.key == self.edges.key:
            self._merge(other.counts, other.below, other.zeros, other.sum_s)
            return
        exact = dict(zip(other.edges.values_s, other.below, strict=True))
        rough = self._rough(other.counts)
        below = [exact.get(edge, share) for edge, share in zip(self.edges.values_s, rough, strict=True)]
        self._merge(other.counts, below, other.zeros, other.sum_s)

    def _rough(self, counts: dict[int, int]) -> list[int]:
        """For every edge, what lies in its bucket and not above it, as far as buckets can tell."""
        edges = self.edges
        return [counts.get(at, 0) if middle_s(at) <= edge else 0 for edge, at in zip(edges.values_s, edges.buckets, strict=True)]

    def _merge(self, counts: dict[int, int], below: Iterable[int], zeros: int, sum_s: float) -> None:
        own = self.counts
        for bucket, count in counts.items():
            own[bucket] = own.get(bucket, 0) + count
        self.below = [mine + theirs for mine, theirs in zip(self.below, below, strict=True)]
        self.zeros += zeros
        self.sum_s += sum_s

    def copy(self) -> Histogram:
        twin = Histogram(self.edges)
        twin.counts, twin.below, twin.zeros, twin.sum_s = dict(self.counts), list(self.below), self.zeros, self.sum_s
        return twin

    def pack(self) -> bytes:
        """Little-endian: head (crc32 of the edges u32, buckets u32, edges u32, zeros u64, sum f64), bucket indices i16, their counts
        u32, the edges' counts u32. 60 buckets and 20 edges take 468 bytes."""
        buckets = array("h", sorted(self.counts))
        counts = array("I", [min(self.counts[bucket], 0xFFFFFFFF) for bucket in buckets])
        below = array("I", [min(count, 0xFFFFFFFF) for count in self.below])
        head = _HEAD.pack(self.edges.key, len(buckets), len(below), self.zeros, self.sum_s)
        return b"".join((head, buckets.tobytes(), counts.tobytes(), below.tobytes()))

    def merge_packed(self, data: bytes, at: int = 0) -> int:
        """Add what `pack` wrote at offset `at`; returns the offset behind it. ValueError if the bytes are cut short."""
        try:
            key, n_buckets, n_edges, zeros, sum_s = _HEAD.unpack_from(data, at)
        except struct.error as cut:
            raise ValueError("a packed histogram is cut short") from cut
        at += _HEAD.size
        end = at + 6 * n_buckets + 4 * n_edges
        if end > len(data):
            raise ValueError("a packed histogram is cut short")
        buckets, counts, below = array("h"), array("I"), array("I")
        buckets.frombytes(data[at : at + 2 * n_buckets])
        counts.frombytes(data[at + 2 * n_buckets : at + 6 * n_buckets])
        below.frombytes(data[at + 6 * n_buckets : end])
        same = key == self.edges.key and n_edges == len(self.below)
        by_bucket = dict(zip(buckets, counts, strict=True))
        self._merge(by_bucket, below if same else self._rough(by_bucket), zeros, sum_s)
        return int(end)
