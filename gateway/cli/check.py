"""`slo-gateway check`: validate a configuration."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gateway.config.loaded import Finding


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="One JSON object: ok, errors, warnings.")
@click.option("--strict", is_flag=True, help="Warnings fail too.")
def command(file: str | None, as_json: bool, strict: bool) -> None:
    """Validate a configuration and warn of promises that cannot hold. Exit 0 when it is right, 1 when it is not.

    \b
    slo-gateway check config/gateway.yaml
    """
    from gateway.config.check import warnings
    from gateway.config.load import load
    from gateway.config.loaded import ConfigError

    errors: list[Finding] = []
    warned: list[Finding] = []
    digest = ""
    try:
        loaded = load(file)
        warned = warnings(loaded)
        digest = loaded.digest
    except ConfigError as error:
        errors = error.findings
    ok = not errors and not (strict and warned)
    if as_json:
        click.echo(json.dumps({"ok": ok, "digest": digest, "errors": list(map(_told, errors)), "warnings": list(map(_told, warned))}))
    else:
        for finding in errors:
            click.echo(f"{click.style('error', fg='red')}: {finding}")
        for finding in warned:
            click.echo(f"{click.style('warning', fg='yellow')}: {finding}")
        if errors:
            click.echo(f"{len(errors)} error{'s' if len(errors) > 1 else ''}")
        else:
            settings = loaded.settings
            instances = sum(len(pool.instances) for pool in settings.pools.values())
            what = f"{len(settings.models)} models, {len(settings.pools)} pools, {instances} instances, mode {settings.mode.value}"
            click.echo(f"{click.style('ok', fg='green')}: {loaded.path}: {what}, {len(warned)} warnings, digest {digest}")
    sys.exit(0 if ok else 1)


def _told(finding: Finding) -> dict[str, object]:
    place = finding.place
    return {
        "file": finding.file,
        "line": place.line if place else None,
        "column": place.column if place else None,
        "path": finding.path,
        "message": finding.message,
        "nearest": finding.nearest or None,
    }
