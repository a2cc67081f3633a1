"""What pydantic finds wrong with a file, in the words and with the places of the file, and with the right name that was probably meant."""

from __future__ import annotations

import re
import typing
from typing import Any

from pydantic import ValidationError

from gateway.config.document import Document
from gateway.config.loaded import Finding, dotted
from gateway.config.quantities import ConfigModel, config_word

UNKNOWN_KEY = "unexpected_keyword_argument"
"""how pydantic calls a key that a dataclass does not have"""


def told(error: ValidationError, document: Document, kind: type[ConfigModel]) -> list[Finding]:
    """Every mistake in a file that should hold a `kind`."""
    findings = []
    errors = error.errors()
    for one in errors:
        where = tuple(one["loc"])
        nearest = ""
        if one["type"] == "too_short" and any(len(o["loc"]) > len(where) and o["loc"][: len(where)] == where for o in errors):
            continue  # it is not empty: what is in it is wrong, and told anyway
        if one["type"] == UNKNOWN_KEY:
            known = _keys_at(kind, where[:-1])
            message = "no such key" + (f"; here are {', '.join(known)}" if known else "")
            nearest = nearest_name(str(where[-1]), known)
            if nearest:
                message = "no such key"
        else:
            message = in_words(one)
            if one["type"] in ("enum", "literal_error"):
                nearest = nearest_name(str(one["input"]), re.findall(r"'([^']+)'", message))
        findings.append(Finding(str(document.path), document.place_of(where), dotted(where), message, nearest))
    return findings


def in_words(one: Any) -> str:
    """What one of pydantic's errors says."""
    if one["type"] == "missing":
        return "this key is needed"
    if one["type"] == "dataclass_type":
        return "expected keys and their values"
    message = str(one["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
    return message if message.startswith("expected") or one["type"] != "value_error" else f"expected {message}"


def nearest_name(name: str, right: list[str]) -> str:
    """The one that was probably meant, "" when none is near."""
    import difflib  # only where something is wrong

    by_lower = {one.lower(): one for one in right}
    return by_lower.get(next(iter(difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)), ""), "") if name else ""


def _keys_at(kind: type[ConfigModel], path: tuple[Any, ...]) -> list[str]:
    """The keys a path's mapping may have."""
    here: Any = kind
    for part in path:
        here = _inside(here, part)
        if here is None:
            return []
    return [config_word(name) for name in here.__dataclass_fields__] if _is_model(here) else []


def _inside(here: Any, part: Any) -> Any:
    if _is_model(here):
        kinds = typing.get_type_hints(here)
        return next((_model_in(kinds[name]) for name in here.__dataclass_fields__ if part in (name, config_word(name))), None)
    return here.model if isinstance(here, _Container) else None


def _model_in(annotation: Any) -> Any:
    if _is_model(annotation):
        return annotation
    for inner in reversed(getattr(annotation, "__args__", ())):
        found = _Container(_model_in(inner)) if getattr(annotation, "__origin__", None) in (dict, tuple, list) else _model_in(inner)
        if found is not None and (not isinstance(found, _Container) or found.model is not None):
            return found
    return None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, ConfigModel)


class _Container:
    """A mapping or list of models: its own keys lead to one."""

    def __init__(self, model: Any) -> None:
        self.model = model
