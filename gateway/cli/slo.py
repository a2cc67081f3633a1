"""`slo-gateway slo`: does the promise hold?"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.admin_client import URL, ask

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

GROUPS = ("experience_class", "use_case", "pool", "model", "tenant")  # admin/slo.py's, which this does not wait to import
CLASSES = ("instant", "conversational", "interactive", "deferred", "batch")
EVERY_S = 2.0
PLAIN_COLUMNS = 110  # of a table that goes into a file


@click.command()
@click.option("--url", default=URL, show_default=True, help="The admin port of any worker.")
@click.option("--key", default="", envvar="SLO_GATEWAY_ADMIN_KEY", show_envvar=True, help="The admin key.")
@click.option("--window", default="5m", show_default=True, help="How far back: 30s, 5m, 1h.")
@click.option("--by", default="use_case", show_default=True, type=click.Choice(GROUPS), help="What a row is.")
@click.option("--watch", is_flag=True, help="Again every two seconds, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="As the admin API tells it; one line each with --watch.")
def command(url: str, key: str, window: str, by: str, watch: bool, as_json: bool) -> None:
    """Attainment, percentiles and goodput of a running gateway.

    \b
    slo-gateway slo                                the last five minutes by use case
    slo-gateway slo --watch --by pool              live
    slo-gateway slo --window 1h --json | jq '.rows[] | select(.burn_rate > 1) | .name'
    """
    params = {"window": window, "by": by}
    try:
        if as_json:
            while True:
                click.echo(json.dumps(ask(url, "/admin/slo", key, params)))
                if not watch:
                    return
                time.sleep(EVERY_S)
        _show(url, key, params, watch)
    except KeyboardInterrupt:
        sys.exit(130)


def _show(url: str, key: str, params: dict[str, str], watch: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_COLUMNS)

    def told() -> Group:
        return page(ask(url, "/admin/slo", key, params), console.width)

    if not watch:
        console.print(told())
        return
    from rich.live import Live

    with Live(told(), console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            time.sleep(EVERY_S)
            live.update(told(), refresh=True)


def page(report: dict[str, Any], columns: int) -> Group:
    """For people. Latencies are p95, red where they are above a target that the whole row shares."""
    from rich.console import Group
    from rich.text import Text

    total, by = report["total"], report["by"]
    title = (
        f"{_words(by)}, the last {_long(report['covered_s'])}: {total['goodput_per_s']:.2f} of "
        f"{total['offered'] / report['covered_s']:.2f} requests a second attained, ${report['usd_per_hour']:.2f} an hour"
    )
    rows = sorted(report["rows"], key=_place) if by == "experience_class" else report["rows"]
    if not rows:
        return Group(Text("No request has ended in this window.", "dim"))
    return Group(Text(title, "bold"), _table(rows, report, columns), Text(_caption(report), "dim"))


def _table(rows: list[dict[str, Any]], report: dict[str, Any], columns: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    total, wide = report["total"], columns >= 90
    latencies = ("ttft", "itl", "e2e", "queue") if wide else ("ttft", "itl", "e2e")
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0) if wide else 0)
    made.add_column(_words(report["by"]), no_wrap=True)
    for name in ("offered", "attained", "burn", *(name if name == "queue" else name.upper() for name in latencies), "refused", "failed"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in (*rows, total) if len(rows) > 1 else rows:
        burn_rate = row["burn_rate"]
        made.add_row(
            Text("all" if row is total else _words(row["name"]), "bold" if row is total else ""),
            str(row["offered"]),
            _ratio(row["attained_ratio"], report["objective_ratio"]),
            Text("-" if burn_rate is None else f"{burn_rate:.1f}x", "red" if burn_rate is not None and burn_rate > 1 else ""),
            *(_latency(row["latencies"].get(name)) for name in latencies),
            Text(str(sum(row["refused"].values()) or "-"), "yellow"),
            Text(str(sum(row["failed"].values()) or "-"), "red"),
        )
        if len(rows) > 1 and row is rows[-1]:
            made.add_section()
    return made


def _caption(report: dict[str, Any]) -> str:
    total = report["total"]
    reasons = sorted({**total["refused"], **total["failed"]}.items(), key=lambda item: -item[1])
    told = f"Latencies are p95. {report['objective_ratio']:.0%} is promised; a burn of 1x just keeps it."
    counted = report["counted"]
    if counted["workers"] > 1 or counted["gone"]:
        told += f" {counted['workers']} workers counted, the oldest word {counted['oldest_s']:.1f} s old."
    for silent in counted["silent"]:
        told += f" {silent['worker']} fell silent {_long(silent['silent_s'])} ago: up to {silent['missing_s']:.1f} s of it are missing."
    if counted["unreachable"]:
        told += f" Only this worker is counted: {counted['unreachable']}."
    if reasons:
        told += " Not served: " + ", ".join(f"{_words(name)} {count}" for name, count in reasons) + "."
    return told


def _place(row: dict[str, Any]) -> int:
    name = row["name"]
    return CLASSES.index(name) if name in CLASSES else len(CLASSES)


def _ratio(ratio: float | None, objective_ratio: float) -> Text:
    from rich.text import Text

    if ratio is None:
        return Text("-")
    shown = f"{ratio:.1%}"
    return Text("<100%" if shown == "100.0%" and ratio < 1 else shown, "green" if ratio >= objective_ratio else "red")


def _latency(latency: dict[str, Any] | None) -> Text:
    from rich.text import Text

    if not latency or latency.get("p95_s") is None:
        return Text("-")
    value_s, target_s = latency["p95_s"], latency.get("target_s")
    shown = f"{value_s * 1000:.0f} ms" if value_s < 0.9995 else f"{value_s:.1f} s"
    return Text(shown, "" if target_s is None else "red" if value_s > target_s else "green")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _long(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7000 else f"{seconds / 3600:.0f} h"
