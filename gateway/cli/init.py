"""`slo-gateway init`: a commented configuration from what engines say of themselves."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gateway.engines.discovery import Found

_HEAD = """# Made by `slo-gateway init`. Look at every line marked `?`, then: slo-gateway check {file} && slo-gateway serve {file}
# Durations and sizes carry their unit: 150ms, 8MiB. Secrets are ${{ENVIRONMENT_VARIABLES}} or file:PATH. Every key: docs/config.md

# `observe` classifies, places and measures every request but never holds one back or refuses it. Start so; then say `enforce`.
mode: observe

listen: {{host: 127.0.0.1, port: 8080}}   # 0.0.0.0 for everybody; then configure keys (slo-gateway keys new ID)
admin: {{host: 127.0.0.1, port: 8081}}
"""


@click.command()
@click.option("--from", "urls", multiple=True, metavar="URL", help="An engine to ask; may be given again.")
@click.option("--out", type=click.Path(dir_okay=False), help="Where to write; the terminal when left out.")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
def command(urls: tuple[str, ...], out: str | None, force: bool) -> None:
    """A commented gateway.yaml from what engines say of themselves.

    \b
    slo-gateway init --from http://gpu1:8000 --from http://gpu2:8000 --out gateway.yaml
    """
    if not urls:
        from gateway.config.shipped import shipped

        text = shipped("gateway.yaml").read_text(encoding="utf-8")
        click.echo("no engines were named (--from URL): this is the example configuration", err=True)
    else:
        from gateway.engines.discovery import discover

        async def ask() -> list[Found]:
            return list(await asyncio.gather(*(discover(url) for url in urls)))

        found = asyncio.run(ask())
        for one in found:
            if one.problem:
                click.echo(f"{one.url}: {one.problem}", err=True)
        if not any(one.models for one in found):
            click.echo("no engine answered; nothing is written", err=True)
            sys.exit(3)
        text = rendered([one for one in found if one.models], out or "gateway.yaml")
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        with open(out, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        click.echo(f"{out} is there already; --force overwrites it", err=True)
        sys.exit(2)
    click.echo(f"written: {out}; next: slo-gateway check {out}", err=True)


def rendered(found: list[Found], file: str) -> str:
    """The YAML."""
    models: dict[str, list[Found]] = {}
    for one in found:
        models.setdefault(one.models[0], []).append(one)
    lines = [_HEAD.format(file=file), "models:"]
    for model in models:
        lines.append(f'  - name: "{model}"')
        lines.append("    # aliases: {copilot: {use_case: code_completion}}")
    lines.append("\n# One pool for each kind of GPU. tier: premium (A100, H100), balanced (L40S, A10G) or cost (A10, L4, T4).\npools:")
    for number, (model, group) in enumerate(models.items()):
        kinds: dict[str, list[Found]] = {}
        for one in group:
            kinds.setdefault(one.kind.value, []).append(one)
        for at, (kind, alike) in enumerate(kinds.items()):
            name = "pool" if len(models) == 1 and len(kinds) == 1 else f"pool{number + 1}{chr(97 + at)}"
            version = alike[0].version
            lines += [
                f"  {name}:",
                "    tier: balanced            # ? engines do not say what they run on",
                '    gpu: ""                   # ? H100, A100, L40S, A10G, A10, L4, T4: where predictions begin',
                f'    model: "{model}"',
                f"    engine: {kind}" + (f"              # version {version}" if version and version.isprintable() else ""),
                f"    instances: [{', '.join(one.url for one in alike)}]",
            ]
            if alike[0].kv_tokens:
                lines.append(f"    kv_tokens: {alike[0].kv_tokens}")
    return "\n".join(lines) + "\n"
