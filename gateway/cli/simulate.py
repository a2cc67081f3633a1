"""`slo-gateway simulate`: the live decision core against baselines, on made-up time."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

PLAIN_COLUMNS = 130
RANKS = ("instant", "conversational", "interactive", "deferred", "batch")
PERCENTILES = (("ttft_s", "p50"), ("ttft_s", "p95"), ("tpot_s", "p95"), ("e2e_s", "p50"), ("e2e_s", "p95"), ("queue_s", "p95"))

if TYPE_CHECKING:
    from rich.table import Table

    from gateway.simulate.suite import Suite


@click.command()
@click.argument("suite", default="quick")
@click.option("--fleet", default="", help="One run: a fleet such as '3xH100 + 4xA10:w4', or a gateway.yaml with its pools and promises.")
@click.option("--policy", "policies", multiple=True, help="One run: a policy's name or file; may be given again. In a suite: only these.")
@click.option("--rate", type=click.FloatRange(0.01, 100000), help="One run: requests a second.")
@click.option("--trace", default="", help="One run: azure, azure_code, azure_conv, mooncake, or a file (the gateway's request log too).")
@click.option("--predictor", type=click.Choice(["learning", "exact", "none"]), default="learning", show_default=True)
@click.option("--limit", type=click.IntRange(1, 4096), help="One run: the in-flight limit of every instance; the tiers' own when left out.")
@click.option("--span", default="120s", show_default=True, help="One run: simulated time of arrivals.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Processes.")
@click.option("--picture", type=click.Path(dir_okay=False), help="Goodput against offered rate, as SVG or PNG (needs matplotlib).")
@click.option("--json", "as_json", is_flag=True, help="One object per (fleet, workload, policy).")
def command(
    suite: str,
    fleet: str,
    policies: tuple[str, ...],
    rate: float | None,
    trace: str,
    predictor: str,
    limit: int | None,
    span: str,
    seed: int,
    workers: int,
    picture: str | None,
    as_json: bool,
) -> None:
    """Run the live decision core over simulated engines: which rate each policy sustains, and what overload does to it.

    \b
    slo-gateway simulate quick                      a suite of loadtests/suites: knees and overload curves
    slo-gateway simulate full --picture knees.svg
    slo-gateway simulate --fleet '2xH100 + 4xA10:w4' --policy best_value --policy edf --rate 4
    slo-gateway simulate --fleet gateway.yaml --trace requests.jsonl       what if: your own pools under your own traffic
    """
    from gateway.simulate.knee import RunFailed

    began_s = time.monotonic()
    try:
        if fleet:
            results = _one_run(fleet, policies or ("best_value",), rate or 3.0, trace, predictor, limit, span, seed)
        else:
            results = _suite(suite, policies, workers, as_json)
    except (ValueError, FileNotFoundError) as error:
        raise click.UsageError(str(error)) from None
    except RunFailed as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    if picture:
        _draw(results, picture)
    if as_json:
        for result in results:
            click.echo(json.dumps(result))
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_COLUMNS)
    for table in (*_tables(results), *(_classes(result) for result in results if fleet)):
        console.print(table)
    console.print(f"{time.monotonic() - began_s:.0f} s")


def _one_run(
    fleet: str, policies: tuple[str, ...], rate: float, trace: str, predictor: str, limit: int | None, span: str, seed: int
) -> list[dict[str, Any]]:
    from gateway.config.quantities import parse_duration
    from gateway.simulate.knee import Point, measured
    from gateway.simulate.workload import Workload

    span_s = parse_duration(span)
    workload = Workload(name=trace or "nominal", trace=trace)
    results = []
    for policy in policies:
        point = Point(fleet, workload, policy, predictor, limit, rate, seed, span_s, min(20.0, span_s / 5))
        scored = measured(point)
        told = {"case": f"{fleet}, {workload.name}", "fleet": fleet, "workload": workload.name, "policy": Path(policy).stem, "limit": limit}
        told |= {"rate_90": None, "rate_95": None, "goodput_per_usd": scored["goodput_per_usd"]}
        told["goodput_per_gpu_hour"] = scored["goodput_per_gpu_hour"]
        results.append(told | {"overload": [scored | {"x": 1.0}]})
    return results


def _suite(name: str, policies: tuple[str, ...], workers: int, as_json: bool) -> list[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from gateway.simulate.knee import run_suite
    from gateway.simulate.knee import workers as pool_of
    from gateway.simulate.suite import load_suite

    suite: Suite = load_suite(name)
    if policies:
        kept = tuple(entry for entry in suite.entries() if entry.title in policies or entry.policy in policies)
        if not kept:
            raise ValueError(f"the suite has none of {', '.join(policies)}; it has {', '.join(e.title for e in suite.entries())}")
        suite = replace(suite, policies=kept)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=as_json) as bar:
        task = bar.add_task(suite.title or name, total=None)

        def progress(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of)

        with pool_of(workers) as pool:
            return run_suite(suite, pool, progress)


def _tables(results: list[dict[str, Any]]) -> list[Any]:
    tables = []
    for case in dict.fromkeys(result["case"] for result in results):
        rows = [result for result in results if result["case"] == case]
        rows.sort(key=lambda r: -(r["rate_90"] if r["rate_90"] is not None else r["overload"][0]["attained_ratio"]))
        table = _table(case)
        table.add_column("policy")
        table.add_column("limit", justify="right")
        searched = rows[0]["rate_90"] is not None
        if searched:
            for name in ("rate at 90 %", "rate at 95 %", "per $", "per GPU-h"):
                table.add_column(name, justify="right")
        for point in rows[0]["overload"]:
            table.add_column(f"{point['x']:g}x" if searched else "attained", justify="right")
        if not searched:
            for name in ("goodput/s", "per $", "per GPU-h", "refused", "wasted", "Jain", "TTFT p95", "E2E p95"):
                table.add_column(name, justify="right")
        for row in rows:
            cells = [row["policy"], str(row["limit"] or "tiers")]
            if searched:
                cells += [f"{row['rate_90']:.2f} ±{row.get('rate_90_ci', 0):.2f}", f"{row['rate_95']:.2f}", f"{row['goodput_per_usd']:.0f}"]
                cells += [f"{row['goodput_per_gpu_hour']:.0f}"]
            cells += [f"{point['attained_ratio']:.0%}" for point in row["overload"]]
            if not searched:
                point = row["overload"][0]
                ttft, e2e = point["ttft_s"] or {}, point["e2e_s"] or {}
                cells += [f"{point['goodput_per_s']:.2f}", f"{point['goodput_per_usd']:.0f}", f"{point['goodput_per_gpu_hour']:.0f}"]
                cells += [f"{point['refused_ratio']:.1%}", f"{point['wasted_tokens_ratio']:.0%}", f"{point['jain_index']:.3f}"]
                cells += [f"{ttft.get('p95', 0):.2f} s", f"{e2e.get('p95', 0):.1f} s"]
            table.add_row(*cells)
        tables.append(table)
    return tables


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def _classes(result: dict[str, Any]) -> Any:
    """What each class got in a single run."""
    table = _table(f"{result['policy']}, by class")
    table.add_column("class")
    for name in ("offered", "attained", "refused", "TTFT p50", "p95", "a token", "E2E p50", "p95", "waited"):
        table.add_column(name, justify="right")
    point = result["overload"][0]
    for name, part in sorted(point["by_class"].items(), key=lambda item: RANKS.index(item[0]) if item[0] in RANKS else len(RANKS)):
        times = [(part[key] or {}).get(share) for key, share in PERCENTILES]
        shown = ["-" if time is None else f"{time * 1000:.0f} ms" if time < 1 else f"{time:.1f} s" for time in times]
        table.add_row(name, str(part["offered"]), f"{part['attained_ratio']:.0%}", f"{part['refused_ratio']:.0%}", *shown)
    return table


def _draw(results: list[dict[str, Any]], path: str) -> None:
    from gateway.simulate.picture import draw

    try:
        draw(results, path)
    except ImportError:
        raise click.UsageError("--picture needs matplotlib: pip install 'slo-gateway[plot]'") from None
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--picture {path}: {error}") from None
    click.echo(f"drawn: {path}", err=True)
