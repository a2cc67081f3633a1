"""The instances as the core sees them: who serves what, how loaded each is by our own exact count, and slots given and taken back.

The figures are what the gateway itself knows at this moment (never scraped, never stale); other workers' load is added by state/
through `others_*`. What an instance will *take* is the predictor's business.
"""

from __future__ import annotations

from gateway.core.flow import InstanceSpec, Placement


class Instance:
    """One engine address and what runs on it. Owned and changed by the core only; policies and predictors read."""

    __slots__ = (
        "batch_opened_at_s",
        "context_tokens",
        "draining",
        "ejected_until_s",
        "healthy",
        "in_flight",
        "limit",
        "others_context_tokens",
        "others_in_flight",
        "others_unprefilled_tokens",
        "residents",
        "spec",
        "tightest_itl_s",
        "unprefilled_tokens",
        "usd_per_hour",
    )

    def __init__(self, spec: InstanceSpec) -> None:
        self.spec = spec
        self.usd_per_hour = spec.usd_per_hour
        self.limit = spec.limit_start
        self.in_flight = 0  # sequences of ours
        self.unprefilled_tokens = 0  # prompt tokens of ours without a first token yet
        self.context_tokens = 0  # prompt tokens of residents + output tokens as of the last event or tick
        self.tightest_itl_s = float("inf")  # the smallest ITL target among residents
        self.residents: set[Placement] = set()
        self.healthy = True
        self.draining = False
        self.ejected_until_s = 0.0
        self.batch_opened_at_s = 0.0
        self.others_in_flight = 0
        self.others_unprefilled_tokens = 0
        self.others_context_tokens = 0

    @property
    def saturation_ratio(self) -> float:
        """0..1 and above: in-flight over the limit. The predictor may offer a better one."""
        return (self.in_flight + self.others_in_flight) / self.limit if self.limit else 1.0
