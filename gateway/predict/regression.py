"""Recursive least squares with forgetting: a small linear model that follows a stream of samples, and the quantiles of its misses.

Pure Python on lists: with four to seven coefficients an update takes a few microseconds, less than handing the numbers to an array
library. What the features mean is the business of latency.py.
"""

from __future__ import annotations

from math import exp, isfinite, log
from operator import mul
from typing import Any, Final

# How far one sample of a duration lies from the truth, relative: the jitter of one engine step. It only sets how fast priors give way.
NOISE_RATIO: Final = 0.08


def _times(rows: list[list[float]], x: list[float]) -> list[float]:
    """Matrix times vector; what we have is written out, at a third of the time."""
    if len(x) == 4:
        a, b, c, d = x
        return [p * a + q * b + r * c + s * d for p, q, r, s in rows]
    if len(x) == 6:
        a, b, c, d, e, f = x
        return [p * a + q * b + r * c + s * d + t * e + u * f for p, q, r, s, t, u in rows]
    return [sum(map(mul, row, x)) for row in rows]


def _less(row: list[float], y: float, x: list[float]) -> list[float]:
    """A row less y times x."""
    if len(x) == 6:
        p, q, r, s, t, u = row
        a, b, c, d, e, f = x
        return [p - y * a, q - y * b, r - y * c, s - y * d, t - y * e, u - y * f]
    if len(x) == 4:
        p, q, r, s = row
        a, b, c, d = x
        return [p - y * a, q - y * b, r - y * c, s - y * d]
    return [p - y * q for p, q in zip(row, x, strict=True)]


class Regression:
    """`y = weights . x`, learnt so that *relative* errors are small: a 40 ms answer off by 10 % counts as much as a 2 s one.

    `spread` is how wrong each initial weight may be, in the weight's own unit: a wide one is forgotten after a few samples, zero is kept.
    Weights of physical costs cannot be negative, so they are held at zero or above.
    """

    __slots__ = ("covariance", "forgetting", "samples", "spread", "weights")

    def __init__(self, weights: list[float], spread: list[float], forgetting: float = 0.998) -> None:
        self.weights = list(weights)
        self.spread = list(spread)
        self.forgetting = forgetting
        self.samples = 0
        self.covariance = self._prior()

    def _prior(self) -> list[list[float]]:
        size = len(self.spread)
        return [[self.spread[i] ** 2 if i == j else 0.0 for j in range(size)] for i in range(size)]

    def predict(self, features: list[float]) -> float:
        """The model's value, at least zero."""
        value = sum(map(mul, self.weights, features))
        return value if value > 0.0 else 0.0

    def learn(self, features: list[float], value: float) -> None:
        """Follow one sample. `value` must be positive; a sample that is not finite is left out."""
        if not (0.0 < value < 1e6) or not isfinite(sum(features)):
            return
        scale = 1.0 / value
        x = [feature * scale for feature in features]
        weights, covariance, grow = self.weights, self.covariance, 1.0 / self.forgetting
        px = _times(covariance, x)
        inverse = 1.0 / (NOISE_RATIO**2 + sum(map(mul, x, px)))
        miss = (1.0 - sum(map(mul, weights, x))) * inverse
        # Forgetting widens what the samples say nothing about without end; the prior's own doubt is doubt enough.
        for index, (p, most) in enumerate(zip(px, self.spread, strict=True)):
            covariance[index] = row = _less(covariance[index], p * inverse, px)
            wider = row[index] * grow
            if wider < most * most:
                row[index] = wider
            weight = weights[index] + p * miss
            weights[index] = weight if weight > 0.0 else 0.0
        self.samples += 1

    def scaled(self, ratio: float) -> Regression:
        """A fresh model whose weights are these times `ratio`, as doubtful as a prior."""
        return Regression([w * ratio for w in self.weights], [s * max(ratio, 1.0) for s in self.spread], self.forgetting)

    def state(self) -> dict[str, Any]:
        """Plain values, for saving."""
        covariance = [list(row) for row in self.covariance]  # what is learnt next must not change what was saved
        return {"weights": list(self.weights), "spread": list(self.spread), "covariance": covariance, "samples": self.samples}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave. ValueError when it was saved by a model of another shape."""
        size = len(self.weights)
        weights, covariance = state["weights"], state["covariance"]
        if len(weights) != size or len(covariance) != size or any(len(row) != size for row in covariance):
            raise ValueError(f"saved model has {len(weights)} weights, this one {size}")
        self.weights = [float(w) for w in weights]
        self.spread = [float(s) for s in state["spread"]]
        self.covariance = [[float(c) for c in row] for row in covariance]
        self.samples = int(state["samples"])


class RatioQuantiles:
    """Quantiles of actual / predicted, over the last few hundred samples: 41 logarithmic bins between 1/4 and 4, decaying."""

    __slots__ = ("_counts", "_since", "_total", "p50", "p90")

    BINS = 41
    STEP = log(16.0) / 40
    DECAY = 0.9  # per REFRESH samples: a memory of about 160
    REFRESH = 16

    def __init__(self, p50: float = 1.0, p90: float = 1.15) -> None:
        self._counts = [0.0] * self.BINS
        self._total = 0.0
        self._since = 0
        self.p50 = p50
        self.p90 = p90

    def add(self, ratio: float) -> None:
        """Count one sample of actual / predicted (> 0)."""
        index = round(log(ratio if ratio > 0.01 else 0.01) / self.STEP) + 20
        self._counts[0 if index < 0 else index if index < self.BINS else self.BINS - 1] += 1.0
        self._total += 1.0
        self._since += 1
        if self._since >= self.REFRESH:
            self._since = 0
            self.p50, self.p90 = self.quantile(0.5), self.quantile(0.9)
            self._counts = [count * self.DECAY for count in self._counts]
            self._total *= self.DECAY

    def quantile(self, share: float) -> float:
        """The ratio below which `share` (0..1) of the samples lie; 1.0 without any."""
        if self._total <= 0:
            return 1.0
        wanted, seen = share * self._total, 0.0
        for index, count in enumerate(self._counts):
            if count and seen + count >= wanted:
                return exp((index - 20.5 + (wanted - seen) / count) * self.STEP)
            seen += count
        return 4.0

    def state(self) -> dict[str, Any]:
        """Plain values, for saving."""
        return {"counts": self._counts, "p50": self.p50, "p90": self.p90, "since": self._since}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        counts = [float(c) for c in state["counts"]]
        if len(counts) != self.BINS:
            raise ValueError(f"saved quantiles have {len(counts)} bins, not {self.BINS}")
        self._counts, self._total, self._since = counts, sum(counts), int(state["since"])
        self.p50, self.p90 = float(state["p50"]), float(state["p90"])


class Drift:
    """A multiplicative bias that follows quickly when it is clearly off and hardly moves on noise."""

    __slots__ = ("calm", "far", "samples", "steady", "trend", "value")

    FAR_RATIO = 2.0  # beyond this, for long, it is another engine than the one we knew
    SURPRISE = 3.0  # a trend so many times the noise is not chance

    def __init__(self, value: float = 1.0) -> None:
        self.value = value
        self.steady = value  # as of when it was last calm
        self.trend = 0.0  # smoothed log(actual / predicted): sustained when the bias is wrong, near 0 when it is noise
        self.samples = 0
        self.far = 0  # samples in a row with the bias beyond FAR_RATIO
        self.calm = 0  # samples in a row that were no surprise

    def follow(self, ratio: float, most: float = 0.5, alertness: float = 0.3, noise: float = 0.05) -> None:
        """`ratio` = actual / (predicted x value). At most this share `most` (0..1) of a miss is believed at once; `alertness` (0..1) is how
        much a single sample says of the trend: more for one that averages many events. Trends below `noise` are none."""
        miss = log(0.1 if ratio < 0.1 else ratio if ratio < 10.0 else 10.0)
        self.trend = trend = self.trend + alertness * (miss - self.trend)
        self.samples += 1
        self.calm = self.calm + 1 if -noise * self.SURPRISE < trend < noise * self.SURPRISE else 0
        # No further than `most`, than the trend has left the noise, and than the miss itself is worth.
        eagerness, certain = abs(miss) * 2, (abs(trend) - noise) * 5.0 * alertness
        if certain < eagerness:
            eagerness = certain if certain > 0.0 else 0.0
        eagerness = 0.03 + (eagerness if eagerness < most else most)
        if self.samples < 8:
            eagerness = max(eagerness, 1.0 / (self.samples + 1))
        value = self.value * exp(eagerness * miss)
        self.value = value = 0.02 if value < 0.02 else value if value < 50.0 else 50.0
        self.trend *= 1.0 - eagerness
        self.far = self.far + 1 if not (1 / self.FAR_RATIO < value < self.FAR_RATIO) else 0
