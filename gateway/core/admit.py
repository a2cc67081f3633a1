"""Admission: may a request that found no place at once wait for one, or is an early, honest no the kinder answer?

A request waits when a slot is expected before its deadline is lost; else it takes a looser class if its caller accepts one; else it is
refused with the time after which it would fit. Classes that are not refusable wait within their queue's bounds whatever the load: for
them being late is better than not being served. Load is known as rates here; what instances can take is fleet.py's business.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp
from typing import Final

from gateway.core.fleet import Fleet
from gateway.core.flow import ClassPolicy, CoreSettings, Request, Tag, Ticket
from gateway.core.queues import Queues
from gateway.core.returns import Returns

# How fast the rate of finished requests forgets, and what an empty history is taken for.
RATE_MEMORY_S: Final = 10.0
# A wait is predicted from averages; a request is turned away only when even this share of it would be too long. Turning away too
# eagerly loses more than it saves: refused work never comes back as goodput, work that waits often fits after all.
EAGERNESS_RATIO: Final = 0.6
MAX_RETRY_AFTER_S: Final = 120.0
MIN_RETRY_AFTER_S: Final = 0.05
# A slot that another worker holds and does not use is here after two of its looks at the leases (state/slots).
LEASE_MOVES_S: Final = 0.1


class DrainRate:
    """Requests a model's instances finish a second, as an exponentially fading count."""

    __slots__ = ("_at_s", "_count", "_since_s")

    def __init__(self, now_s: float) -> None:
        self._count = 0.0
        self._at_s = now_s
        self._since_s = now_s

    def finished(self, now_s: float) -> None:
        """One more has."""
        self._count = self._count * exp((self._at_s - now_s) / RATE_MEMORY_S) + 1.0
        self._at_s = now_s

    def per_s(self, now_s: float) -> float:
        """The present rate; what is young is not taken for slow."""
        lived_s = max(now_s - self._since_s, 0.1)
        window_s = RATE_MEMORY_S * (1.0 - exp(-lived_s / RATE_MEMORY_S))
        return self._count * exp((self._at_s - now_s) / RATE_MEMORY_S) / window_s


def wait_s(ahead: float, in_flight: int, rate: DrainRate | None, service_s: float, now_s: float) -> float:
    """How long until a slot frees for a request with `ahead` before it. Without a history, as if each of the `in_flight` places took
    `service_s` and all were half done."""
    per_s = rate.per_s(now_s) if rate is not None else 0.0
    if per_s <= 0.0:
        per_s = max(in_flight, 1) / max(service_s * 0.5, 1e-3)
    return (ahead + 1.0) / per_s


def too_long(ticket: Ticket, predicted_wait_s: float, now_s: float) -> bool:
    """Would it start too late to keep its promise?"""
    return now_s + predicted_wait_s * EAGERNESS_RATIO > ticket.latest_start_at_s


def retry_after_s(ticket: Ticket, predicted_wait_s: float, now_s: float) -> float:
    """When a request like this one would fit: the part of the wait that its patience does not cover."""
    patience_s = max(ticket.latest_start_at_s - ticket.request.arrived_at_s, 0.0)
    return min(max(predicted_wait_s - patience_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)


class Admission:
    """Of all models. `settings` is replaced when the configuration is."""

    __slots__ = ("_fleet", "_queues", "_rates", "_returns", "settings")

    def __init__(self, fleet: Fleet, queues: Queues, settings: CoreSettings) -> None:
        self._fleet = fleet
        self._queues = queues
        self.settings = settings
        self._rates: dict[str, DrainRate] = {}
        self._returns: dict[str, Returns] = {}

    def finished(self, model: str, now_s: float) -> None:
        """A request of this model is over."""
        rate = self._rates.get(model)
        if rate is None:
            rate = self._rates[model] = DrainRate(now_s)
        rate.finished(now_s)

    def wait_s(self, ticket: Ticket, rank: int, now_s: float) -> float:
        """How long it would wait in the class of that rank, as predicted."""
        serving = self._fleet.serving(ticket.model)
        in_flight, rate = serving.in_flight if serving is not None else 1, self._rates.get(ticket.model)
        predicted_s = wait_s(self._queues.ahead(ticket.model, rank), in_flight, rate, ticket.tag.targets.e2e_s, now_s)
        if predicted_s <= LEASE_MOVES_S or serving is None:
            return predicted_s
        moves = serving.lendable(ticket.request.n) or self._queues.wishing(ticket.model)
        return LEASE_MOVES_S if moves else predicted_s

    def may_wait(self, ticket: Ticket, now_s: float) -> bool:
        """Is a place expected before its promise is lost?"""
        if not self._fleet.savable(ticket, now_s):
            # Not even an idle instance could keep the promise. When nobody else is kept waiting by it, it is served all the same.
            return self._queues.of(ticket.model).waiting == 0
        return not too_long(ticket, self.wait_s(ticket, ticket.tag.rank, now_s), now_s)

    def looser_class(self, ticket: Ticket, now_s: float) -> ClassPolicy | None:
        """The next looser class that would take it now."""
        for class_ in self.settings.classes:
            if class_.rank > ticket.tag.rank and class_.targets is not None:
                lane = self._queues.of(ticket.model).lanes[class_.rank]
                if lane.requests < class_.limits.max_requests and lane.bytes + ticket.request.body_bytes <= class_.limits.max_bytes:
                    latest_at_s = ticket.request.arrived_at_s + class_.targets.ttft_s
                    if not class_.refusable or now_s + self.wait_s(ticket, class_.rank, now_s) * EAGERNESS_RATIO < latest_at_s:
                        return class_
        return None

    def refused(self, ticket: Ticket, predicted_s: float, now_s: float) -> float:
        """It is told no, and to come back after so many seconds."""
        returns = self._returns.get(ticket.model)
        if returns is None:
            returns = self._returns[ticket.model] = Returns(now_s)
        returns.refused(ticket, now_s)
        return min(returns.after_s(retry_after_s(ticket, predicted_s, now_s)), MAX_RETRY_AFTER_S)

    def look(self, now_s: float, fits: Callable[[Request, Tag], bool]) -> None:
        """Time has passed: would those who were refused be let in now?"""
        for returns in self._returns.values():
            returns.look(now_s, fits)
