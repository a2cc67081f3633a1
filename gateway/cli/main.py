"""The command line: one verb a file in this folder, found by name and imported only when it is asked for, so that --help stays quick."""

from __future__ import annotations

import importlib
import os

import click

import gateway

# verb -> one line of help. The verb's module is gateway.cli.<verb> (dashes as underscores) and offers `command`.
VERBS: dict[str, str] = {
    "serve": "Run the gateway.",
    "check": "Validate a configuration and warn of promises that cannot hold.",
    "config": "What a configuration may say: JSON Schema, or a page.",
    "init": "Write a commented configuration from what engines say of themselves.",
    "demo": "Three simulated GPU pools, the gateway, and real traffic, live in this terminal.",
    "engine": "A simulated OpenAI engine that takes the time a GPU would.",
    "load": "Open-loop load against any OpenAI-compatible URL; attainment over offered.",
    "simulate": "The live decision core against baselines, on made-up time.",
    "classify": "What the gateway would take a request for, and why.",
    "train": "Fit a classifier to labelled requests, or to a site's own log.",
    "explain": "Why a request was placed, held back or refused as it was.",
    "slo": "Attainment, percentiles and goodput per class, for the whole fleet.",
    "keys": "Make an API key and its line for the configuration.",
}


class Verbs(click.Group):
    """A group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"gateway.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], VERBS, n=1)
            ctx.fail(f"No such command '{args[0]}'" + (f"; did you mean '{near[0]}'?" if near else "."))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(gateway.__version__, prog_name="slo-gateway")
def main() -> None:
    """The LLM serving gateway that keeps its promises.

    \b
    Try it:           slo-gateway demo
    Run it:           slo-gateway serve --model M --pool premium:H100=http://a:8000
    With a file:      slo-gateway check config/gateway.yaml && slo-gateway serve config/gateway.yaml
    """
    if os.environ.get("NO_COLOR"):
        click.get_current_context().color = False
