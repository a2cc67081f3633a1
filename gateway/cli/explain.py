"""`slo-gateway explain`: why a request went as it did."""

from __future__ import annotations

import json
from typing import Any

import click

from gateway.cli.admin_client import URL, ask


@click.command()
@click.argument("request_id")
@click.option("--url", default=URL, show_default=True, help="The admin port.")
@click.option("--key", default="", envvar="SLO_GATEWAY_ADMIN_KEY", show_envvar=True, help="The admin key.")
@click.option("--json", "as_json", is_flag=True, help="As the admin API tells it.")
def command(request_id: str, url: str, key: str, as_json: bool) -> None:
    """Why a request was placed, held back or refused as it was. Its id is in the answer's x-request-id.

    \b
    slo-gateway explain 9b7fea954f6a00000001
    """
    told = ask(url, f"/admin/requests/{request_id}", key)
    click.echo(json.dumps(told) if as_json else story(told))


def story(told: dict[str, Any]) -> str:
    """As a person would tell it."""
    targets = told["targets"]
    lines = [
        f"{told['request_id']}: {told['use_case']} ({told['experience_class']}), because of {told['why']}.",
        f"  {told['model']}, tenant {told['tenant']}, {told['prompt_tokens']} prompt tokens, {told['expected_output_tokens']} expected.",
        f"  Promised: first token in {_time(targets['ttft_s'])}, gaps of {_time(targets['itl_s'])}, all in {_time(targets['e2e_s'])}.",
    ]
    if told.get("degraded_from"):
        lines.append(f"  It asked for {told['degraded_from']} and accepted a looser class.")
    for step in told["steps"]:
        lines.append(f"  after {_time(step['after_s'])}: {_step(step)}")
        for candidate in step.get("candidates", ()):
            mark = "->" if candidate["chosen"] else "  "
            predicted = candidate["predicted"]
            why = f", would miss {candidate['would_miss']}" if candidate["would_miss"] else ""
            lines.append(
                f"      {mark} {candidate['instance_id']} ({candidate['tier']}, {candidate['in_flight']} in flight): first token in "
                f"{_time(predicted['ttft_s'])}, gaps of {_time(predicted['itl_s'])}, all in {_time(predicted['e2e_s'])}{why}"
            )
    return "\n".join(lines)


def _step(step: dict[str, Any]) -> str:
    what = step["what"]
    if what == "started":
        return f"sent to {step['instance_id']}"
    if what == "queued":
        return "no instance could keep the promise at once; it waits"
    if what == "late":
        return "not even an idle instance could keep the promise any more; behind all that can still be saved"
    if what == "refused":
        return f"refused: {step['reason']}, come back in {_time(step['retry_after_s'])}"
    if what == "failed":
        return f"{step['instance_id']} failed: {step['reason']}"
    if what == "degraded":
        return f"goes on as {step['reason']}"
    return "its client left" if what == "gone" else str(what)


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
