"""`slo-gateway load`: open-loop load against any OpenAI-compatible URL."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from random import Random

import click


@click.command()
@click.argument("url")
@click.option("--model", required=True, help="What to ask for.")
@click.option("--rate", type=click.FloatRange(0.01, 10000), default=5.0, show_default=True, help="Requests a second, whatever comes back.")
@click.option("--for", "for_", default="30s", show_default=True, help="How long to send.")
@click.option("--trace", default="", help="Replay azure_code, azure_conv, azure, mooncake, or a file (a request log too).")
@click.option("--mix", default="", metavar="NAME=WEIGHT,...", help="Use cases and their weights, when no trace is given.")
@click.option("--key", default="", envvar="OPENAI_API_KEY", help="API key to send.", show_envvar=True)
@click.option("--tagged/--untagged", default=True, show_default=True, help="Say the use case in a header, or let the gateway find out.")
@click.option("--stream/--no-stream", default=True, show_default=True)
@click.option("--lengths", is_flag=True, help="Tell simulated engines how long each answer is to be.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(
    url: str,
    model: str,
    rate: float,
    for_: str,
    trace: str,
    mix: str,
    key: str,
    tagged: bool,
    stream: bool,
    lengths: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Open-loop load: requests are sent at their times, never held back by slow answers; attainment is over all that were sent.

    \b
    slo-gateway load http://127.0.0.1:8080 --model llama-8b --rate 8 --for 60s
    slo-gateway load http://127.0.0.1:8080 --model llama-8b --trace azure --rate 5 --json
    """
    from rich.console import Console

    from gateway.config.load import shipped_catalog
    from gateway.config.quantities import parse_duration
    from gateway.load.bodies import shot
    from gateway.load.client import Gun
    from gateway.load.report import Report
    from gateway.simulate.workload import Workload, jobs

    catalog = shipped_catalog()
    try:
        for_s = parse_duration(for_)
        weights = {name: float(weight or 1) for name, _, weight in (part.partition("=") for part in mix.split(",") if part)} or None
        for name in weights or ():
            if name not in catalog.use_cases:
                raise ValueError(f"no use case {name!r}; there are {', '.join(catalog.use_cases)}")
        made = jobs(Workload(name="load", mix=weights, trace=trace), catalog, rate, for_s, seed)
    except (ValueError, FileNotFoundError) as error:
        raise click.UsageError(str(error)) from None
    chance = Random(seed)  # noqa: S311
    shots = [shot(job, model, stream, chance) for job in made]
    report = Report(catalog)
    console = Console(stderr=True)

    async def run() -> float:
        gun = Gun(url, report.add, key=key, tagged=tagged, lengths=lengths)
        begin_s = time.monotonic()
        firing = asyncio.ensure_future(gun.fire(shots, for_s))
        if console.is_terminal and not as_json:
            from rich.live import Live

            with Live(console=console, refresh_per_second=2, transient=True) as live:
                while not firing.done():
                    await asyncio.wait([firing], timeout=0.5)
                    span_s = time.monotonic() - begin_s
                    live.update(report.table(span_s, f"{span_s:.0f} s, {gun.in_flight} in flight"))
        await firing
        return time.monotonic() - begin_s

    try:
        import uvloop

        span_s = uvloop.run(run())
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except KeyboardInterrupt:
        span_s = for_s
    rows = report.rows(for_s)
    if as_json:
        click.echo(json.dumps({"url": url, "rate_per_s": rate, "span_s": span_s, "rows": rows}))
    else:
        Console().print(report.table(for_s, f"{url}, {rate:g} requests a second for {for_}"))
    if rows[-1]["offered"] and all(r.status == 0 for results in report.results.values() for r in results):
        click.echo(f"nothing answered at {url}", err=True)
        sys.exit(3)
