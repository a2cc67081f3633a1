"""What a load's results are worth: attainment over offered, goodput and percentiles, per use case and in all, as a table or JSON.

The definitions are those of measure/attainment.py, from the client's side: refused and failed requests count as missed. Latencies are
kept as histograms, so that hours of load take no more memory than a minute.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gateway.config.catalog import Catalog
from gateway.load.client import Shown
from gateway.measure.histogram import Edges, Histogram

if TYPE_CHECKING:
    from rich.table import Table

LATENCIES = ("ttft", "itl", "tpot", "e2e")
QUANTILES = (0.5, 0.95, 0.99)
ALL = "all"
# What a terminal of so many columns shows besides: pools and money, then refusals and failures apart, then classes.
POOLS_COLUMNS, WIDE_COLUMNS, CLASS_COLUMNS = 120, 130, 145
_NO_EDGES = Edges(())


class Got:
    """What the requests of one use case got, or all of them."""

    __slots__ = (
        "answered", "attained", "busy_s", "failed", "latencies", "missed", "offered", "output_tokens", "pools", "refused", "unfinished",
    )  # fmt: skip

    def __init__(self) -> None:
        self.offered = self.answered = self.attained = self.refused = self.output_tokens = 0
        self.unfinished = 0  # given up by us while it could still be kept: says nothing of who answers, and is not offered
        self.failed: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()  # answered, but late: by what; one may miss several
        self.pools: Counter[str] = Counter()
        self.busy_s: defaultdict[str, float] = defaultdict(float)  # by pool: how long its answers took there
        self.latencies = {name: Histogram(_NO_EDGES) for name in LATENCIES}

    def add(self, shown: Shown, missed: list[str]) -> None:
        """One more result; `missed` names the targets it was beyond."""
        self.offered += 1
        if shown.status in (429, 503):
            self.refused += 1
            return
        if shown.status != 200 or shown.error or shown.e2e_s is None:
            self.failed[shown.error or f"status {shown.status}"] += 1
            return
        self.answered += 1
        self.attained += not missed
        self.missed.update(missed)
        self.output_tokens += shown.output_tokens
        pool = shown.fields.get(b"x-slo-pool", b"-").decode("latin-1")
        self.pools[pool] += 1
        self.busy_s[pool] += shown.e2e_s
        for name, value_s in (("ttft", shown.ttft_s), ("tpot", shown.tpot_s), ("e2e", shown.e2e_s)):
            if value_s is not None:
                self.latencies[name].record(value_s)
        for gap_s in shown.gaps_s:
            self.latencies["itl"].record(gap_s)

    def row(self, name: str, span_s: float) -> dict[str, Any]:
        """Its figures, as --json has them."""
        told: dict[str, Any] = {
            "name": name,
            "offered": self.offered,
            "attained": self.attained,
            "attained_ratio": self.attained / self.offered if self.offered else None,
            "goodput_per_s": self.attained / span_s if span_s > 0 else 0.0,
            "refused": self.refused,
            "failed": dict(self.failed),
            "missed": {name: self.missed[name] for name in ("ttft", "itl", "e2e")},
            "output_tokens": self.output_tokens,
            "pools": dict(self.pools),
            "unfinished": self.unfinished,
        }
        for kind, histogram in self.latencies.items():
            told[kind] = {f"p{round(q * 100)}_s": histogram.quantile(q) for q in QUANTILES} | {"samples": histogram.count}
        return told


class Report:
    """Grows as results come in. `usd_per_hour` is each pool's price, where it is known: a use case pays for its share of the time that a
    pool was busy."""

    def __init__(self, catalog: Catalog, usd_per_hour: Mapping[str, float] | None = None) -> None:
        self.catalog = catalog
        self.usd_per_hour = usd_per_hour or {}
        self.all = Got()
        self.use_cases: dict[str, Got] = {}

    def add(self, shown: Shown) -> None:
        """One more."""
        name = shown.shot.use_case
        one = self.use_cases.setdefault(name, Got())
        if shown.given_up_after_s is not None and not self._lost(shown):
            one.unfinished += 1
            self.all.unfinished += 1
            return
        missed = self.missed(shown)
        one.add(shown, missed)
        self.all.add(shown, missed)

    def _lost(self, shown: Shown) -> bool:
        """Of one given up: was its promise broken by then?"""
        targets, after_s = self.catalog.targets_for(shown.shot.use_case), shown.given_up_after_s or 0.0
        return after_s > targets.e2e_s or (shown.ttft_s or after_s) > targets.ttft_s

    def usd(self, got: Got, span_s: float) -> float:
        """What it cost in `span_s`."""
        busy_s = self.all.busy_s
        return sum(price * span_s / 3600.0 * got.busy_s[pool] / busy_s[pool] for pool, price in self.usd_per_hour.items() if busy_s[pool])

    def missed(self, shown: Shown) -> list[str]:
        """The targets of its use case that an answer was beyond. One that was not streamed shows its end only."""
        targets = self.catalog.targets_for(shown.shot.use_case)
        missed = ["ttft"] if shown.ttft_s is not None and shown.ttft_s > targets.ttft_s else []
        if (shown.tpot_s or 0.0) > targets.itl_s:
            missed.append("itl")
        if shown.e2e_s is not None and shown.e2e_s > targets.e2e_s:
            missed.append("e2e")
        return missed

    def rows(self, span_s: float) -> list[dict[str, Any]]:
        """Per use case, in the catalogue's order, and the whole at the end."""
        rows = [self.use_cases[name].row(name, span_s) for name in self.catalog.use_cases if name in self.use_cases]
        return [*rows, self.all.row(ALL, span_s)]

    def table(self, span_s: float, title: str = "", caption: str = "", width: int = 80) -> Table:
        """For people; the narrower, the less of it: below POOLS_COLUMNS the caption sums pools up."""
        from rich import box
        from rich.table import Table

        wide, pooled = width >= WIDE_COLUMNS, width >= POOLS_COLUMNS
        shares = pool_shares(self.all.pools)
        table = Table(
            title=title or None,
            caption="   ".join(part for part in ("" if pooled else shares, caption) if part) or None,
            header_style="bold",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            show_edge=False,
        )
        left, classes, priced = ("use case", "class", "pools"), width >= CLASS_COLUMNS, pooled and bool(self.usd_per_hour)
        names = ["use case", *(["class"] if classes else []), "offered", "attained", "TTFT p95", "ITL p95", "E2E p95"]
        names += [*(["refused", "failed"] if wide else ["lost"]), *(["$"] if priced else []), *(["pools"] if pooled else [])]
        for name in names:
            table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
        rows = self.rows(span_s)
        for row in rows:
            name = row["name"]
            use_case = self.catalog.use_cases.get(name)
            targets = self.catalog.targets_for(name) if use_case else None
            failed = sum(row["failed"].values())
            cells = [
                name,
                *([use_case.experience_class if use_case else ""] if classes else []),
                str(row["offered"]),
                share(row["attained_ratio"]),
            ]
            for kind in ("ttft", "itl", "e2e"):
                cells.append(beside(row[kind]["p95_s"], getattr(targets, f"{kind}_s") if targets else None))
            lost = row["refused"] + failed
            cells += [str(row["refused"] or "-"), str(failed or "-")] if wide else [str(lost or "-")]
            if priced:
                cells.append(f"{self.usd(self.use_cases[name] if use_case else self.all, span_s):.3f}")
            if pooled:
                cells.append(pool_shares(row["pools"]))
            table.add_row(*cells, end_section=len(rows) > 1 and row is rows[-2])
        return table


def share(ratio: float | None) -> str:
    """A ratio in per cent, in the colour of what it is worth."""
    if ratio is None:
        return "-"
    colour = "green" if ratio >= 0.95 else "yellow" if ratio >= 0.9 else "red"
    return f"[{colour}]{ratio:.1%}[/]"


def pool_shares(pools: Mapping[str, int]) -> str:
    """`balanced 63% cost 37%`"""
    total = sum(pools.values())
    return " ".join(f"{pool} {count / total:.0%}" for pool, count in sorted(pools.items()))


def beside(value_s: float | None, target_s: float | None) -> str:
    """`112/150ms`: what was, against what was promised."""
    if value_s is None:
        return "-"
    in_ms = (target_s if target_s is not None else value_s) < 1.0
    unit, factor = ("ms", 1000.0) if in_ms else ("s", 1.0)
    shown = f"{value_s * factor:.{0 if in_ms else 1}f}"
    if target_s is None:
        return f"{shown}{unit}"
    text = f"{shown}/{target_s * factor:.0f}{unit}"
    return f"[red]{text}[/]" if value_s > target_s else text
