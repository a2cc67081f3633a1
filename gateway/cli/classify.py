"""`slo-gateway classify`: what the gateway would take a request for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import click

if TYPE_CHECKING:
    from gateway.core.flow import Tag

MAX_LINE_BYTES = 64 * 1024 * 1024


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option(
    "--config", "config", type=click.Path(dir_okay=False), help="The gateway's configuration, for its catalogue, costs and model."
)
@click.option("--endpoint", default="/v1/chat/completions", show_default=True, help="Where a single request body would be sent.")
@click.option("--model", "model_file", type=click.Path(dir_okay=False, exists=True), help="Another model, as made by slo-gateway train.")
@click.option("--remember", is_flag=True, help="Let the rows be one caller's traffic: applications are remembered from row to row.")
@click.option("--json", "as_json", is_flag=True, help="One object a row.")
def command(file: BinaryIO, config: str | None, endpoint: str, model_file: str | None, remember: bool, as_json: bool) -> None:
    """What the gateway would take a request for, and why. FILE is a request body, or JSON lines of {"endpoint", "request"}; - is standard
    input. Tags in headers and keys are left out: this asks what the gateway does with a request that nobody tagged.

    \b
    echo '{"model": "m", "messages": [{"role": "user", "content": "Translate into French: good morning"}]}' | slo-gateway classify -
    slo-gateway classify requests.jsonl --json | jq -r .use_case | sort | uniq -c
    """
    from gateway.classify.asking import Asking, RowError
    from gateway.classify.model import ModelError
    from gateway.config.loaded import ConfigError

    try:
        asking = Asking.of(config, model_file, remember)
    except ConfigError as error:
        for finding in error.findings:
            click.echo(f"error: {finding}", err=True)
        raise SystemExit(1) from None
    except ModelError as error:
        raise click.ClickException(str(error)) from None
    wrong = False
    for number, (where, raw) in enumerate(_rows(file, endpoint), start=1):
        try:
            began_s = time.perf_counter()
            tag = asking.tag(where, raw)
            took_s = time.perf_counter() - began_s
        except RowError as error:
            wrong = True
            click.echo(json.dumps({"error": str(error)}) if as_json else f"row {number}: {error}", err=not as_json)
            continue
        if as_json:
            click.echo(json.dumps(told(tag, took_s)))
        else:
            click.echo(f"{tag.use_case:20} {tag.experience_class:15} {tag.confidence:4.0%}  {tag.why}")
    raise SystemExit(1 if wrong else 0)


def told(tag: Tag, took_s: float) -> dict[str, Any]:
    """A row of --json."""
    return {
        "use_case": tag.use_case,
        "experience_class": tag.experience_class,
        "probability": tag.confidence,
        "why": tag.why,
        "took_s": round(took_s, 7),
    }


def _rows(file: BinaryIO, endpoint: str) -> Iterator[tuple[str, bytes]]:
    """Endpoint and body of each row. A file whose first line is not a row of its own is one body."""
    first = file.readline(MAX_LINE_BYTES)
    row = _row(first)
    if row is None:
        yield endpoint, first + file.read(MAX_LINE_BYTES)
        return
    yield row
    while line := file.readline(MAX_LINE_BYTES):
        if line.strip():
            yield _row(line) or (endpoint, line)


def _row(line: bytes) -> tuple[str, bytes] | None:
    import msgspec

    try:
        fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        endpoint = msgspec.json.decode(fields["endpoint"], type=str)
        return endpoint, bytes(fields["request"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, RecursionError):
        return None
