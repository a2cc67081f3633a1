"""What a load's results are worth: attainment over offered, goodput and percentiles, per use case and in all, as a table or JSON.

The definitions are those of measure/attainment.py, from the client's side: refused and failed requests count as missed.
"""

from __future__ import annotations

from collections import Counter
from math import ceil
from typing import TYPE_CHECKING, Any

from gateway.config.catalog import Catalog
from gateway.load.client import Shown

if TYPE_CHECKING:
    from rich.table import Table


def percentile(values: list[float], share: float) -> float | None:
    """Nearest rank; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(max(ceil(share * len(ordered)) - 1, 0), len(ordered) - 1)]


class Report:
    """Grows as results come in."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.results: dict[str, list[Shown]] = {}

    def add(self, shown: Shown) -> None:
        """One more."""
        self.results.setdefault(shown.shot.use_case, []).append(shown)

    def attained(self, shown: Shown) -> bool:
        """Within every target of its use case?"""
        targets = self.catalog.targets_for(shown.shot.use_case)
        if shown.status != 200 or shown.error or shown.e2e_s is None or shown.e2e_s > targets.e2e_s:
            return False
        if shown.ttft_s is None:
            return shown.deltas == 0
        return shown.ttft_s <= targets.ttft_s and (shown.tpot_s or 0.0) <= targets.itl_s

    def row(self, name: str, results: list[Shown], span_s: float) -> dict[str, Any]:
        """One line of figures."""
        good = [r for r in results if r.status == 200 and not r.error]
        attained = sum(map(self.attained, results))
        pools = Counter(r.fields.get(b"x-slo-pool", b"-").decode("latin-1") for r in good)
        gaps = [gap for r in good for gap in r.gaps_s]
        told: dict[str, Any] = {
            "name": name,
            "offered": len(results),
            "attained": attained,
            "attained_ratio": attained / len(results) if results else None,
            "goodput_per_s": attained / span_s if span_s > 0 else 0.0,
            "refused": sum(r.status in (429, 503) for r in results),
            "failed": sum(not (r.status == 200 and not r.error) and r.status not in (429, 503) for r in results),
            "output_tokens": sum(r.output_tokens for r in good),
            "pools": dict(pools),
        }
        for key, values in (
            ("ttft", [r.ttft_s for r in good if r.ttft_s is not None]),
            ("itl", gaps),
            ("tpot", [r.tpot_s for r in good if r.tpot_s is not None]),
            ("e2e", [r.e2e_s for r in good if r.e2e_s is not None]),
        ):
            told[key] = {f"p{round(q * 100)}_s": percentile(values, q) for q in (0.5, 0.95, 0.99)}
        return told

    def rows(self, span_s: float) -> list[dict[str, Any]]:
        """Per use case, in the catalogue's order, and the whole at the end."""
        rows = [self.row(name, self.results[name], span_s) for name in self.catalog.use_cases if name in self.results]
        everything = [shown for results in self.results.values() for shown in results]
        rows.append(self.row("all", everything, span_s))
        return rows

    def table(self, span_s: float, title: str = "") -> Table:
        """For people."""
        from rich.table import Table

        table = Table(title=title or None, header_style="bold", expand=False)
        for name in ("use case", "class", "offered", "attained", "TTFT p95", "ITL p95", "E2E p95", "refused", "failed", "pools"):
            table.add_column(name, justify="left" if name in ("use case", "class", "pools") else "right", no_wrap=True)
        for row in self.rows(span_s):
            name = row["name"]
            use_case = self.catalog.use_cases.get(name)
            targets = self.catalog.targets_for(name) if use_case else None
            ratio = row["attained_ratio"]
            colour = "green" if ratio is not None and ratio >= 0.95 else "yellow" if ratio is not None and ratio >= 0.9 else "red"
            total = sum(row["pools"].values()) or 1
            table.add_row(
                name,
                use_case.experience_class if use_case else "",
                str(row["offered"]),
                f"[{colour}]{ratio:.1%}[/]" if ratio is not None else "-",
                beside(row["ttft"]["p95_s"], targets.ttft_s if targets else None),
                beside(row["itl"]["p95_s"], targets.itl_s if targets else None),
                beside(row["e2e"]["p95_s"], targets.e2e_s if targets else None),
                str(row["refused"] or "-"),
                str(row["failed"] or "-"),
                " ".join(f"{pool} {count / total:.0%}" for pool, count in sorted(row["pools"].items())),
                end_section=name != "all" and row is not None and name == list(self.results)[-1],
            )
        return table


def beside(value_s: float | None, target_s: float | None) -> str:
    """`112 / 150 ms`: what was, against what was promised."""
    if value_s is None:
        return "-"
    in_ms = (target_s if target_s is not None else value_s) < 1.0
    unit, factor = ("ms", 1000.0) if in_ms else ("s", 1.0)
    digits = 0 if in_ms else 1
    shown = f"{value_s * factor:.{digits}f}"
    if target_s is None:
        return f"{shown} {unit}"
    text = f"{shown} / {target_s * factor:.{digits}f} {unit}"
    return f"[red]{text}[/]" if value_s > target_s else text
