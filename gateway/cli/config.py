"""`slo-gateway config`: what a configuration may say."""

from __future__ import annotations

import json

import click


@click.group()
def command() -> None:
    """What gateway.yaml may say, for editors and for people."""


@command.command()
def schema() -> None:
    """JSON Schema of gateway.yaml.

    \b
    slo-gateway config schema > gateway.schema.json
    # yaml-language-server: $schema=gateway.schema.json      (first line of gateway.yaml: completion in editors)
    """
    from gateway.config.reference import schema as described

    click.echo(json.dumps(described(), indent=2))


@command.command()
def reference() -> None:
    """Every key with its default and meaning, as Markdown (docs/config.md)."""
    from gateway.config.reference import reference as rendered

    click.echo(rendered(), nl=False)
