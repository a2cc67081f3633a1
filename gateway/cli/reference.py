"""docs/cli.md, made from the commands themselves. A test holds the page equal to the code."""

from __future__ import annotations

import importlib

import click

from gateway.cli.main import VERBS

_HEAD = """# Commands

`slo-gateway COMMAND --help` says the same in the terminal. Exit status: 0 well, 1 a check failed, 2 wrong usage, 3 nobody answers, 78 a
wrong configuration, 130 interrupted.
"""


def reference() -> str:
    """The whole page."""
    parts = [_HEAD]
    for verb, about in VERBS.items():
        command: click.Command = importlib.import_module(f"gateway.cli.{verb.replace('-', '_')}").command
        parts.append(f"## slo-gateway {verb}\n\n{about}\n")
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                parts.append(f"### slo-gateway {verb} {name}\n\n{_about(inner)}\n\n{_options(inner)}")
        else:
            parts.append(_options(command))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _about(command: click.Command) -> str:
    return (command.help or "").split("\n\n")[0].replace("\n", " ").strip()


def _options(command: click.Command) -> str:
    rows = ["| | |", "|---|---|"]
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            name = (parameter.name or "").upper()
            rows.append(f"| `{name}` | {'needed' if parameter.required else 'may be left out'} |")
        elif isinstance(parameter, click.Option):
            written = ", ".join([*parameter.opts, *parameter.secondary_opts])
            default = parameter.default
            shown = f" Default: `{default}`." if parameter.show_default and default not in (None, "", (), False) else ""
            rows.append(f"| `{written}` | {(parameter.help or '').replace('|', chr(92) + '|')}{shown} |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else ""
