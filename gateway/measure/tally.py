"""What one cell or one tenant has had, as numbers that add up: counters alone (`Counts`), or counters and histograms (`Tally`).

Everything here merges by addition and packs into a few hundred bytes, so that windows can be kept for hours and shared between
workers. Which request counts as what is decided in attainment.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import msgspec

from gateway.core.flow import Outcome, Result
from gateway.measure.histogram import Edges, Histogram
from gateway.measure.packed import unpacked_counts, unpacked_tally

COUNTERS = (
    "completed",
    "attained",
    "attained_strict",
    "missed_ttft",
    "missed_itl",
    "missed_e2e",
    "client_gone",
    "client_error",
    "degraded",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
)
HISTOGRAMS = ("ttft", "itl", "tpot", "e2e", "queue")


@dataclass(frozen=True, slots=True)
class TallyEdges:
    """Where each of a tally's histograms counts exactly."""

    ttft: Edges
    itl: Edges
    tpot: Edges
    e2e: Edges
    queue: Edges

    @property
    def key(self) -> tuple[int, ...]:
        """Equal for equal edges."""
        return (self.ttft.key, self.itl.key, self.tpot.key, self.e2e.key, self.queue.key)


class Counts:
    """Counters of requests and tokens. `refused` and `failed` are by reason."""

    __slots__ = (*COUNTERS, "failed", "refused")

    def __init__(self) -> None:
        # Written out: a loop over COUNTERS with setattr costs five times as much, and windows make these by the hundred.
        self.completed = self.attained = self.attained_strict = 0
        self.missed_ttft = self.missed_itl = self.missed_e2e = 0
        self.client_gone = self.client_error = self.degraded = 0
        self.prompt_tokens = self.cached_tokens = self.output_tokens = 0
        self.refused: dict[str, int] = {}
        self.failed: dict[str, int] = {}

    @property
    def offered(self) -> int:
        """What attainment is over: all that was asked, but for what the client itself gave up or got wrong."""
        return self.completed + sum(self.refused.values()) + sum(self.failed.values())

    @property
    def attained_ratio(self) -> float | None:
        """Attainment, 0..1; None when nothing was offered."""
        offered = self.offered
        return self.attained / offered if offered else None

    def __bool__(self) -> bool:
        return bool(self.completed or self.refused or self.failed or self.client_gone or self.client_error)

    def count_uncompleted(self, outcome: Outcome, offered: bool) -> None:
        """A request that was refused, failed, or (not `offered`) counts neither way."""
        if not offered:
            if outcome.result is Result.CLIENT_GONE:
                self.client_gone += 1
            else:
                self.client_error += 1
        elif outcome.result is Result.REFUSED:
            reason = outcome.refuse_reason.value if outcome.refuse_reason else "unknown"
            self.refused[reason] = self.refused.get(reason, 0) + 1
        else:
            reason = outcome.fail_reason.value if outcome.fail_reason else "unknown"
            self.failed[reason] = self.failed.get(reason, 0) + 1

    def merge(self, other: Counts) -> None:
        self._add([getattr(other, name) for name in COUNTERS], other.refused, other.failed)

    def _add(self, counters: list[int], refused: dict[str, int], failed: dict[str, int]) -> None:
        for name, count in zip(COUNTERS, counters, strict=True):
            if count:
                setattr(self, name, getattr(self, name) + count)
        for reason, count in refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count
        for reason, count in failed.items():
            self.failed[reason] = self.failed.get(reason, 0) + count

    def pack(self) -> bytes:
        """MessagePack: [counters in the order of COUNTERS, refused, failed]."""
        return msgspec.msgpack.encode(self._packable())

    def _packable(self) -> list[Any]:
        return [[getattr(self, name) for name in COUNTERS], self.refused, self.failed]

    def merge_packed(self, data: bytes) -> None:
        """Add what `pack` wrote. ValueError (msgspec.DecodeError is one) if the bytes are not that."""
        packed = unpacked_counts(data)
        self._add(packed.counters, packed.refused, packed.failed)


class Tally(Counts):
    """Counters and the histograms of TTFT, ITL (a sample a gap), TPOT, E2E and queue time, in seconds."""

    __slots__ = ("e2e", "edges", "itl", "queue", "tpot", "ttft")

    def __init__(self, edges: TallyEdges) -> None:
        super().__init__()
        self.edges = edges
        self.ttft = Histogram(edges.ttft)
        self.itl = Histogram(edges.itl)
        self.tpot = Histogram(edges.tpot)
        self.e2e = Histogram(edges.e2e)
        self.queue = Histogram(edges.queue)

    def __bool__(self) -> bool:
        return super().__bool__() or bool(self.itl)

    @property
    def histograms(self) -> tuple[Histogram, ...]:
        """In the order of HISTOGRAMS."""
        return (self.ttft, self.itl, self.tpot, self.e2e, self.queue)

    def merge(self, other: Counts) -> None:
        super().merge(other)
        if isinstance(other, Tally):
            for mine, theirs in zip(self.histograms, other.histograms, strict=True):
                mine.merge(theirs)

    def copy(self) -> Self:
        twin = type(self)(self.edges)
        Counts.merge(twin, self)
        for name in HISTOGRAMS:
            setattr(twin, name, getattr(self, name).copy())
        return twin

    def pack(self) -> bytes:
        """MessagePack: [counters, refused, failed, histograms in the order of HISTOGRAMS as Histogram.pack writes them]."""
        return msgspec.msgpack.encode([*self._packable(), [histogram.pack() for histogram in self.histograms]])

    def merge_packed(self, data: bytes) -> None:
        packed = unpacked_tally(data)
        if len(packed.histograms) != len(HISTOGRAMS):
            raise ValueError(f"a packed tally has {len(HISTOGRAMS)} histograms, not {len(packed.histograms)}")
        self._add(packed.counters, packed.refused, packed.failed)
        for mine, theirs in zip(self.histograms, packed.histograms, strict=True):
            mine.merge_packed(theirs)
