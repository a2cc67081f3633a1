"""Simulated fleets: the instances as the core is told of them, and what each engine is really like.

A fleet is written `3xH100 + 4xL40S:w8 + 4xA10:w4`; tiers, prices and step times come from the shipped facts. Real GPUs of one kind differ,
so every engine's speed is drawn once around the facts: a predictor has to learn it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from random import Random

from gateway.config.build import instance_specs, step_facts, times_of
from gateway.config.catalog import Catalog
from gateway.config.gpus import Gpus
from gateway.config.settings import Settings
from gateway.core.flow import EngineKind, InstanceSpec
from gateway.predict.kinds import StepFacts
from gateway.simulate.machine import MachineFacts

MODEL = "model-8b"
# 8 billion parameters with grouped-query attention keep 128 KiB per token of context.
KV_BYTES_PER_TOKEN = 131_072
_WEIGHT_BYTES = {"": 16e9, "fp16": 16e9, "w8": 8.5e9, "w4": 5e9}
# Engines of one kind: speed of decoding and of prefill each within this of the facts.
INSTANCE_SPREAD = 0.08

_PART = re.compile(r"^\s*(\d+)\s*x\s*([A-Za-z0-9-]+?)(?::([A-Za-z0-9]+))?\s*$")


@dataclass(frozen=True, slots=True)
class SimulatedFleet:
    """`specs[i]` is served by an engine like `engines[i]`; `facts` are what the gateway is told, by predictor key."""

    text: str
    specs: tuple[InstanceSpec, ...]
    engines: tuple[MachineFacts, ...]
    facts: dict[str, StepFacts]

    @property
    def usd_per_hour(self) -> float:
        """What the whole fleet costs."""
        return sum(spec.usd_per_hour for spec in self.specs)

    def limited(self, limit: int | None) -> SimulatedFleet:
        """The same with every in-flight limit fixed at `limit`, as a plain router would be configured. None = as the tiers say."""
        if limit is None:
            return self
        specs = tuple(replace(spec, limit_start=limit, limit_max=limit, limit_pinned=True, batch_window_s=0.0) for spec in self.specs)
        return replace(self, specs=specs)

    def misjudged(self, ratio: float) -> SimulatedFleet:
        """The same with every fact told to the gateway `ratio` times the truth."""
        return replace(self, facts={key: (a * ratio, b * ratio, c * ratio, d * ratio) for key, (a, b, c, d) in self.facts.items()})


def kv_tokens_of(memory_bytes: float, config: str) -> int:
    """Tokens of context that fit beside the weights in nine tenths of a GPU's memory."""
    return int((memory_bytes * 0.9 - _WEIGHT_BYTES.get(config, 16e9)) / KV_BYTES_PER_TOKEN)


def configured(settings: Settings, catalog: Catalog, gpus: Gpus) -> SimulatedFleet:
    """The pools of a gateway's own configuration, with engines exactly as the shipped facts say. ValueError names a pool of which too
    little is known."""
    specs = instance_specs(settings, catalog, gpus)
    engines: list[MachineFacts] = []
    for spec in specs:
        times = times_of(spec, gpus)
        if times is None:
            raise ValueError(f"pool {spec.pool}: nothing is known of the speed of gpu {spec.gpu!r}; known are {', '.join(gpus.gpus)}")
        gpu = gpus.find(spec.gpu)
        if spec.engine is EngineKind.REMOTE or gpu is None:
            engines.append(MachineFacts(times.a, 0.0, 0.0, 0.0, max_num_seqs=4096, overhead_s=0.15, attention=0.0, crowd=0.0))
        else:
            kv_tokens = spec.kv_tokens or kv_tokens_of(gpu.memory_bytes, spec.engine_config)
            engines.append(MachineFacts(times.a, times.b, times.c, times.d, kv_tokens=kv_tokens, prefix_cache=True))
    return SimulatedFleet(", ".join(settings.pools), tuple(specs), tuple(engines), step_facts(specs, gpus))


def fleet(
    text: str, catalog: Catalog, gpus: Gpus, *, spread: float = INSTANCE_SPREAD, chunk_tokens: int = 2048, prefix_cache: bool = True
) -> SimulatedFleet:
    """Read a fleet. ValueError says which part is wrong and what would do."""
    specs: list[InstanceSpec] = []
    engines: list[MachineFacts] = []
    facts: dict[str, StepFacts] = {}
    chance = Random(text)  # noqa: S311
    for part in text.split("+"):
        match = _PART.match(part)
        if match is None:
            raise ValueError(f"fleet part {part.strip()!r}: expected COUNTxGPU or COUNTxGPU:CONFIG, for example 4xL40S:w8")
        count, gpu_name, config = int(match[1]), match[2], match[3] or ""
        gpu = gpus.find(gpu_name)
        if gpu is None:
            raise ValueError(f"fleet part {part.strip()!r}: no GPU named {gpu_name}; known are {', '.join(gpus.gpus)}")
        times = gpu.step_times(config)
        if times is None:
            runs = ", ".join(gpu.steps)
            raise ValueError(f"fleet part {part.strip()!r}: {gpu.name} does not run {config or 'fp16'} models of this size; it runs {runs}")
        tier_name = catalog.tier_of_gpu(gpu.name) or "cost"
        tier = catalog.tiers[tier_name]
        kv_tokens = kv_tokens_of(gpu.memory_bytes, config)
        pool = f"{gpu.name.lower()}{'-' + config if config else ''}"
        for index in range(count):
            spec = InstanceSpec(
                instance_id=f"{pool}/{index}",
                pool=pool,
                tier=tier_name,
                tier_rank=catalog.tier_rank(tier_name),
                model=MODEL,
                gpu=gpu.name,
                usd_per_hour=gpu.usd_per_hour,
                limit_start=tier.batch.start,
                batch_window_s=tier.forming.window_s,
                batch_min=tier.forming.min,
                kv_tokens=kv_tokens,
                engine_config=config,
                speed_per_s=times.typical_per_s,
            )
            specs.append(spec)
            facts[spec.predictor_key] = (times.a, times.b, times.c, times.d)
            engine = MachineFacts(
                times.a, times.b, times.c, times.d, chunk_tokens=chunk_tokens, kv_tokens=kv_tokens, prefix_cache=prefix_cache
            )
            engines.append(engine.scaled(chance.uniform(1 - spread, 1 + spread), chance.uniform(1 - spread, 1 + spread)))
    return SimulatedFleet(text, tuple(specs), tuple(engines), facts)
