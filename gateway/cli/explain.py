"""`slo-gateway explain`: why a request went as it did."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from gateway.cli.admin_client import URL, ask

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

PLAIN_COLUMNS = 110
WIDE_COLUMNS = 108
INDENT = 11
MISSES = re.compile("ttft|itl|e2e")
REASONS = {
    "queue_full": "too many wait already",
    "queue_bytes": "what waits already is too big",
    "cannot_meet_slo": "no instance could have kept the promise",
    "expired": "it waited longer than its class may",
    "quota": "its key's quota was used up",
    "overloaded": "the gateway protected itself",
    "no_capacity": "nothing serves this model now",
    "draining": "the gateway was going away",
    "connect": "it could not be reached",
    "closed_early": "it went away before the first token",
    "cut": "it went away in mid-answer",
    "first_token_timeout": "no first token came in time",
    "stalled": "tokens stopped coming",
    "deadline": "the whole answer took too long",
    "engine_error": "it answered with an error",
    "malformed": "what it sent could not be read",
    "slow_reader": "the client did not read what it had asked for",
    "internal": "the gateway itself failed",
}


@click.command()
@click.argument("request_id")
@click.option("--url", default=URL, show_default=True, help="The admin port of the gateway that served it.")
@click.option("--key", default="", envvar="SLO_GATEWAY_ADMIN_KEY", show_envvar=True, help="The admin key.")
@click.option("--json", "as_json", is_flag=True, help="As the admin API tells it.")
def command(request_id: str, url: str, key: str, as_json: bool) -> None:
    """Why a request was placed, held back or refused as it was, and what it got. Its id is in the answer's x-request-id; only the latest
    requests are remembered.

    \b
    slo-gateway explain 9b7fea954f6a00000001
    slo-gateway explain 9b7fea954f6a00000001 --json | jq '.steps[] | select(.what == "started").candidates'
    """
    told = ask(url, f"/admin/requests/{quote(request_id, safe='')}", key)
    if as_json:
        click.echo(json.dumps(told))
        return
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_COLUMNS)
    show(console, told)


def show(console: Console, told: dict[str, Any]) -> None:
    """As a person would tell it."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    targets = told["targets"]
    console.print(Text.assemble((told["request_id"], "bold"), f"  {told['model']}, tenant {told['tenant']}"))
    sure = f", {told['confidence']:.0%} sure" if told["confidence"] < 1 else ""
    console.print(Text(f"  Taken for {_words(told['use_case'])} ({told['experience_class']}) because of: {told['why']}{sure}."))
    if told.get("degraded_from"):
        console.print(Text(f"  It asked for {told['degraded_from']} and accepted a looser class.", "yellow"))
    allowed = f" (at most {told['max_output_tokens']})" if told["max_output_tokens"] else ""
    console.print(Text(f"  {told['prompt_tokens']} prompt tokens; {told['expected_output_tokens']} output tokens expected{allowed}."))
    if told["stream"]:
        promised = f"first token in {_time(targets['ttft_s'])}, {_time(targets['itl_s'])} a token, the end in {_time(targets['e2e_s'])}"
    else:
        promised = f"the end in {_time(targets['e2e_s'])}; it does not stream, so nobody sees when its first token comes"
    console.print(Text(f"  Promised: {promised}."))
    for step in told["steps"]:
        style = {"refused": "red", "failed": "red", "late": "yellow", "degraded": "yellow"}.get(step["what"], "")
        if step["what"] == "finished":
            style = "" if step["got"]["result"] == "completed" else "red"
        rows = Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(width=INDENT - 2, justify="right", no_wrap=True)
        rows.add_row(Text(_time(step["after_s"]), "dim"), Text(_step(step), style))
        console.print(rows)
        if step.get("candidates"):
            console.print(Padding(_candidates(step["candidates"], console.width), (0, 0, 0, INDENT - 2)))
            for one in step["candidates"]:
                if one.get("kept"):
                    console.print(Padding(Text(_kept(one), "dim"), (0, 0, 0, INDENT)))
        if step["what"] == "finished" and step["got"]["result"] == "completed":
            console.print(_verdict(step["got"], targets, told["stream"]))


def _step(step: dict[str, Any]) -> str:
    what, reason = step["what"], REASONS.get(step.get("reason", ""), step.get("reason", ""))
    match what:
        case "started":
            return f"sent to {step['instance_id']}, out of:" if step.get("candidates") else f"sent to {step['instance_id']}"
        case "weighed":
            return _weighed(step)
        case "queued":
            return "so it waits in line"
        case "leasing":
            return f"{reason} is the place for it, once a slot there is leased: others hold the rest"
        case "late":
            return "late: even an idle instance would miss the promise now, so it goes behind what can still be saved"
        case "refused":
            return f"refused: {reason}; it was told to come back in {_time(step['retry_after_s'])}"
        case "failed":
            return f"failed at {step['instance_id']}: {reason}"
        case "degraded":
            return f"so it goes on as {step['reason']}, rather than being refused"
        case "gone":
            return "its client left"
        case "finished":
            return _got(step["got"], reason)
    return str(what)


def _weighed(step: dict[str, Any]) -> str:
    """Why it could not start at once, and what waiting would have meant."""
    ahead, slot_s, patience_s = step["ahead"], step["slot_expected_in_s"], step["can_wait_s"]
    if step.get("candidates"):
        why = "none of the open instances would do (below)"
        if any(not one["would_miss"] for one in step["candidates"]):
            why += ": where it would keep its promise it would take more from others than it is worth"
    elif ahead:
        why = f"{ahead} {'waits' if ahead == 1 else 'wait'} before it"
    else:
        why = "every instance that its class may use is full"
    could = f"it can wait {_time(patience_s)}" if patience_s > 0 else "it cannot wait at all"
    return f"{why}; a slot is expected in {_time(slot_s)}, and {could}"


def _kept(one: dict[str, Any]) -> str:
    """What was asked of it where a class that is worth more streams, and what would have been without that."""
    kept, takes = one["kept"], _time(one["work_s"])
    asks_per_s, residents_per_s, turned_away = kept["asks_per_s"], kept["residents_per_s"], kept["turned_away"]
    told = f"{one['instance_id']} is kept for a class that is worth more"
    if asks_per_s > residents_per_s:
        told += f": a second of its time counts for {asks_per_s:.2f} kept promises there instead of {residents_per_s:.2f}"
        told += f", and this request takes {takes} of it"
    return f"{told}; who comes while its prompt is read counts for {turned_away:.2f} more" if turned_away >= 0.005 else told


def _verdict(got: dict[str, Any], targets: dict[str, float], stream: bool) -> Text:
    """Did it keep what was promised?"""
    from rich.text import Text

    pairs = [("the end", "e2e_s", "e2e_s")]
    if stream:
        pairs = [("first token", "ttft_s", "ttft_s"), ("time a token", "tpot_s", "itl_s"), *pairs]
    missed = [
        f"{name} {_time(got[have] - targets[due])} too late" if have != "tpot_s" else f"{name} {_time(got[have] - targets[due])} too long"
        for name, have, due in pairs
        if have in got and got[have] > targets[due]
    ]
    words, style = (f"promise missed: {', '.join(missed)}", "red") if missed else ("promise kept", "green")
    return Text(" " * INDENT + words, style)


def _got(got: dict[str, Any], reason: str) -> str:
    figures = []
    if "ttft_s" in got:
        figures.append(f"first token in {_time(got['ttft_s'])}")
    if "tpot_s" in got:
        figures.append(f"{_time(got['tpot_s'])} a token")
    if "e2e_s" in got:
        figures.append(f"the end in {_time(got['e2e_s'])}")
    if got["output_tokens"]:
        figures.append(f"{got['output_tokens']} tokens")
    got_it = f": {', '.join(figures)}" if figures else ""
    return f"complete{got_it}" if got["result"] == "completed" else f"ended as {got['result']} ({reason or got['status']}){got_it}"


def _candidates(candidates: list[dict[str, Any]], columns: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("  instance", no_wrap=True)
    wide = columns >= WIDE_COLUMNS
    if wide:
        made.add_column("tier", no_wrap=True)
        made.add_column("$/h", justify="right", no_wrap=True)
    for name in ("in flight", "first token", "a token", "the end"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("would miss", no_wrap=True)
    for one in candidates:
        predicted = one["predicted"]
        made.add_row(
            Text(f"{'>' if one['chosen'] else ' '} {one['instance_id']}"),
            *((one["tier"], f"{one['usd_per_hour']:.2f}") if wide else ()),
            str(one["in_flight"]),
            *(_time(predicted[name]) for name in ("ttft_s", "itl_s", "e2e_s")),
            Text(MISSES.sub(lambda word: word[0].upper(), one["would_miss"]), "red"),
            style="bold" if one["chosen"] else "",
        )
    return made


def _words(name: str) -> str:
    return name.replace("_", " ")


def _time(seconds: float) -> str:
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"
