"""Attainment and latencies over a window, grouped: what `GET /admin/slo`, `slo-gateway slo` and the operator's page show."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from msgspec.structs import replace

from gateway.admin.views import CountedView, Counting, Latency, OtherCounts, SloReport, SloRow
from gateway.core.flow import SloTargets
from gateway.measure.attainment import CellKey
from gateway.measure.histogram import Histogram
from gateway.measure.tally import HISTOGRAMS, Counts, Tally
from gateway.measure.windows import LONGEST_S

GROUPS = ("experience_class", "use_case", "pool", "model", "tenant")
OBJECTIVE_RATIO = 0.95
NO_POOL = "(none)"  # requests that were never placed


def window_s(text: str) -> float:
    """`30s`, `5m`, `2h` in seconds. ValueError beyond ten seconds to two hours, or when it is not a duration."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not (number.isascii() and number.isdecimal()) or len(number) > 6:
        raise ValueError(f"a window is written as 30s, 5m or 1h, not '{text[:20]}'")
    seconds = int(number) * units[unit]
    if not 10.0 <= seconds <= LONGEST_S:
        raise ValueError(f"a window is between 10s and 2h, not {text}")
    return seconds


def report(views: Counting, asked_s: float, by: str, others: OtherCounts | None = None) -> Generator[None, None, SloReport]:
    """The report, made in small steps: of this worker, and of `others`."""
    merged = yield from views.attainment.merging(views.now_s(), asked_s)
    if others is not None:
        yield from others.merging(merged, views.attainment.edges)
    cells = [(CellKey(*key), tally) for key, tally in merged.cells.items()]
    total = Tally(views.attainment.edges)
    for _, tally in cells:
        total.merge(tally)
        yield
    if by == "tenant":
        rows = [_counted(name, counts, merged.covered_s) for name, counts in merged.tenants.items()]
    else:
        groups: dict[str, list[tuple[CellKey, Tally]]] = {}
        for key, tally in cells:
            groups.setdefault(getattr(key, by) or NO_POOL, []).append((key, tally))
        rows = []
        for name, group in groups.items():
            rows.append(_grouped(views, name, group, merged.covered_s, by))
            yield
    return SloReport(
        window_s=asked_s,
        covered_s=merged.covered_s,
        by=by,
        objective_ratio=OBJECTIVE_RATIO,
        counted=CountedView(workers=1, gone=0, oldest_s=0.0) if others is None else others.counted(),
        usd_per_hour=sum(instance.usd_per_hour for instance in views.fleet()),
        rows=tuple(sorted(rows, key=lambda row: (-row.offered, row.name))),
        total=_row("total", None, total, merged.covered_s, None),
    )


def _grouped(views: Counting, name: str, group: list[tuple[CellKey, Tally]], covered_s: float, by: str) -> SloRow:
    merged = Tally(views.attainment.edges)
    for _, tally in group:
        merged.merge(tally)
    promises = {views.targets(key.use_case, key.experience_class) for key, _ in group}
    targets = promises.pop() if len(promises) == 1 else None
    classes = {key.experience_class for key, _ in group}
    return _row(name, classes.pop() if by == "use_case" and len(classes) == 1 else None, merged, covered_s, targets)


def _row(name: str, experience_class: str | None, tally: Tally, covered_s: float, targets: SloTargets | None) -> SloRow:
    row = _counted(name, tally, covered_s)
    wanted = dict.fromkeys(HISTOGRAMS, None) if targets is None else _targets_of(targets)
    latencies = {kind: _latency(histogram, wanted[kind]) for kind, histogram in zip(HISTOGRAMS, tally.histograms, strict=True)}
    return replace(row, experience_class=experience_class, latencies=latencies)


def _targets_of(targets: SloTargets) -> dict[str, float | None]:
    return {"ttft": targets.ttft_s, "itl": targets.itl_s, "tpot": targets.itl_s, "e2e": targets.e2e_s, "queue": None}


def _latency(histogram: Histogram, target_s: float | None) -> Latency:
    count = histogram.count
    return Latency(
        samples=count,
        p50_s=histogram.quantile(0.5),
        p95_s=histogram.quantile(0.95),
        p99_s=histogram.quantile(0.99),
        target_s=target_s,
        within_ratio=histogram.within(target_s) / count if target_s is not None and count else None,
    )


def _counted(name: str, counts: Counts, covered_s: float) -> SloRow:
    offered = counts.offered
    return SloRow(
        name=name,
        experience_class=None,
        offered=offered,
        completed=counts.completed,
        attained=counts.attained,
        attained_ratio=counts.attained_ratio,
        attained_strict_ratio=counts.attained_strict / offered if offered else None,
        burn_rate=None if counts.attained_ratio is None else round((1.0 - counts.attained_ratio) / (1.0 - OBJECTIVE_RATIO), 6),
        goodput_per_s=counts.attained / covered_s,
        missed={"ttft": counts.missed_ttft, "itl": counts.missed_itl, "e2e": counts.missed_e2e},
        refused=_sorted(counts.refused.items()),
        failed=_sorted(counts.failed.items()),
        client_gone=counts.client_gone,
        client_error=counts.client_error,
        degraded=counts.degraded,
        prompt_tokens=counts.prompt_tokens,
        cached_tokens=counts.cached_tokens,
        output_tokens=counts.output_tokens,
        latencies={},
    )


def _sorted(reasons: Iterable[tuple[str, int]]) -> dict[str, int]:
    return dict(sorted(reasons, key=lambda item: -item[1]))
