"""`slo-gateway keys`: make API keys. Only their SHA-256 goes into the configuration."""

from __future__ import annotations

import hashlib
import json
import secrets
import string
import sys
from zlib import crc32

import click

_ALPHABET = string.digits + string.ascii_letters


def new_key() -> str:
    """`gw-`, 32 random bytes in base 62, and a checksum by which secret scanners know it."""
    number = int.from_bytes(secrets.token_bytes(32))
    digits = ""
    while number:
        number, rest = divmod(number, 62)
        digits += _ALPHABET[rest]
    body = digits.rjust(43, "0")
    checksum, check = crc32(body.encode()), ""
    for _ in range(6):
        checksum, rest = divmod(checksum, 62)
        check += _ALPHABET[rest]
    return f"gw-{body}{check}"


@click.group()
def command() -> None:
    """Make API keys."""


@command.command()
@click.argument("id")
@click.option("--tenant", help="Who shares and is shared with; the id when left out.")
@click.option("--use-case", help="What its requests are when they do not say.")
@click.option("--json", "as_json", is_flag=True)
def new(id: str, tenant: str | None, use_case: str | None, as_json: bool) -> None:
    """A new key: shown once, with the lines for gateway.yaml.

    \b
    slo-gateway keys new editor-plugin --use-case code_completion
    """
    key = new_key()
    digest = hashlib.sha256(key.encode()).hexdigest()
    if as_json:
        click.echo(json.dumps({"key": key, "id": id, "sha256": digest, "tenant": tenant, "use_case": use_case}))
        return
    click.echo(f"key (shown only now): {key}\n", err=not sys.stdout.isatty())
    click.echo("keys:")
    click.echo(f"  - id: {id}\n    sha256: {digest}")
    if tenant:
        click.echo(f"    tenant: {tenant}")
    if use_case:
        click.echo(f"    use_case: {use_case}")


@command.command()
def digest() -> None:
    """The SHA-256 of a key read from standard input."""
    click.echo(hashlib.sha256(sys.stdin.readline().strip().encode()).hexdigest())
