"""`slo-gateway demo`: three simulated GPU pools, the gateway before them, and real traffic, live in this terminal."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from gateway.load.report import Report

MODEL = "llama-8b"
# pool, tier, GPU, configuration, instances: a small mixed fleet, its cheap cards most of it.
POOLS = (("premium", "H100", "", 2), ("balanced", "L40S", "w8", 2), ("cost", "A10", "w4", 2))
START_S = 60.0  # for seven processes, on a machine that has other things to do
DRAIN_S = 15.0  # for answers still on their way; those given up then are no fault of the gateway's, and counted apart
UNREACHABLE, INTERRUPTED = 3, 130


@click.command()
@click.option("--for", "for_", default="60s", show_default=True, help="How long to send requests.")
@click.option("--rate", type=click.FloatRange(0.1, 100), default=4.0, show_default=True, help="Requests a second.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="The gateway's; another is taken if it is in use."
)
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object.")
def command(for_: str, rate: float, port: int, as_json: bool) -> None:
    """Three simulated GPU pools, the gateway, and real traffic: arrivals and lengths of the Azure 2023 traces, worded by labelled requests.

    \b
    slo-gateway demo                 a minute, live
    slo-gateway demo --for 20s       shorter
    Ctrl-C ends it with a summary; nothing is left behind.
    """
    from gateway.config.quantities import parse_duration

    try:
        for_s = parse_duration(for_)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--for") from None
    from rich.console import Console

    console = Console(stderr=as_json)
    with tempfile.TemporaryDirectory(prefix="slo-gateway-demo-") as folder:
        children: list[subprocess.Popen[bytes]] = []
        # A terminal that is closed hangs up: that is an end like any other.
        previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
        try:
            with console.status("starting six simulated engines and the gateway"):
                addresses = _engines(children, Path(folder))
                address, admin = _gateway(children, Path(folder), addresses, port)
            status = _drive(console, address, admin, rate, for_s, as_json)
        except KeyboardInterrupt:
            status = INTERRUPTED
        except RuntimeError as error:
            click.echo(str(error), err=True)
            status = UNREACHABLE
        finally:
            _stop(children)
            for number, handler in previous.items():
                signal.signal(number, handler)
    sys.exit(status)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


# Loaded before any fork: a child must not import.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """In a child: end when the demo is killed and cannot clean up."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _child(children: list[subprocess.Popen[bytes]], log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        child = subprocess.Popen(  # noqa: S603  (our own command line)
            [sys.executable, "-m", "gateway", *arguments],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    children.append(child)
    return child


def _said(child: subprocess.Popen[bytes], log: Path, what: str) -> str:
    """The line of a child's log that holds `what`."""
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        for line in log.read_text(errors="replace").splitlines():
            if what in line:
                return line
        if child.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"a part of the demo did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _engines(children: list[subprocess.Popen[bytes]], folder: Path) -> dict[str, list[str]]:
    started = []
    for pool, gpu, config, count in POOLS:
        for index in range(count):
            log = folder / f"{pool}-{index}.log"
            arguments = ["engine", "--gpu", gpu, "--model", MODEL, "--port", "0", "--seed", str(index)]
            if config:
                arguments += ["--engine-config", config]
            started.append((pool, _child(children, log, *arguments), log))
    addresses: dict[str, list[str]] = {}
    for pool, child, log in started:
        line = _said(child, log, "serving")
        addresses.setdefault(pool, []).append(line.rpartition(" on ")[2])
    return addresses


def _gateway(children: list[subprocess.Popen[bytes]], folder: Path, addresses: dict[str, list[str]], port: int) -> tuple[str, str]:
    pools = {
        pool: {"tier": pool, "gpu": gpu, "engine_config": config, "model": MODEL, "engine": "vllm", "instances": addresses[pool]}
        for pool, gpu, config, _ in POOLS
    }
    file, log = folder / "gateway.yaml", folder / "gateway.log"
    for at in (port, 0):
        settings: dict[str, Any] = {
            "listen": {"port": at},
            "admin": {"port": 0},
            "models": [{"name": MODEL}],
            "pools": pools,
            "timeouts": {"drain": "2s", "drain_grace": "0s"},
        }
        file.write_text(json.dumps(settings))
        child = _child(children, log, "serve", str(file))
        try:
            line = _said(child, log, "ready:")
        except RuntimeError:
            if at == 0:
                raise
            continue
        words = line.split()
        public = next(word for word in words if word.startswith("http"))
        return public.removesuffix("/v1"), words[-1].removesuffix("/admin/")
    raise RuntimeError("the gateway did not start")


def _drive(console: Console, address: str, admin: str, rate: float, for_s: float, as_json: bool) -> int:
    from gateway.config.load import shipped_catalog
    from gateway.load.bodies import Lengths, shot
    from gateway.load.client import Gun
    from gateway.load.report import Report
    from gateway.simulate.workload import Workload, jobs

    catalog = shipped_catalog()
    made = jobs(Workload(name="demo", trace="azure"), catalog, rate / 2, for_s, 1) + jobs(
        Workload(name="demo-mix"), catalog, rate / 2, for_s, 2
    )
    made.sort(key=lambda job: job.at_s)
    chance = Random(0)  # noqa: S311
    shots = [shot(job, MODEL, True, chance, Lengths.HIDDEN) for job in made]
    usd_per_hour = _usd_per_hour()
    report = Report(catalog, usd_per_hour)
    begin_s = time.monotonic()

    async def run() -> None:
        gun = Gun(address, report.add, tagged=True)
        firing = asyncio.ensure_future(gun.fire(shots, for_s, drain_s=DRAIN_S))
        if console.is_terminal:
            from rich.live import Live

            with Live(console=console, refresh_per_second=2, transient=True) as live:
                while not firing.done():
                    await asyncio.wait([firing], timeout=0.5)
                    passed_s = time.monotonic() - begin_s
                    if passed_s < for_s:
                        title = f"{passed_s:.0f} of {for_s:.0f} s, {gun.in_flight} in flight"
                    else:
                        title = f"all is sent; {gun.in_flight} answers are still on their way, Ctrl-C does not wait for them"
                    caption = f"${sum(usd_per_hour.values()):.2f} an hour"
                    live.update(report.table(min(passed_s, for_s), title, caption=caption, width=console.width))
        await firing

    interrupted = False
    try:
        console.print(f"gateway   [bold]{address}/v1[/]   model [bold]{MODEL}[/]", highlight=False)
        console.print(f"its page  [bold]{admin}/admin/[/]", highlight=False)
        console.print("try it yourself, while it runs:", highlight=False)
        console.print(_curl(address), markup=False, highlight=False, soft_wrap=True)
        asyncio.run(run())
    except (KeyboardInterrupt, asyncio.CancelledError):
        # An interrupt that comes before the first step of `run` is told as a cancellation.
        interrupted = True
    span_s = min(time.monotonic() - begin_s, for_s)
    _summary(console, report, span_s, as_json)
    return INTERRUPTED if interrupted else 0


def _usd_per_hour() -> dict[str, float]:
    """What each pool would cost at list prices."""
    from gateway.config.gpus import shipped_gpus

    found = [(pool, shipped_gpus().find(name), count) for pool, name, _, count in POOLS]
    return {pool: gpu.usd_per_hour * count for pool, gpu, count in found if gpu is not None}


def _summary(console: Console, report: Report, span_s: float, as_json: bool) -> None:
    usd_per_hour = sum(_usd_per_hour().values())
    rows = report.rows(span_s)
    if as_json:
        click.echo(json.dumps({"span_s": span_s, "usd_per_hour": usd_per_hour, "rows": rows}))
        return
    console.print(report.table(span_s, "What users got", width=console.width))
    whole = rows[-1]
    if whole["offered"]:
        per_usd = whole["goodput_per_s"] * 3600 / usd_per_hour if usd_per_hour else 0.0
        failed = sum(whole["failed"].values())
        console.print(
            f"{whole['attained']} of {whole['offered']} kept their promise ({whole['attained_ratio']:.1%}), {whole['refused']} refused, "
            f"{failed} failed" + (f", {whole['unfinished']} not waited for." if whole["unfinished"] else "."),
            soft_wrap=True,
        )
        console.print(f"The fleet costs ${usd_per_hour:.2f} an hour: {per_usd:.0f} kept promises a dollar.")


def _curl(address: str) -> str:
    body = json.dumps({"model": MODEL, "stream": True, "max_tokens": 30, "messages": [{"role": "user", "content": "Say hello."}]})
    return f"  curl -N {address}/v1/chat/completions -H 'x-slo-use-case: chatbot' -d '{body}'\n"


def _stop(children: list[subprocess.Popen[bytes]]) -> None:
    """The gateway first, then the engines; each in a session of its own, so that a Ctrl-C reaches only us."""
    for child in reversed(children):
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
    end_s = time.monotonic() + 5.0
    for child in children:
        try:
            child.wait(max(end_s - time.monotonic(), 0.05))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
