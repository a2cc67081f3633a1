"""The controller: once a second, limits of instances up while their gaps leave room, down when they do not.

It moves only what the configuration lets it (`limit: {min, max, pinned}`), one step at a time, and judges by what was measured on each
instance: the mean gap of the tokens of the last second, against the tightest promise among its residents.

A policy that predicts asks before every start whether all gaps will hold, and needs no limit to close an instance for it: there the limit
is for what predictions get wrong. It stays ahead of demand, since a burst comes within a second, and falls when promises have been broken
by more than predictions err. Where nobody predicts, the limit is all that keeps the gaps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gateway.core.fleet import Fleet
from gateway.core.flow import Placement
from gateway.core.instance import Instance

EVERY_S: Final = 1.0
# Below this share of the tightest promise there is room for more, above that one there is none.
ROOM_RATIO: Final = 0.9
TIGHT_RATIO: Final = 0.97
# One quiet second is too soon to add a slot: the newest resident's context is still growing, and its gaps with it.
QUIET_SECONDS: Final = 1
STEP_RATIO: Final = 0.5
USED_RATIO: Final = 0.8  # a limit that nobody reaches has nothing to prove
# The same two where predictions decide. Of ten answers' mean gaps nine come out at no more than 1.05 to 1.25 times what was predicted.
BROKEN_RATIO: Final = 1.25
AHEAD_RATIO: Final = 0.4


@dataclass(slots=True)
class _Seen:
    """What was seen of one instance since the last look (`Instance.seen`)."""

    tokens: float = 0.0
    stream_s: float = 0.0
    quiet: int = 0
    peak: int = 0


def _count(instance: Instance, placement: Placement) -> None:
    """Its tokens since it was last counted; the first is not the end of a gap."""
    tokens, at_s = placement.counted_tokens, placement.counted_at_s
    if not tokens:
        tokens, at_s = 1, placement.first_token_at_s
    if placement.output_tokens > tokens:
        seen: _Seen | None = instance.seen
        if seen is None:
            seen = instance.seen = _Seen()
        seen.tokens += (placement.output_tokens - tokens) / placement.ticket.request.n
        seen.stream_s += placement.last_token_at_s - at_s
        placement.counted_tokens, placement.counted_at_s = placement.output_tokens, placement.last_token_at_s


class Controller:
    """Limits of all instances. `predicts`: does the policy ask, before every start, whether all gaps will hold?"""

    def __init__(self, predicts: bool) -> None:
        self._looked_at_s = 0.0
        self._tight_ratio = BROKEN_RATIO if predicts else TIGHT_RATIO
        self._used_ratio = AHEAD_RATIO if predicts else USED_RATIO

    def ended(self, instance: Instance, placement: Placement) -> None:
        """A resident has left: its last tokens count too."""
        if placement.first_token_at_s:
            _count(instance, placement)
        seen: _Seen | None = instance.seen
        if seen is not None:
            in_flight = instance.in_flight + instance.others_in_flight + placement.ticket.request.n
            if in_flight > seen.peak:
                seen.peak = in_flight

    def limits(self, fleet: Fleet, now_s: float) -> Iterator[tuple[Instance, int]]:
        """(instance, new limit) for each that should change."""
        if now_s - self._looked_at_s < EVERY_S * 0.9:
            return
        self._looked_at_s = now_s
        for instance in fleet.by_id.values():
            for placement in instance.residents:
                if placement.first_token_at_s:
                    _count(instance, placement)
            seen: _Seen | None = instance.seen
            if seen is None:
                continue
            seen.peak = max(seen.peak, instance.in_flight + instance.others_in_flight)
            limit = instance.limit
            itl_s = seen.stream_s / seen.tokens if seen.tokens else 0.0
            tightest_s = instance.tightest_itl_s
            step = max(int(limit * STEP_RATIO), 1)
            if itl_s > 0.0 and tightest_s < float("inf") and not instance.spec.limit_pinned:
                if itl_s > self._tight_ratio * tightest_s:
                    seen.quiet = 0
                    if limit > instance.spec.limit_start:
                        yield instance, max(limit - step, instance.spec.limit_start)
                elif itl_s < ROOM_RATIO * tightest_s and seen.peak >= self._used_ratio * limit:
                    seen.quiet += 1
                    if seen.quiet >= QUIET_SECONDS:
                        yield instance, limit + step
                else:
                    seen.quiet = 0
            seen.tokens = seen.stream_s = 0.0
            seen.peak = 0
