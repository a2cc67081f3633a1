"""What each tenant has had of late beside its fair share: what its attainment is worth when not everybody's can be had.

A fleet that keeps as many promises as it can serves whoever sends most. Weighing each tenant's promises by fair share over share had is
proportional fairness: who sends ten times as much as it should pays with its own attainment, not with its neighbour's. Turns inside a
class queue are queues.py's; this also reaches requests that never wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from typing import Final

MEMORY_S: Final = 60.0
# Nobody counts for more than this many times its share, or for less than one part in as many.
MOST: Final = 10.0
# Everybody is taken to have had this much: a handful of requests says nothing of who is greedy. About one request of the nine-class mix.
PRIOR_TOKENS: Final = 5_000.0
MAX_TENANTS: Final = 10_000
NEGLIGIBLE_TOKENS: Final = 1.0


class Shares:
    """Fading token counts by tenant. `weights` are the configured ones, 1 when absent."""

    __slots__ = ("_at_s", "_had", "_sum_tokens", "_sum_weights", "_weights")

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._had: dict[str, float] = {}
        self._at_s = 0.0
        self._sum_tokens = self._sum_weights = 0.0
        self.reweigh(weights)

    def reweigh(self, weights: Mapping[str, float]) -> None:
        """Other weights."""
        self._weights = weights
        self._sum_weights = sum(weights.get(tenant, 1.0) for tenant in self._had)

    def took(self, tenant: str, tokens: float) -> None:
        """A request of so many prompt and expected output tokens was started."""
        had = self._had.get(tenant)
        if had is None:
            if len(self._had) >= MAX_TENANTS:
                return
            had = 0.0
            self._sum_weights += self._weights.get(tenant, 1.0)
        self._had[tenant] = had + tokens
        self._sum_tokens += tokens

    def fade(self, now_s: float) -> None:
        """Time has passed: what was long ago counts less, and who is gone is forgotten."""
        keep = exp((self._at_s - now_s) / MEMORY_S)
        self._at_s = now_s
        self._had = {tenant: had * keep for tenant, had in self._had.items() if had * keep >= NEGLIGIBLE_TOKENS}
        self._sum_tokens = sum(self._had.values())
        self.reweigh(self._weights)

    def worth(self, tenant: str) -> float:
        """Its fair share over the share it has had: 1 = just that, or nobody to share with; within 1/MOST .. MOST."""
        known = len(self._had)
        if known < 2 and (not known or tenant in self._had):
            return 1.0
        weight = self._weights.get(tenant, 1.0)
        had = self._had.get(tenant)
        sum_weights = self._sum_weights if had is not None else self._sum_weights + weight
        sum_tokens = self._sum_tokens + PRIOR_TOKENS * sum_weights
        worth = weight * sum_tokens / (sum_weights * ((had or 0.0) + PRIOR_TOKENS * weight))
        return MOST if worth > MOST else max(worth, 1.0 / MOST)
