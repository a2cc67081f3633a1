"""From plain data (what a YAML file says, or code) to the values of a configuration, judged by pydantic: they are right, or every mistake
is told at once. Where in a file a mistake stands, and what was probably meant, is config/load.py's business.

Only who reads a configuration imports this; who serves is handed the values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from gateway.config.quantities import ConfigModel

Kind = TypeVar("Kind", bound=ConfigModel)


_judge: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def read_as(kind: type[Kind], data: object, folder: Path | None = None) -> Kind:
    """`data` as a configuration class. With the `folder` of the file it came from, quantities must carry their units, and `file:PATH` is
    read; code hands in seconds and bytes. pydantic.ValidationError names every mistake."""
    value: Kind = _judge(kind).validate_python(data, context=None if folder is None else {"folder": folder})
    return value


def shown(value: ConfigModel) -> bytes:
    """The same as JSON, for people: quantities with their units, secrets hidden."""
    return _judge(type(value)).dump_json(value)


def as_written(value: ConfigModel) -> dict[str, Any]:
    """The same as a file would have it."""
    written: dict[str, Any] = _judge(type(value)).dump_python(value, mode="json", by_alias=True)
    return written


def json_schema(kind: type[ConfigModel]) -> dict[str, Any]:
    """JSON Schema of a file that holds one."""
    return _judge(kind).json_schema(by_alias=True)
