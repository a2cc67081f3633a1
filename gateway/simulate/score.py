"""What a run is worth: attainment over offered requests, goodput, percentiles, refusals, fairness, waste. Plain dicts, ready for JSON.

A request that was refused, failed, or was still unfinished when the run gave up has missed. What arrived during the warm-up is left out.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gateway.core.flow import Result
from gateway.simulate.run import Record, Run


def score(run: Run, warm_up_s: float = 0.0) -> dict[str, Any]:
    """Everything about one run."""
    records = [record for record in run.records if record.job.at_s >= warm_up_s]
    span_s = max(run.span_s - warm_up_s, 1e-9)
    summary = _part(records, span_s)
    tokens = sum(record.output_tokens for record in records)
    attained_tokens = sum(record.output_tokens for record in records if record.attained)
    by_tenant = _grouped(records, lambda record: record.job.tenant)
    goodput = summary["goodput_per_s"]
    summary |= {
        "rate_per_s": len(records) / span_s,
        "goodput_per_usd": goodput * 3600 / run.usd_per_hour if run.usd_per_hour else 0.0,
        "goodput_per_gpu_hour": goodput * 3600 / run.gpus,
        "wasted_tokens_ratio": 1 - attained_tokens / tokens if tokens else 0.0,
        "jain_index": jain([part_ratio(part) for part in by_tenant.values()]),
        "preempted": run.preempted,
        "by_class": {name: _part(part, span_s) for name, part in _grouped(records, lambda record: record.experience_class).items()},
        "by_use_case": {name: _part(part, span_s) for name, part in _grouped(records, lambda record: record.job.use_case).items()},
        "by_tenant": {name: _part(part, span_s) for name, part in by_tenant.items()},
        "by_tier": dict(Counter(record.tier for record in records if record.tier)),
    }
    return summary


def part_ratio(records: Sequence[Record]) -> float:
    """Share of these that attained; 1.0 when there are none."""
    return sum(record.attained for record in records) / len(records) if records else 1.0


def _part(records: Sequence[Record], span_s: float) -> dict[str, Any]:
    count = len(records) or 1
    attained = sum(record.attained for record in records)
    reasons = Counter(record.refuse_reason.value for record in records if record.refuse_reason is not None)
    done = [record for record in records if record.result is Result.COMPLETED]
    return {
        "offered": len(records),
        "attained": attained,
        "attained_ratio": attained / count,
        "attained_strict_ratio": sum(record.attained_strict for record in records) / count,
        "goodput_per_s": attained / span_s,
        "refused_ratio": sum(record.result is Result.REFUSED for record in records) / count,
        "failed_ratio": sum(record.result is Result.FAILED for record in records) / count,
        "degraded": sum(record.degraded for record in records),
        "refused": dict(reasons),
        "missed": _missed(done),
        "ttft_s": percentiles(record.ttft_s for record in done),
        "tpot_s": percentiles(record.tpot_s for record in done),
        "itl_p95_s": percentiles(record.itl_p95_s for record in done),
        "e2e_s": percentiles(record.e2e_s for record in done),
        "queue_s": percentiles(record.queue_s for record in done),
    }


def _missed(done: Iterable[Record]) -> dict[str, int]:
    """Which target the completed ones broke; one request may break several."""
    missed = Counter[str]()
    for record in done:
        targets = record.targets
        missed["ttft"] += record.ttft_s is not None and record.ttft_s > targets.ttft_s
        missed["itl"] += record.tpot_s is not None and record.tpot_s > targets.itl_s
        missed["e2e"] += record.e2e_s is not None and record.e2e_s > targets.e2e_s
    return dict(missed)


def percentiles(values: Iterable[float | None]) -> dict[str, float] | None:
    """p50, p95 and p99 of what is known (nearest rank), None without any."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    return {f"p{share}": known[min(math.ceil(len(known) * share / 100), len(known)) - 1] for share in (50, 95, 99)}


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index of non-negative values: 1/n (one has all) .. 1 (all alike)."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def confidence(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % confidence interval (Student's t); 0 wide for a single value."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, 0.0
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    student = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}.get(count, 2.2)
    return mean, student * spread / math.sqrt(count)


def _grouped(records: Iterable[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return dict(sorted(groups.items()))
