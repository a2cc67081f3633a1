"""When would a request that is refused now fit? Learnt from what became of the moments after earlier refusals.

Averages say when a slot frees, not whether somebody else will want it by then. So some of the refused are watched: after 1, 2, 4 and more
seconds, would one like it be let in? The share of yes at each age is what the next one is told by: the first age at which most would have
been let in. While a jam lasts only its youngest ages are known, so the time that is told doubles as the jam does; under an overload without
end it is the longest there is, and nobody is asked back in vain every second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from typing import Final

from gateway.core.flow import Request, Tag, Ticket

AGES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 120.0)
# Most of those who come back should be let in; asking for more would send everybody away for minutes after every little jam.
SURE_RATIO: Final = 0.8
MEMORY_S: Final = 60.0
KNOWN: Final = 0.5  # watched ones, faded, that make an age known
MOST_WATCHED: Final = 64
# Those who are refused at once are not to come back at once.
SPREAD_RATIO, SPREAD_OVER = 0.5, 8


@dataclass(slots=True)
class _Watched:
    request: Request
    tag: Tag
    refused_at_s: float
    next_age: int = 0


class Returns:
    """Of one model. Times of the core's clock."""

    __slots__ = ("_fit", "_looked_at_s", "_seen", "_told", "_watched")

    def __init__(self, now_s: float) -> None:
        self._watched: deque[_Watched] = deque()
        self._fit = [0.0] * len(AGES_S)
        self._seen = [0.0] * len(AGES_S)
        self._looked_at_s = now_s
        self._told = 0

    def refused(self, ticket: Ticket, now_s: float) -> None:
        """It was told no."""
        if len(self._watched) < MOST_WATCHED:
            self._watched.append(_Watched(ticket.request, ticket.tag, now_s))

    def look(self, now_s: float, fits: Callable[[Request, Tag], bool]) -> None:
        """Time has passed: who was refused when, and would they be let in now? About once a second."""
        fade = exp((self._looked_at_s - now_s) / MEMORY_S)
        self._looked_at_s = now_s
        self._fit = [count * fade for count in self._fit]
        self._seen = [count * fade for count in self._seen]
        for watched in self._watched:
            index = watched.next_age
            if index < len(AGES_S) and now_s - watched.refused_at_s >= AGES_S[index]:
                watched.next_age += 1
                self._seen[index] += 1.0
                self._fit[index] += fits(watched.request, watched.tag)
        while self._watched and self._watched[0].next_age >= len(AGES_S):
            self._watched.popleft()

    def after_s(self, predicted_s: float) -> float:
        """What to tell one for whom averages say `predicted_s`; seconds."""
        told_s = predicted_s
        for age_s, fit, seen in zip(AGES_S, self._fit, self._seen, strict=True):
            if seen < KNOWN and age_s == AGES_S[0]:
                break  # nobody has been watched of late: averages are all there is
            told_s = max(told_s, age_s)
            # So long nobody has been watched yet, and shorter was not enough: the best guess there is.
            if seen < KNOWN or fit >= SURE_RATIO * seen:
                break
        self._told = (self._told + 1) % SPREAD_OVER
        return told_s * (1.0 + SPREAD_RATIO * self._told / SPREAD_OVER)
