"""The quotas of API keys: so many requests and tokens a minute, so many requests at the same time, for a key and for its classes.

A request is charged by estimate when it is taken (its prompt and the output that is expected of it) and by what it came to when it is
over. One that was refused or came to nothing costs nothing. Kept in memory: nothing is waited for. That several workers keep one quota
together is state/quota_shares' business; without it each keeps it alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gateway.core.flow import Outcome, RefuseReason, Result, Ticket
from gateway.openai.errors import NO_RETRY, ApiError, Headers, Kind
from gateway.quota.measure import Measure, Window

if TYPE_CHECKING:
    from gateway.config.settings import QuotaLimits, Settings

REQUESTS, TOKENS, CONCURRENT = "requests", "tokens", "concurrent"
# SDKs ignore a Retry-After above two minutes and come back at once instead.
MAX_WAIT_S: Final = 120.0
_MESSAGES: Final = {
    REQUESTS: "The quota of this API key for requests a minute is used up.",
    TOKENS: "The quota of this API key for tokens a minute has no room for this request.",
    CONCURRENT: "This API key has as many requests running as its quota allows.",
}


class Quota:
    """The limits of one key, or of one class of it. `quota_id` is the key's id, or `id/class`."""

    __slots__ = ("measures", "quota_id")

    def __init__(self, quota_id: str, limits: QuotaLimits) -> None:
        self.quota_id = quota_id
        self.measures: dict[str, Measure] = {}
        if limits.requests_per_minute is not None:
            self.measures[REQUESTS] = Measure(limits.requests_per_minute, Window())
        if limits.tokens_per_minute is not None:
            self.measures[TOKENS] = Measure(limits.tokens_per_minute, Window())
        if limits.concurrent is not None:
            self.measures[CONCURRENT] = Measure(limits.concurrent, None)


@dataclass(slots=True)
class Reserved:
    """What a request holds of its quotas."""

    quotas: tuple[Quota, ...]
    tokens: int
    at_s: float


@dataclass(slots=True)
class _Key:
    """A key that has quotas: its own, and those of its classes."""

    own: Quota | None
    classes: dict[str, Quota] = field(default_factory=dict)


class Quotas:
    """All quotas of a configuration. `clock` tells seconds, never backwards."""

    def __init__(self, settings: Settings, clock: Callable[[], float], before: Quotas | None = None) -> None:
        self.clock = clock
        self.refused: Counter[tuple[str, str]] = before.refused if before is not None else Counter()  # by quota and measure
        self.look_s = 0.0  # how often workers look at each other; 0 = there is only this one
        self.by_id: dict[str, Quota] = {}
        self._keys: dict[str, _Key] = {}
        for key in settings.keys:
            quota = key.quota
            if quota is not None:
                own = self._quota(key.id, quota) if quota.limits_anything() else None
                classes = {name: self._quota(f"{key.id}/{name}", limits) for name, limits in quota.classes.items()}
                self._keys[key.id] = _Key(own, classes)
        if before is not None:
            self.look_s = before.look_s
            self._take_over(before)

    def _quota(self, quota_id: str, limits: QuotaLimits) -> Quota:
        quota = self.by_id[quota_id] = Quota(quota_id, limits)
        return quota

    def _take_over(self, before: Quotas) -> None:
        """A reload changes limits, not what has been used of them. The old measures live on: what runs settles with them."""
        for quota_id, quota in self.by_id.items():
            old = before.by_id.get(quota_id)
            for name, measure in quota.measures.items():
                known = old.measures.get(name) if old is not None else None
                if known is not None:
                    known.limit = measure.limit
                    quota.measures[name] = known
                elif self.look_s:
                    measure.wallet = 0  # until the others have been asked

    # ---- requests

    def reserve(self, key_id: str, ticket: Ticket) -> Reserved | None:
        """Charge a request that has arrived. None when its key has no quota; ApiError 429 when one is used up."""
        key = self._keys.get(key_id)
        if key is None:
            return None
        class_quota = key.classes.get(ticket.tag.experience_class)
        quotas = tuple(quota for quota in (key.own, class_quota) if quota is not None)
        if not quotas:
            return None
        now_s = self.clock()
        request = ticket.request
        tokens = request.prompt_tokens + math.ceil(ticket.expected_output_tokens) * request.n
        costs = {REQUESTS: 1, TOKENS: tokens, CONCURRENT: 1}
        lacking = [(q, name, m) for q in quotas for name, m in q.measures.items() if not m.fits(costs[name], now_s)]
        if lacking:
            quota, name, measure = max(lacking, key=lambda entry: entry[2].wait_s(costs[entry[1]], now_s, self.look_s or 1.0))
            self.refused[quota.quota_id, name] += 1
            raise self._refusal(quotas, name, measure.wait_s(costs[name], now_s, self.look_s or 1.0), now_s)
        for quota in quotas:
            for name, measure in quota.measures.items():
                measure.spend(costs[name], now_s)
        return Reserved(quotas, tokens, now_s)

    def settle(self, reserved: Reserved, outcome: Outcome | None) -> None:
        """It is over: charge what it came to."""
        now_s = self.clock()
        served = outcome is not None and outcome.result in (Result.COMPLETED, Result.CLIENT_GONE)
        came_to = outcome.prompt_tokens + outcome.output_tokens if outcome is not None and served else 0
        if outcome is not None and outcome.result is Result.FAILED:
            served, came_to = outcome.output_tokens > 0, outcome.prompt_tokens + outcome.output_tokens
        for quota in reserved.quotas:
            for name, measure in quota.measures.items():
                if name == TOKENS:
                    measure.settle(reserved.tokens, came_to, reserved.at_s, now_s)
                elif name == CONCURRENT or not served:
                    measure.settle(1, 0, reserved.at_s, now_s)

    def _refusal(self, quotas: tuple[Quota, ...], name: str, wait_s: float, now_s: float) -> ApiError:
        message = _MESSAGES[name]
        headers: Headers = self.headers(quotas, now_s)
        if wait_s < math.inf:
            wait_s = min(max(wait_s, 0.001), MAX_WAIT_S)
            headers += ((b"retry-after", b"%d" % math.ceil(wait_s)), (b"retry-after-ms", b"%d" % math.ceil(wait_s * 1000.0)))
            message += f" Try again in {wait_s:.1f} s."
        else:
            headers += NO_RETRY
            message += " It is larger than the whole quota: trying again will not help."
        return ApiError(
            Kind.RATE_LIMIT,
            message,
            type=TOKENS if name == TOKENS else REQUESTS,
            headers=headers,
            extra={"reason": RefuseReason.QUOTA.value, "quota": name},
        )

    # ---- what is told

    def headers(self, quotas: tuple[Quota, ...], now_s: float) -> Headers:
        """`x-ratelimit-*` as OpenAI's; where a key and its class both have a limit, of the one with less left."""
        fields: list[tuple[bytes, bytes]] = []
        for name in (REQUESTS, TOKENS):
            measures = [quota.measures[name] for quota in quotas if name in quota.measures]
            if measures:
                least = min(measures, key=lambda measure: measure.remaining(now_s))
                kind = name.encode()
                fields.append((b"x-ratelimit-limit-" + kind, b"%d" % least.limit))
                fields.append((b"x-ratelimit-remaining-" + kind, b"%d" % least.remaining(now_s)))
                fields.append((b"x-ratelimit-reset-" + kind, duration(least.reset_s(now_s)).encode()))
        return tuple(fields)

    def fields(self, reserved: Reserved) -> bytes:
        """The same as bytes of an answer's head."""
        return b"".join(b"%b: %b\r\n" % field for field in self.headers(reserved.quotas, self.clock()))

    def rows(self) -> Iterator[tuple[str, str, Measure]]:
        """Every limit: quota, measure, figures."""
        for quota_id, quota in self.by_id.items():
            for name, measure in quota.measures.items():
                yield quota_id, name, measure


def duration(seconds: float) -> str:
    """As OpenAI writes it: `20ms`, `1.5s`, `1m0s`."""
    if seconds < 1.0:
        return f"{math.ceil(seconds * 1000.0)}ms"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"


def quotas_of(settings: Settings, clock: Callable[[], float], before: Quotas | None = None) -> Quotas | None:
    """None when no key has any, so that a request need not ask."""
    return Quotas(settings, clock, before) if any(key.quota is not None for key in settings.keys) else None
