"""`slo-gateway slo`: does the promise hold?"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.admin_client import URL, ask

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@click.option("--url", default=URL, show_default=True, help="The admin port of any worker.")
@click.option("--key", default="", envvar="SLO_GATEWAY_ADMIN_KEY", show_envvar=True, help="The admin key.")
@click.option("--window", default="5m", show_default=True, help="How far back: 30s, 5m, 1h.")
@click.option("--by", default="use_case", show_default=True, help="experience_class, use_case, pool, model or tenant.")
@click.option("--watch", is_flag=True, help="Again every two seconds.")
@click.option("--json", "as_json", is_flag=True, help="As the admin API tells it.")
def command(url: str, key: str, window: str, by: str, watch: bool, as_json: bool) -> None:
    """Attainment, percentiles and goodput of a running gateway.

    \b
    slo-gateway slo --window 15m --by pool
    """
    params = {"window": window, "by": by}
    if as_json:
        while True:
            click.echo(json.dumps(ask(url, "/admin/slo", key, params)))
            if not watch:
                return
            time.sleep(2.0)
    from rich.console import Console

    console = Console()
    if not watch:
        console.print(table(ask(url, "/admin/slo", key, params), by))
        return
    from rich.live import Live

    with Live(console=console, refresh_per_second=2) as live:
        while True:
            live.update(table(ask(url, "/admin/slo", key, params), by))
            time.sleep(2.0)


def table(report: dict[str, Any], by: str) -> Table:
    """For people."""
    from rich.table import Table

    made = Table(title=f"the last {report['covered_s']:.0f} s; ${report['usd_per_hour']:.2f} an hour", header_style="bold")
    for name in (by.replace("_", " "), "offered", "attained", "goodput/s", "TTFT p95", "ITL p95", "E2E p95", "refused", "failed"):
        made.add_column(name, justify="left" if name == by.replace("_", " ") else "right")
    rows = report["rows"]
    for index, row in enumerate([*rows, report["total"]]):
        ratio = row["attained_ratio"]
        colour = "green" if ratio is not None and ratio >= report["objective_ratio"] else "red"
        latencies = row["latencies"]
        made.add_row(
            row["name"] if index < len(rows) else "all",
            str(row["offered"]),
            f"[{colour}]{ratio:.1%}[/]" if ratio is not None else "-",
            f"{row['goodput_per_s']:.2f}",
            *(_latency(latencies.get(name)) for name in ("ttft", "itl", "e2e")),
            str(sum(row["refused"].values()) or "-"),
            str(sum(row["failed"].values()) or "-"),
            end_section=index == len(rows) - 1,
        )
    return made


def _latency(latency: dict[str, Any] | None) -> str:
    if not latency or latency.get("p95_s") is None:
        return "-"
    value, target = latency["p95_s"], latency.get("target_s")
    shown = f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
    return f"[red]{shown}[/]" if target is not None and value > target else shown
