"""docs/config.md and the JSON Schema of gateway.yaml, made from settings.py: every key, its type, default and meaning, which is the text
under the field. A test holds the page equal to the code.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from enum import Enum
from typing import Any

from gateway.config.quantities import ConfigModel, Quantity, Secret, config_word
from gateway.config.reading import as_written, json_schema
from gateway.config.settings import Settings

_HEAD = """# Configuration

`gateway.yaml` says what applications may ask for, which GPUs serve it, and how. `slo-gateway check FILE` validates it and warns of promises
that cannot hold; a commented example is [config/gateway.yaml](../config/gateway.yaml), and `slo-gateway config schema` prints a JSON Schema
for editors. A file that changes while the gateway runs is taken over at once if it is right (so is one after `SIGHUP` or
`POST /admin/reload`); if it is not, the old one goes on and the log says why. It is read in a process of its own, which ends when it has
read: no stream waits for a large file, and a gateway that serves holds nothing that is only needed to judge one.

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


def schema() -> dict[str, Any]:
    """JSON Schema of gateway.yaml, for editors."""
    told = json_schema(Settings)
    for kind in _models(Settings, {}):
        kinds = _kinds(kind)
        properties = (told if kind is Settings else told["$defs"][kind.__name__])["properties"]
        for field in dataclasses.fields(kind):
            word, value = config_word(field.name), _left_out(field)
            properties[word]["description"] = meanings(kind)[field.name]
            if isinstance(value, ConfigModel):
                properties[word]["default"] = as_written(value)
            elif value == {}:
                properties[word]["default"] = value
            quantity = _quantity(kinds[field.name])
            if quantity is not None and properties[word].get("default") is not None:
                properties[word]["default"] = quantity.format(value)
    return told


def meanings(kind: type[ConfigModel]) -> dict[str, str]:
    """The text under each field of a class, and of those it is made of."""
    found: dict[str, str] = {}
    for one in kind.__mro__[-3::-1]:  # from what stands on ConfigModel downwards
        tree = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, text in itertools.pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = inspect.cleandoc(ast.literal_eval(text.value))
    return found


def _models(kind: type[ConfigModel], seen: dict[type[ConfigModel], None]) -> dict[type[ConfigModel], None]:
    """A class, and all that are in it."""
    seen.setdefault(kind)
    for annotation in _kinds(kind).values():
        nested, _ = _nested(annotation)
        if nested is not None and nested not in seen:
            _models(nested, seen)
    return seen


def _kinds(kind: type[ConfigModel]) -> dict[str, Any]:
    return {name: one for name, one in typing.get_type_hints(kind, include_extras=True).items() if name in kind.__dataclass_fields__}


def _section(model: type[ConfigModel], path: str, sections: list[str], seen: set[type[ConfigModel]]) -> None:
    title = f"## `{path}`" if path else "## The file"
    about = (model.__doc__ or "").strip()
    lines = [title, "", about, "", "| key | type | default | meaning |", "|---|---|---|---|"]
    inner: list[tuple[type[ConfigModel], str]] = []
    meant, kinds = meanings(model), _kinds(model)
    for field in dataclasses.fields(model):
        key, annotation = config_word(field.name), kinds[field.name]
        nested, suffix = _nested(annotation)
        meaning = " ".join(meant[field.name].split())  # a row is one line
        lines.append(f"| `{key}` | {_type(annotation)} | {_default(field, annotation)} | {meaning} |")
        if nested is not None:
            inner.append((nested, f"{path}.{key}{suffix}" if path else f"{key}{suffix}"))
    sections.append("\n".join(lines) + "\n")
    for nested, where in inner:
        if nested not in seen:
            _section(nested, where, sections, seen | {model})


def _bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type that may be left out as the type itself, and what is noted of it."""
    noted: tuple[Any, ...] = ()
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation, *more = typing.get_args(annotation)
            noted = (*more, *noted)
        elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
            annotation = next(one for one in typing.get_args(annotation) if one is not type(None))
        else:
            return annotation, noted


def _nested(annotation: Any) -> tuple[type[ConfigModel] | None, str]:
    """The class whose keys stand there, and how they are reached."""
    annotation, _ = _bare(annotation)
    if isinstance(annotation, type) and issubclass(annotation, ConfigModel):
        return annotation, ""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        return _nested(arguments[1])[0], ".NAME"
    if origin is tuple:
        return _nested(arguments[0])[0], "[]"
    return None, ""


def _quantity(annotation: Any) -> Quantity | None:
    return next((one for one in _bare(annotation)[1] if isinstance(one, Quantity)), None)


def _type(annotation: Any) -> str:
    nested, suffix = _nested(annotation)
    if nested is not None:
        return {"": "keys below", ".NAME": "name: keys below", "[]": "list of keys below"}[suffix]
    quantity = _quantity(annotation)
    if quantity is not None:
        return "size" if quantity.whole else "duration"
    kind, _ = _bare(annotation)
    if kind is Secret:
        return "secret"
    if typing.get_origin(kind) is tuple:
        return "list of names"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{member.value}`" for member in kind)
    return {bool: "true, false", int: "integer", float: "number"}.get(kind, "text")


def _left_out(field: dataclasses.Field[Any]) -> Any:
    """What a field is when it is left out; MISSING when it must not be."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _default(field: dataclasses.Field[Any], annotation: Any) -> str:
    value = _left_out(field)
    if value is dataclasses.MISSING:
        return "**needed**"
    if isinstance(value, ConfigModel):
        return ""
    if value is None or value in ("", (), {}):
        return "none"
    quantity = _quantity(annotation)
    if quantity is not None:
        return f"`{quantity.format(value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, Enum):
        return f"`{value.value}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`"
    return f"`{value}`"
