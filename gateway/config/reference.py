"""docs/config.md, made from settings.py: every key, its type, default and meaning. A test holds the page equal to the code."""

from __future__ import annotations

import types
import typing
from enum import Enum
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from gateway.config.quantities import format_duration, format_size
from gateway.config.settings import Settings

_HEAD = """# Configuration

`gateway.yaml` says what applications may ask for, which GPUs serve it, and how. `slo-gateway check FILE` validates it and warns of promises
that cannot hold; a commented example is [config/gateway.yaml](../config/gateway.yaml), and `slo-gateway config schema` prints a JSON Schema
for editors. A file that changes while the gateway runs is taken over at once if it is right (so is one after `SIGHUP` or
`POST /admin/reload`); if it is not, the old one goes on and the log says why.

Durations and sizes carry their unit (`150ms`, `7s`, `2m`; `16KiB`, `8MiB`); a bare number is an error. `${NAME}` is replaced by an
environment variable (`${NAME:-default}` where it may be missing), and a secret may be `file:PATH`, relative to the file. Use cases, classes
and tiers themselves are in [config/catalog.yaml](../config/catalog.yaml); `use_cases` and `classes` here change them.

This page is made by `slo-gateway config reference`.
"""


def reference() -> str:
    """The whole page."""
    sections: list[str] = []
    _section(Settings, "", sections, set())
    return _HEAD + "\n" + "\n".join(sections)


def _section(model: type[BaseModel], path: str, sections: list[str], seen: set[type[BaseModel]]) -> None:
    title = f"## `{path}`" if path else "## The file"
    about = (model.__doc__ or "").strip()
    lines = [title, "", about, "", "| key | type | default | meaning |", "|---|---|---|---|"]
    inner: list[tuple[type[BaseModel], str]] = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        nested, suffix = _nested(field.annotation)
        lines.append(f"| `{key}` | {_type(field)} | {_default(field, nested)} | {(field.description or '').strip()} |")
        if nested is not None:
            inner.append((nested, f"{path}.{key}{suffix}" if path else f"{key}{suffix}"))
    sections.append("\n".join(lines) + "\n")
    for nested, where in inner:
        if nested not in seen:
            _section(nested, where, sections, seen | {model})


def _nested(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        return _nested(arguments[1])[0], ".NAME"
    if origin in (tuple, list):
        return _nested(arguments[0])[0], "[]"
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        for argument in arguments:
            nested, suffix = _nested(argument)
            if nested is not None:
                return nested, suffix
    return None, ""


def _type(field: FieldInfo) -> str:
    written = " ".join(repr(part) for part in (field.annotation, *field.metadata))
    if "SecretStr" in written:
        return "secret"
    if "_duration" in written or "format_duration" in written:
        return "duration"
    if "_size" in written or "format_size" in written:
        return "size"
    annotation = field.annotation
    nested, suffix = _nested(annotation)
    if nested is not None:
        return {"": "keys below", ".NAME": "name: keys below", "[]": "list of keys below"}[suffix]
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
        origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
        origin = typing.get_origin(annotation)
    if origin in (tuple, list):
        return "list of names"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    return (
        {bool: "true, false", int: "integer", float: "number", str: "text"}.get(annotation, "text")
        if isinstance(annotation, type)
        else "text"
    )


def _default(field: FieldInfo, nested: type[BaseModel] | None) -> str:
    if field.is_required():
        return "**needed**"
    value = field.get_default()
    if isinstance(value, BaseModel):
        return ""
    if value is None or value in ("", (), {}):
        return "none"
    if isinstance(value, SecretStr):
        return "none"
    kind = _type(field)
    if kind == "duration":
        return f"`{format_duration(value)}`"
    if kind == "size":
        return f"`{format_size(value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, Enum):
        return f"`{value.value}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`"
    return f"`{value}`"
