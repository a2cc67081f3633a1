"""How many tokens an answer will have: quantiles of what came back, per application, its use case, and the traffic profile before that.

Prompts say next to nothing of it (their correlation with output length is about 0 in public traces), who asks says a lot. Each of
(tenant, application, use case), (tenant, use case) and (use case) keeps a decaying histogram of logarithmic lengths; the finest one with
something to say is blended with the coarser ones, and the caller's own maximum caps the rest. Latencies are left to latency.py.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import Any, Final, cast

MAX_KEYS: Final = 20_000
# Bins grow by 2^(1/4): 1 .. 2^16 tokens in 64 bins, so a quantile is good to about 9 %.
BINS: Final = 64
PER_OCTAVE: Final = 4
# The profile of a use case counts as this many answers seen, a coarser level as this many for the finer one.
PRIOR_ANSWERS: Final = 8.0
HALF_LIFE_ANSWERS: Final = 400.0
_KEEP: Final = 0.5 ** (1.0 / HALF_LIFE_ANSWERS)
# Answers are counted a few at a time, a quarter of those that are known already and at most so many: one by one they would move little.
BATCH_SHARE, BATCH_ANSWERS = 4, 16

# The profile's length is the middle of a broad guess: lengths in traces spread by a factor of about two each way.
_PRIOR_SHAPE: Final = [math.exp(-0.5 * ((i - 6) / 3.0) ** 2) for i in range(13)]
_PRIOR_TOTAL: Final = sum(_PRIOR_SHAPE)

Key = tuple[Any, ...]


def _bin_of(tokens: float) -> int:
    return min(max(round(math.log2(max(tokens, 1.0)) * PER_OCTAVE), 0), BINS - 1)


_BIN_OF: Final = bytes(_bin_of(tokens) for tokens in range(4096))  # of the usual lengths


def _tokens_of(index: float) -> float:
    return float(2.0 ** (index / PER_OCTAVE))


@cache
def _prior(middle: int) -> tuple[float, ...]:
    """What is expected of a profile whose length falls into this bin."""
    blend = [0.0] * BINS
    for offset, shape in enumerate(_PRIOR_SHAPE):
        blend[min(max(middle - 6 + offset, 0), BINS - 1)] += shape / _PRIOR_TOTAL
    return tuple(blend)


class _Sketch:
    """A decaying histogram of lengths. `weight` is the next answer's and grows, so that old ones fade without touching them."""

    __slots__ = ("counts", "seen", "weight")

    def __init__(self, counts: list[float], weight: float = 1.0, seen: int = 0) -> None:
        self.counts = counts
        self.weight = weight
        self.seen = seen

    def add(self, bins: list[int]) -> None:
        """Answers of these bins are counted, with one weight; beyond BINS, of those that ended at the caller's maximum, with half of it."""
        self.weight = weight = self.weight / (_KEEP if len(bins) == 1 else _KEEP ** len(bins))
        self.seen += len(bins)
        counts, half = self.counts, weight * 0.5
        for index in bins:
            if index < BINS:
                counts[index] += weight
            else:
                counts[index - BINS] += half
        if weight > 1e6:
            self.shrink()

    def shrink(self) -> None:
        """Count on from 1, before figures grow too large."""
        weight = self.weight
        self.counts = [count / weight for count in self.counts]
        self.weight = 1.0


class _Line:
    """What is known of one application, from coarse to fine: the sketches it learns with, and the last expectation with its age."""

    __slots__ = ("batch", "bins", "expected_at", "expected_tokens", "sketches")

    def __init__(self, sketches: tuple[_Sketch, _Sketch, _Sketch]) -> None:
        self.sketches = sketches
        self.bins: list[int] = []  # of answers that are not counted yet
        self.batch = 1  # they are when there are so many
        self.expected_tokens = 0.0
        self.expected_at = -1  # answers seen then; < 0 = not asked yet


class Lengths:
    """Learns from `learn`, answers `expected`: a value for load and deadlines."""

    def __init__(self, share: float = 0.5) -> None:
        self.share = share  # which quantile `expected` is
        self._sketches: dict[Key, _Sketch] = {}
        self._lines: dict[Key, _Line] = {}

    def _line(self, key: Key) -> _Line:
        """Of (tenant, application, use case), learnt or not."""
        if len(self._lines) >= MAX_KEYS:
            self._lines.clear()
        tenant, _, use_case = key
        made = tuple(self._sketches.get(level) or _Sketch([0.0] * BINS) for level in ((use_case,), (tenant, use_case), key))
        line = self._lines[key] = _Line(cast("tuple[_Sketch, _Sketch, _Sketch]", made))
        return line

    def learn(self, tenant: str, app: int, use_case: str, output_tokens: int, capped: bool) -> None:
        """An answer had this many tokens. `capped`: it ended at the caller's maximum, so it says little of the application."""
        if output_tokens <= 0:
            return
        line = self._lines.get((tenant, app, use_case))
        if line is None or not line.sketches[2].seen:
            line = self._begin((tenant, app, use_case))
        bins = line.bins
        index = _BIN_OF[output_tokens] if output_tokens < len(_BIN_OF) else _bin_of(output_tokens)
        bins.append(index + BINS if capped else index)
        if len(bins) >= line.batch:
            for sketch in line.sketches:
                sketch.add(bins)
            bins.clear()
            line.batch = min(max(line.sketches[2].seen // BATCH_SHARE, 1), BATCH_ANSWERS)

    def _begin(self, key: Key) -> _Line:
        """The first answer of an application: its sketches are kept from now on."""
        if len(self._sketches) >= MAX_KEYS:
            self._evict()
        tenant, _, use_case = key
        for level in ((use_case,), (tenant, use_case), key):
            if level not in self._sketches:
                self._sketches[level] = _Sketch([0.0] * BINS)
                if level is not key:
                    self._lines.clear()  # others are to learn with this one too
        return self._line(key)

    def expected(self, tenant: str, app: int, use_case: str, profile_tokens: int, max_output_tokens: int | None) -> float:
        """The length to plan with, at least 1 and at most what the caller allows."""
        key = (tenant, app, use_case)
        line = self._lines.get(key)
        if line is None:
            line = self._line(key)
        coarse, _, fine = line.sketches
        seen = fine.seen or coarse.seen
        # Recomputed after each of the first answers, then when a sixteenth of what fades has come on top.
        since = seen - line.expected_at
        if since and (line.expected_at < 0 or seen <= 64 or since * 16 >= min(seen, 2 * HALF_LIFE_ANSWERS)):
            line.expected_tokens = self._quantile(line, profile_tokens)
            line.expected_at = seen
        tokens = line.expected_tokens
        if max_output_tokens is not None and tokens > max_output_tokens:
            return float(max_output_tokens) if max_output_tokens > 1 else 1.0
        return tokens if tokens > 1.0 else 1.0

    def _quantile(self, line: _Line, profile_tokens: int) -> float:
        """The output length below which `share` (0..1) of such answers stay. Each level's counts are blended with the coarser level as
        PRIOR_ANSWERS of its own; the profile is the coarsest."""
        weights, weight = [], 1.0
        for sketch in reversed(line.sketches):  # of each level in the blend, the finest first: the coarser ones share what it leaves
            answers = sum(sketch.counts) / sketch.weight
            weights.append(weight / (answers + PRIOR_ANSWERS) / sketch.weight)
            weight *= PRIOR_ANSWERS / (answers + PRIOR_ANSWERS)
        fine, middle, coarse = weights
        coarsest, middling, finest = (sketch.counts for sketch in line.sketches)
        prior = _prior(_bin_of(profile_tokens))
        rows = zip(prior, coarsest, middling, finest, strict=True)
        shares = list(accumulate([p * weight + q * coarse + r * middle + s * fine for p, q, r, s in rows]))
        wanted = self.share * shares[-1]
        index = bisect_left(shares, wanted)
        below = shares[index - 1] if index else 0.0
        return _tokens_of(index - 0.5 + (wanted - below) / (shares[index] - below))

    def _evict(self) -> None:
        """Forget the tenth of the applications that were learnt first."""
        for key in [key for key in self._sketches if len(key) > 1][: MAX_KEYS // 10]:
            del self._sketches[key]
        self._lines.clear()

    def state(self) -> list[list[Any]]:
        """Plain values, for saving: key, weight, count of answers, and the bins that are not empty. The last few answers of each
        application may be missing."""
        return list(self.rows(MAX_KEYS))

    def rows(self, most: int) -> Iterator[list[Any]]:
        """The rows of `state`, one by one, of the `most` keys that say most: the coarse ones, then the applications met last. Others may
        learn and ask in between."""
        newest_first = list(self._sketches)[::-1]
        newest_first.sort(key=len)
        for key in newest_first[:most]:
            sketch = self._sketches.get(key)
            if sketch is not None:
                yield [list(key), sketch.weight, sketch.seen, [[index, count] for index, count in enumerate(sketch.counts) if count]]

    def restore(self, state: Sequence[Sequence[Any]]) -> None:
        """Take back what `state` gave."""
        self._lines.clear()
        for parts, weight, seen, filled in state[:MAX_KEYS]:
            counts = [0.0] * BINS
            for index, count in filled:
                counts[index] = float(count)
            self._sketches[tuple(parts)] = _Sketch(counts, float(weight), int(seen))
