"""One engine address as the core sees it, and the instances that serve one model: the figures every decision reads, kept ready.

They are changed by fleet.py alone; policies and predictors read. What an instance will *take* is the predictor's business.
"""

from __future__ import annotations

from math import inf
from typing import Any

from gateway.core.flow import UNSHARED, InstanceSpec, Placement


class Instance:
    """One engine address and what runs on it. Owned and changed by the core only; policies and predictors read."""

    __slots__ = (
        "context_tokens",
        "draining",
        "forming",
        "forming_until_s",
        "healthy",
        "in_flight",
        "itl_targets",
        "kv_left_tokens",
        "leased",
        "limit",
        "load",
        "offered_ranks",
        "others_context_tokens",
        "others_counted",
        "others_in_flight",
        "others_stake_per_s",
        "others_tightest_itl_s",
        "others_unprefilled_tokens",
        "owed",
        "reach",
        "residents",
        "returned_at_s",
        "room",
        "seen",
        "serving",
        "slots",
        "spec",
        "stake_ours_per_s",
        "stake_per_s",
        "tightest_itl_s",
        "unprefilled_tokens",
        "usd_per_hour",
        "version",
    )

    def __init__(self, spec: InstanceSpec) -> None:
        self.spec = spec
        self.usd_per_hour = spec.usd_per_hour
        self.limit = spec.limit_start  # sequences it should hold at most, moved by the controller
        self.slots = spec.limit_start  # how many of them may be used now: fewer after a return from the dead
        self.leased = UNSHARED  # of these, how many this worker may use; what runs beyond a shrunken lease finishes in peace
        self.reach = UNSHARED  # the same, and those that nobody holds: it could lease them by asking
        self.owed = False  # others wait for slots here
        self.in_flight = 0  # sequences of ours
        self.unprefilled_tokens = 0  # prompt tokens of ours without a first token yet
        self.context_tokens = 0  # prompt tokens of residents + output tokens as of the last tick
        self.kv_left_tokens: float = spec.kv_tokens or inf  # of its KV cache, once residents have said what is expected of them
        self.tightest_itl_s = inf  # the smallest ITL target among residents, whosever they are
        self.itl_targets: dict[float, int] = {}  # how many residents of ours have each target
        self.stake_ours_per_s = 0.0  # what a second of delay costs our residents together, as the policy that placed them reckons
        self.stake_per_s = 0.0  # the same for everybody's
        self.residents: dict[Placement, None] = {}  # in the order they came, so that the same events give the same answers
        self.forming: list[Placement] = []  # residents whose start is held back until a batch has formed
        self.forming_until_s = inf  # when the first of them cannot wait any longer
        self.healthy = True
        self.draining = False
        self.returned_at_s = -inf
        self.others_in_flight = 0
        self.others_counted = 0  # the same, but never more than our lease leaves them: what they last said may be over by now
        self.others_unprefilled_tokens = 0
        self.others_context_tokens = 0
        self.others_stake_per_s = 0.0
        self.others_tightest_itl_s = inf
        self.serving: Serving | None = None  # where it is listed, None while it takes no new work
        self.room: tuple[int, ...] = ()  # by sequences in flight: how many class ranks, tightest first, may start one more
        self.version = 0  # the fleet's, when something last began, answered or ended here
        self.seen: Any = None  # the controller's own: what it saw since its last look
        self.load: Any = None  # the predictor's own: what it knows of this instance
        self.offered_ranks = 0  # the ranks it is listed as open for now

    def __repr__(self) -> str:
        return f"<{self.spec.instance_id} {self.in_flight}/{self.slots}>"

    @property
    def saturation_ratio(self) -> float:
        """0..1 and above: in-flight over the slots in use. The predictor may offer a better one."""
        return (self.in_flight + self.others_in_flight) / self.slots if self.slots else 1.0

    def may_hold(self, n: int) -> bool:
        """Room for `n` sequences at once, or the whole of an empty instance for one that asks for more than any limit."""
        if self.in_flight + self.others_counted + n <= self.slots and self.in_flight + n <= self.reach:
            return True
        return not self.in_flight and self.reach >= self.slots


class Serving:
    """The instances that take new work for one model, and for each class rank those with room for it."""

    __slots__ = ("in_flight", "instances", "kv_most_tokens", "model", "open")

    def __init__(self, model: str, ranks: int) -> None:
        self.model = model
        self.instances: list[Instance] = []
        self.open: list[list[Instance]] = [[] for _ in range(ranks)]
        self.kv_most_tokens = 0.0  # the largest KV cache among them; 0 while none is known
        self.in_flight = 0  # sequences of ours on all of them: with the mean service time this gives the drain rate

    def know_kv(self) -> None:
        """Instances have come, gone or changed."""
        known = any(i.spec.kv_tokens for i in self.instances)
        self.kv_most_tokens = max(i.spec.kv_tokens or inf for i in self.instances) if known else 0.0

    def lendable(self, n: int) -> bool:
        """Is there an instance where `n` more are out of our reach, with a free slot that another worker holds and could let us have?"""
        return any(i.in_flight + n > i.reach < i.slots and i.in_flight + i.others_in_flight < i.slots for i in self.instances)
