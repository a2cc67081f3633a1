"""How many tokens an answer will have: quantiles of what came back, per application, its use case, and the traffic profile before that.

Prompts say next to nothing of it (their correlation with output length is about 0 in public traces), who asks says a lot. Each of
(tenant, application, use case), (tenant, use case) and (use case) keeps a decaying histogram of logarithmic lengths; the finest one with
something to say is blended with the coarser ones, and the caller's own maximum caps the rest. Latencies are left to latency.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

MAX_KEYS = 20_000
# Bins grow by 2^(1/4): 1 .. 2^16 tokens in 64 bins, so a quantile is good to about 9 %.
BINS = 64
PER_OCTAVE = 4
# The profile of a use case counts as this many answers seen, a coarser level as this many for the finer one.
PRIOR_ANSWERS = 8.0
HALF_LIFE_ANSWERS = 400.0
_KEEP = 0.5 ** (1.0 / HALF_LIFE_ANSWERS)

# The profile's length is the middle of a broad guess: lengths in traces spread by a factor of about two each way.
_PRIOR_SHAPE = [math.exp(-0.5 * ((i - 6) / 3.0) ** 2) for i in range(13)]
_PRIOR_TOTAL = sum(_PRIOR_SHAPE)

Key = tuple[Any, ...]


def _bin_of(tokens: float) -> int:
    return min(max(round(math.log2(max(tokens, 1.0)) * PER_OCTAVE), 0), BINS - 1)


def _tokens_of(index: float) -> float:
    return float(2.0 ** (index / PER_OCTAVE))


_MIDDLES = [_tokens_of(index) for index in range(BINS)]


class Lengths:
    """Learns from `learn`, answers `expected` (a value for load and deadlines) and `quantile`."""

    def __init__(self, share: float = 0.5) -> None:
        self.share = share  # which quantile `expected` is
        self._counts: dict[Key, list[float]] = {}
        self._weights: dict[Key, float] = {}  # of the next answer; grows, so that old ones fade without touching them
        self._cache: dict[Key, tuple[float, int]] = {}
        self._seen: dict[Key, int] = {}

    def learn(self, tenant: str, app: int, use_case: str, output_tokens: int, capped: bool) -> None:
        """An answer had this many tokens. `capped`: it ended at the caller's maximum, so it says little of the application."""
        if output_tokens <= 0:
            return
        index = _bin_of(output_tokens)
        for key in ((use_case,), (tenant, use_case), (tenant, app, use_case)):
            counts = self._counts.get(key)
            if counts is None:
                if len(self._counts) >= MAX_KEYS:
                    self._evict()
                counts = self._counts[key] = [0.0] * BINS
                self._weights[key] = 1.0
                self._seen[key] = 0
            weight = self._weights[key] / _KEEP
            counts[index] += weight * (0.5 if capped else 1.0)
            self._seen[key] += 1
            if weight > 1e6:
                self._counts[key] = [count / weight for count in counts]
                weight = 1.0
            self._weights[key] = weight

    def expected(self, tenant: str, app: int, use_case: str, profile_tokens: int, max_output_tokens: int | None) -> float:
        """The length to plan with, at least 1 and at most what the caller allows."""
        key = (tenant, app, use_case)
        seen = self._seen.get(key, 0) or self._seen.get((use_case,), 0)
        cached = self._cache.get(key)
        # Recomputed after each of the first answers, then every 16th.
        if cached is not None and (cached[1] == seen or (seen > 64 and seen - cached[1] < 16)):
            tokens = cached[0]
        else:
            tokens = self.quantile(tenant, app, use_case, profile_tokens, self.share)
            if len(self._cache) >= MAX_KEYS:
                self._cache.clear()
            self._cache[key] = (tokens, seen)
        if max_output_tokens is not None and tokens > max_output_tokens:
            return float(max(max_output_tokens, 1))
        return max(tokens, 1.0)

    def quantile(self, tenant: str, app: int, use_case: str, profile_tokens: int, share: float) -> float:
        """The output length below which `share` (0..1) of such answers stay."""
        blend = self._blend(tenant, app, use_case, profile_tokens)
        wanted, seen = share * sum(blend), 0.0
        for index, count in enumerate(blend):
            if count and seen + count >= wanted:
                return _tokens_of(index - 0.5 + (wanted - seen) / count)
            seen += count
        return float(profile_tokens)

    def _blend(self, tenant: str, app: int, use_case: str, profile_tokens: int) -> list[float]:
        """Each level's counts with the coarser level as PRIOR_ANSWERS of its own; the profile is the coarsest."""
        middle = _bin_of(profile_tokens)
        blend = [0.0] * BINS
        for offset, shape in enumerate(_PRIOR_SHAPE):
            blend[min(max(middle - 6 + offset, 0), BINS - 1)] += shape / _PRIOR_TOTAL
        for key in ((use_case,), (tenant, use_case), (tenant, app, use_case)):
            counts = self._counts.get(key)
            if counts is not None:
                unit = 1.0 / self._weights[key]
                blend = [count * unit + prior * PRIOR_ANSWERS for count, prior in zip(counts, blend, strict=True)]
                total = sum(blend)
                blend = [count / total for count in blend]
        return blend

    def remaining(self, tenant: str, app: int, use_case: str, profile_tokens: int, done_tokens: int) -> float:
        """How many more tokens an answer that already has `done_tokens` is likely to have (mean)."""
        blend = self._blend(tenant, app, use_case, profile_tokens)
        start = _bin_of(done_tokens) if done_tokens > 0 else 0
        total = sum(blend[start:])
        if total <= 1e-9:
            return max(done_tokens * 0.25, 1.0)
        mean = sum(count * middle for count, middle in zip(blend[start:], _MIDDLES[start:], strict=True)) / total
        return max(mean - done_tokens, 1.0)

    def _evict(self) -> None:
        """Forget the tenth of the applications that were learnt first."""
        for key in [key for key in self._counts if len(key) > 1][: MAX_KEYS // 10]:
            del self._counts[key], self._weights[key], self._seen[key]

    def state(self) -> list[list[Any]]:
        """Plain values, for saving: key, weight, count of answers, and the bins that are not empty."""
        return list(self.rows(MAX_KEYS))

    def rows(self, most: int) -> Iterator[list[Any]]:
        """The rows of `state`, one by one, of the `most` keys that say most: the coarse ones, then the applications met last. Others may
        learn and ask in between."""
        newest_first = list(self._counts)[::-1]
        newest_first.sort(key=len)
        for key in newest_first[:most]:
            counts = self._counts.get(key)
            if counts is not None:
                yield [list(key), self._weights[key], self._seen[key], [[index, count] for index, count in enumerate(counts) if count]]

    def restore(self, state: list[list[Any]]) -> None:
        """Take back what `state` gave."""
        for parts, weight, seen, filled in state[:MAX_KEYS]:
            key = tuple(parts)
            counts = [0.0] * BINS
            for index, count in filled:
                counts[index] = float(count)
            self._counts[key], self._weights[key], self._seen[key] = counts, float(weight), int(seen)
