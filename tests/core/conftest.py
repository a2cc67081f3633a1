"""Requests, tags and cores with instances, for tests that tell a core what happened and when."""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

from gateway import policies
from gateway.core.decide import Core
from gateway.core.flow import (
    ClassPolicy,
    CoreSettings,
    Endpoint,
    InstanceSpec,
    Outcome,
    QueueLimits,
    Request,
    Result,
    SloTargets,
    Tag,
)

NAMES = ("instant", "conversational", "interactive", "deferred", "batch")
TTFT_S = (0.15, 0.3, 0.5, 1.0, 2.0)
MODEL = "m"
_ids = itertools.count()


def targets(rank: int = 1, ttft_s: float | None = None) -> SloTargets:
    return SloTargets(ttft_s if ttft_s is not None else TTFT_S[rank], 0.03, 20.0, 20.0)


def settings(**more: Any) -> CoreSettings:
    limits = more.pop("limits", QueueLimits(max_requests=50, max_bytes=1_000_000))
    classes = tuple(
        ClassPolicy(name, rank, (1.0, 0.9, 0.8, 0.7, 0.6)[rank], ("premium", "balanced", "cost"), limits, rank < 3, targets(rank))
        for rank, name in enumerate(NAMES)
    )
    return CoreSettings(classes=classes, **more)


def instance(name: str = "premium/a", tier: str = "premium", limit: int = 1, **more: Any) -> InstanceSpec:
    rank = ("premium", "balanced", "cost").index(tier)
    model = more.pop("model", MODEL)
    usd_per_hour = (4.5, 2.0, 1.0)[rank]
    return InstanceSpec(name, tier, tier, rank, model, "H100", usd_per_hour, limit, limit_max=limit, **({"limit_pinned": True} | more))


def request(name: str = "", **more: Any) -> Request:
    given = {"stream": True, "prompt_tokens": 100, "max_output_tokens": 50, "body_bytes": 400, "arrived_at_s": 10.0, "tenant": "t"} | more
    return Request(request_id=name or f"r{next(_ids)}", endpoint=Endpoint.CHAT, model=given.pop("model", MODEL), **given)


def tag(rank: int = 1, ttft_s: float | None = None) -> Tag:
    return Tag("chatbot", NAMES[rank], rank, targets(rank, ttft_s), ("premium", "balanced", "cost"), 50, "test")


def core_with(*specs: InstanceSpec, policy: str = "tier_preference", now_s: float = 0.0, **more: Any) -> Core:
    core = Core(settings(**more), policies.load(policy)(Random(0)))
    core.instances_changed(list(specs), now_s)
    return core


def completed() -> Outcome:
    return Outcome(Result.COMPLETED, output_tokens=50, ttft_s=0.05, tpot_s=0.01, e2e_s=1.0)
