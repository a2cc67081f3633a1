"""One stream's tokens on the clock: the first one, every gap after it, and the p95 of its own gaps.

The relay calls `delta` once per read that carried content, and `fold` a few times a second: what need not happen per chunk happens there.
What counts as a content delta is openai/sse.py's business, what a promise is worth attainment.py's.
"""

from __future__ import annotations

from math import ceil, log2
from typing import Final

from gateway.core.flow import Outcome, Placement, Result
from gateway.measure.attainment import Cell
from gateway.measure.histogram import middle_s

MAX_FRESH: Final = 64


class Stopwatch:
    """Made by the relay when the stream's request is sent to its instance.

    Gaps: one sample per content delta after the first read. `k` deltas that arrive in one read, `g` seconds after the read before,
    are `k` samples of `g / k`: how the network or the engine happens to bundle events does not change the pace of tokens, and the
    sum of samples is always last - first, which is what a client outside computes its TPOT from. Deltas beside the first one in the
    first read have no pace to tell and are not sampled.

    With `choices` > 1 one step of the engine sends a delta for each choice, bundled or not: a gap is the time of `choices` deltas.
    """

    __slots__ = (
        "_cell",
        "_choices",
        "_fresh",
        "_gaps",
        "_itl_target_s",
        "_over",
        "_pending",
        "_step_at_s",
        "_zeros",
        "deltas",
        "first_at_s",
        "last_at_s",
    )

    def __init__(self, cell: Cell, itl_target_s: float, choices: int = 1) -> None:
        self._cell = cell
        self._itl_target_s = itl_target_s
        self._choices = choices
        self._fresh: list[float] = []  # single gaps that are not counted yet
        self._gaps: dict[int, int] = {}  # bucket -> samples, as in Histogram
        self._zeros = 0
        self._over = 0  # samples above the target: decides `attained_strict` exactly
        self._pending = 0  # deltas of a step that some choices have not reached; only with several choices
        self._step_at_s = 0.0
        self.first_at_s = 0.0  # 0 = no content yet
        self.last_at_s = 0.0
        self.deltas = 0

    def delta(self, now_s: float, deltas: int = 1) -> None:
        """A read at `now_s` carried `deltas` (>= 1) content deltas. Told twice of one read, it takes the second for part of the first."""
        gap_s = now_s - self.last_at_s
        self.last_at_s = now_s
        if self.deltas == 0:
            self.first_at_s = self._step_at_s = now_s
            self.deltas = deltas
            return
        self.deltas += deltas
        if self._choices == 1:
            if not gap_s:
                return
        else:
            self._pending += deltas
            deltas, self._pending = divmod(self._pending, self._choices)
            if deltas == 0:
                return  # the time runs on until every choice has had its token
            gap_s = now_s - self._step_at_s
            self._step_at_s = now_s
        if deltas == 1:
            fresh = self._fresh
            fresh.append(gap_s)
            if len(fresh) >= MAX_FRESH:
                self.fold()
        else:
            self._record(gap_s / deltas, deltas)

    def fold(self) -> None:
        """Count what `delta` has gathered: Histogram.record, written out for two arrays at once."""
        fresh = self._fresh
        if not fresh:
            return
        itl, gaps, target_s = self._cell.now.itl, self._gaps, self._itl_target_s
        counts, inside = itl.counts, itl.inside
        over = 0
        for gap_s in fresh:
            if gap_s <= 0.0:
                itl.zeros += 1
                self._zeros += 1
                continue
            bucket = ceil(log2(gap_s) * 32.0) - 1
            gaps[bucket] = gaps.get(bucket, 0) + 1
            counts[bucket] = counts.get(bucket, 0) + 1
            if bucket in inside:
                itl.count_edges(bucket, gap_s, 1)
            if gap_s > target_s:
                over += 1
        itl.sum_s += sum(fresh)
        self._over += over
        fresh.clear()

    def tell(self, placement: Placement) -> None:
        """Count, and let who asks the placement know how far it is."""
        self.fold()
        placement.output_tokens = self.deltas
        placement.last_token_at_s = self.last_at_s

    def _record(self, gap_s: float, times: int) -> None:
        """The same of several tokens with the same gap."""
        itl = self._cell.now.itl
        if gap_s <= 0.0:
            itl.zeros += times
            self._zeros += times
            return
        bucket = ceil(log2(gap_s) * 32.0) - 1
        gaps = self._gaps
        gaps[bucket] = gaps.get(bucket, 0) + times
        counts = itl.counts
        counts[bucket] = counts.get(bucket, 0) + times
        itl.sum_s += gap_s * times
        if bucket in itl.inside:
            itl.count_edges(bucket, gap_s, times)
        if gap_s > self._itl_target_s:
            self._over += times

    def mean_gap_s(self) -> float:
        """So far; 0 while there are too few to tell."""
        return (self.last_at_s - self.first_at_s) / (self.deltas - 1) if self.deltas > 8 else 0.0

    def itl_p95_s(self) -> float | None:
        """The nearest-rank p95 of this stream's own gaps, None without any. At most 1.09 % off, and on the right side of the ITL
        target exactly."""
        self.fold()
        samples = self._zeros + sum(self._gaps.values())
        if not samples:
            return None
        rank = ceil(0.95 * samples - 1e-9)
        so_far, p95_s = self._zeros, 0.0
        for bucket in sorted(self._gaps) if so_far < rank else ():
            so_far += self._gaps[bucket]
            if so_far >= rank:
                p95_s = middle_s(bucket)
                break
        if self._over <= samples - rank:
            return min(p95_s, self._itl_target_s)
        return p95_s if p95_s > self._itl_target_s else self._itl_target_s * 1.000001

    def tpot_s(self, output_tokens: int) -> float | None:
        """(last - first) / (tokens of one choice - 1); `output_tokens` as the engine's usage says, or the deltas counted. None for
        fewer than two tokens."""
        each = output_tokens / self._choices
        if each <= 1.0 or self.last_at_s == self.first_at_s:
            return None
        return (self.last_at_s - self.first_at_s) / (each - 1.0)


def outcome_of(placement: Placement, watch: Stopwatch, usage: tuple[int, int, int] | None, now_s: float) -> Outcome:
    """What a request that ends now has got, as a completed one; `usage` is the engine's own count: prompt tokens, those of
    them that were cached, output tokens; None = it told none."""
    request = placement.ticket.request
    arrived_at_s = request.arrived_at_s
    prompt_tokens, cached_tokens, output_tokens = request.prompt_tokens, 0, watch.deltas
    if usage is not None:
        prompt_tokens, cached_tokens, output_tokens = usage
    ttft_s = tpot_s = itl_p95_s = None
    if watch.deltas:
        watch.tell(placement)
        if request.stream:
            ttft_s, tpot_s, itl_p95_s = watch.first_at_s - arrived_at_s, watch.tpot_s(output_tokens), watch.itl_p95_s()
    # In the order of its fields: names would cost half a microsecond.
    return Outcome(
        Result.COMPLETED, None, None, 200, placement.started_at_s - arrived_at_s, ttft_s, tpot_s, itl_p95_s, now_s - arrived_at_s,
        prompt_tokens, cached_tokens, output_tokens, usage is None,
    )  # fmt: skip
