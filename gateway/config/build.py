"""From settings and catalogue to the plain values of the core: what it decides by, and the instances it decides about.

The core never sees the configuration's classes. Nothing here checks names: config/load.py has done so for every file.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from gateway.config.catalog import Catalog
from gateway.config.gpus import REMOTE_API, Gpus, StepTimes, shipped_gpus
from gateway.config.settings import Settings
from gateway.core.flow import ClassPolicy, CoreSettings, EngineKind, InstanceSpec, QueueLimits


def core_settings(settings: Settings, catalog: Catalog) -> CoreSettings:
    """Everything of the configuration that decisions depend on."""
    weights: dict[str, float] = {}
    for key in settings.keys:
        tenant = key.tenant or key.id
        weights[tenant] = max(weights.get(tenant, 0.0), key.weight)
    return CoreSettings(
        classes=tuple(
            ClassPolicy(
                name=name,
                rank=class_.rank,
                ceiling_ratio=class_.ceiling,
                tiers=class_.tiers,
                limits=QueueLimits(class_.queue.max_requests, class_.queue.max_bytes, class_.queue.ttl_s),
                refusable=class_.refusable,
                targets=catalog.class_targets(name),
                worth=class_.worth,
            )
            for name, class_ in catalog.by_rank()
        ),
        mode=settings.mode,
        tenant_weights=weights,
    )


def instance_specs(settings: Settings, catalog: Catalog, gpus: Gpus | None = None) -> list[InstanceSpec]:
    """One spec for each address of each pool, in the order of the file. Ids are `pool/host:port` (and a path, if it has one)."""
    gpus = gpus or shipped_gpus()
    specs: list[InstanceSpec] = []
    for name, pool in settings.pools.items():
        tier = catalog.tiers[pool.tier]
        gpu = gpus.find(pool.gpu)
        times = gpu.step_times(pool.engine_config) if gpu is not None else None
        # A remote API has no batch of ours to protect: its whole limit from the start. What it may cost is a matter of quotas.
        batch = pool.limit.max if pool.engine is EngineKind.REMOTE else tier.batch.start
        start = pool.limit.start or min(max(batch, pool.limit.min), pool.limit.max)
        window_s = 0.0 if pool.engine is EngineKind.REMOTE else tier.forming.window_s
        for url in pool.instances:
            specs.append(
                InstanceSpec(
                    instance_id=f"{name}/{address(url)}",
                    pool=name,
                    tier=pool.tier,
                    tier_rank=catalog.tier_rank(pool.tier),
                    model=pool.model,
                    gpu=gpu.name if gpu else pool.gpu,
                    usd_per_hour=pool.usd_per_hour if pool.usd_per_hour is not None else (gpu.usd_per_hour if gpu else 0.0),
                    limit_start=start,
                    limit_min=pool.limit.min,
                    limit_max=max(pool.limit.max, start),
                    limit_pinned=pool.limit.pinned,
                    batch_window_s=window_s if pool.batch_window_s is None else pool.batch_window_s,
                    batch_min=tier.forming.min if pool.batch_min is None else pool.batch_min,
                    kv_tokens=pool.kv_tokens,
                    engine=pool.engine,
                    engine_config=pool.engine_config,
                    url=url.rstrip("/"),
                    served_model=pool.served_model,
                    speed_per_s=times.typical_per_s if times is not None else 1.0,
                )
            )
    return specs


def times_of(spec: InstanceSpec, gpus: Gpus) -> StepTimes | None:
    """What is known of an instance before it was measured; None when nothing is."""
    if spec.engine is EngineKind.REMOTE:
        return REMOTE_API
    gpu = gpus.find(spec.gpu)
    return (gpu.step_times(spec.engine_config) or next(iter(gpu.steps.values()))) if gpu is not None else None


def step_facts(specs: Iterable[InstanceSpec], gpus: Gpus | None = None) -> dict[str, tuple[float, float, float, float]]:
    """Where predictions begin, per kind of instance (predict/kinds.StepFacts)."""
    gpus = gpus or shipped_gpus()
    known = {spec.predictor_key: times_of(spec, gpus) for spec in specs}
    return {key: (times.a, times.b, times.c, times.d) for key, times in known.items() if times is not None}


def address(url: str) -> str:
    """`http://a` -> `a:80`: how an instance is named and compared."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{(parts.hostname or '').lower()}:{port}{parts.path.rstrip('/')}"
