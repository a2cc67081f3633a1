"""`slo-gateway load`: open-loop load against any OpenAI-compatible URL."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from random import Random

import click

MISSED, UNREACHABLE, INTERRUPTED = 1, 3, 130


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
@click.option(
    "--lengths",
    type=click.Choice(["exact", "hidden", "free"]),
    default="exact",
    show_default=True,
    help="How the engine learns an answer's length: max_tokens, a field that only simulated engines read, or not at all.",
)
@click.option("--fail-under", type=click.FloatRange(0, 1), default=0.0, help="Exit with 1 when less is attained of what was offered.")
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
    lengths: str,
    fail_under: float,
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
    from gateway.load.bodies import Lengths, shot
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
    shots = [shot(job, model, stream, chance, Lengths(lengths)) for job in made]
    report = Report(catalog)
    console = Console(stderr=True)

    async def run() -> None:
        gun = Gun(url, report.add, key=key, tagged=tagged)
        begin_s = time.monotonic()
        firing = asyncio.ensure_future(gun.fire(shots, for_s))
        if console.is_terminal and not as_json:
            from rich.live import Live

            with Live(console=console, refresh_per_second=2, transient=True) as live:
                while not firing.done():
                    await asyncio.wait([firing], timeout=0.5)
                    span_s = time.monotonic() - begin_s
                    live.update(report.table(span_s, f"{span_s:.0f} s, {gun.in_flight} in flight", width=console.width))
        await firing

    begin_s = time.monotonic()
    interrupted = False
    try:
        import uvloop

        uvloop.run(run())
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except KeyboardInterrupt:
        interrupted = True
    span_s = min(time.monotonic() - begin_s, for_s)
    whole = report.all
    if as_json:
        click.echo(json.dumps({"url": url, "rate_per_s": rate, "span_s": span_s, "rows": report.rows(span_s)}))
    else:
        out = Console()
        out.print(report.table(span_s, f"{url}, {span_s:.0f} s", width=out.width))
        ratio = whole.attained / whole.offered if whole.offered else 0.0
        click.echo(f"{whole.attained} of {whole.offered} kept their promise ({ratio:.1%}): {whole.attained / span_s:.2f} a second.")
        if whole.unfinished:
            click.echo(f"  {whole.unfinished} were not waited for and are not counted: they could still have been kept", err=True)
        for why, count in whole.failed.most_common(5):
            click.echo(f"  {count} failed: {why}", err=True)
    if interrupted:
        sys.exit(INTERRUPTED)
    if whole.offered and all(why.startswith("connect:") for why in whole.failed) and sum(whole.failed.values()) == whole.offered:
        click.echo(f"nothing answers at {url}", err=True)
        sys.exit(UNREACHABLE)
    if whole.attained < fail_under * whole.offered:
        sys.exit(MISSED)
