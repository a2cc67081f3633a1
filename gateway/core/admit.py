"""Admission: may a request that found no place at once wait for one, or is an early, honest no the kinder answer?

A request waits when a slot is expected before its deadline is lost; else it takes a looser class if its caller accepts one; else it is
refused with the time after which it would fit. Classes that are not refusable wait within their queue's bounds whatever the load: for
them being late is better than not being served. Knows load only as rates; instances are fleet.py's business.
"""

from __future__ import annotations

from math import exp

from gateway.core.flow import Ticket

# How fast the rate of finished requests forgets, and what an empty history is taken for.
RATE_MEMORY_S = 10.0
# A wait is predicted from averages; a request is turned away only when even this share of it would be too long. Turning away too
# eagerly loses more than it saves: refused work never comes back as goodput, work that waits often fits after all.
EAGERNESS_RATIO = 0.6
MAX_RETRY_AFTER_S = 120.0
MIN_RETRY_AFTER_S = 0.05
# A slot that another worker holds and does not use is here after two of its looks at the leases (state/slots).
LEASE_MOVES_S = 0.1


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
