"""A YAML file with the places of its keys, and `${ENV}` replaced. What the values mean is the models' business."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from gateway.config.loaded import Place

MAX_FILE_BYTES = 4 * 1024**2
MAX_DEPTH = 32
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|\$\$\{")


class DocumentError(Exception):
    """The file cannot be read as YAML. `place` is None when it is not about a line."""

    def __init__(self, message: str, place: Place | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.place = place


class Document:
    """`data` in plain values; `place_of` tells where a path stands; `missing` are variables that are not set, with their paths."""

    def __init__(self, path: Path, text: str, environment: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.text = text
        self._places: dict[tuple[str | int, ...], Place] = {}
        self.missing: list[tuple[tuple[str | int, ...], str]] = []
        self._environment = os.environ if environment is None else environment
        try:
            loaded = YAML(typ="rt", pure=True).load(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = " ".join(part for part in (error.problem, error.context) if part)
            raise DocumentError(what, Place(mark.line + 1, mark.column + 1) if mark else None) from None
        except (YAMLError, ValueError, RecursionError) as error:
            raise DocumentError(str(error).splitlines()[0] if str(error) else "not YAML") from None
        self.data: Any = self._plain(loaded, ())

    def place_of(self, path: tuple[str | int, ...]) -> Place | None:
        """Where a path stands, or the nearest of its parents that does."""
        while path:
            if path in self._places:
                return self._places[path]
            path = path[:-1]
        return Place(1, 1) if self.data is not None else None

    def _plain(self, value: Any, path: tuple[str | int, ...]) -> Any:
        if len(path) > MAX_DEPTH:
            raise DocumentError(f"nested deeper than {MAX_DEPTH} levels", self.place_of(path))
        if isinstance(value, dict):
            marks = getattr(value, "lc", None)
            plain: dict[str, Any] = {}
            for key, inner in value.items():
                name = key if isinstance(key, str) else str(key)
                here = (*path, name)
                if marks is not None and marks.data and key in marks.data:
                    line, column = marks.key(key)
                    self._places[here] = Place(line + 1, column + 1)
                plain[name] = self._plain(inner, here)
            return plain
        if isinstance(value, list):
            marks = getattr(value, "lc", None)
            for index in range(len(value)):
                if marks is not None and marks.data and index in marks.data:
                    line, column = marks.item(index)
                    self._places[(*path, index)] = Place(line + 1, column + 1)
            return [self._plain(inner, (*path, index)) for index, inner in enumerate(value)]
        if isinstance(value, str):
            return self._replaced(str(value), path)
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value)
        return str(value)

    def _replaced(self, text: str, path: tuple[str | int, ...]) -> str:
        if "${" not in text:
            return text

        def value_of(match: re.Match[str]) -> str:
            name, default = match.group(1), match.group(2)
            if name is None:
                return "${"
            value = self._environment.get(name, default)
            if value is None:
                self.missing.append((path, name))
                return ""
            return value

        return _VARIABLE.sub(value_of, text)


def read(path: Path, environment: Mapping[str, str] | None = None) -> Document:
    """A file. DocumentError says why it cannot be read."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DocumentError(f"cannot be read: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise DocumentError(f"larger than {MAX_FILE_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 at byte {error.start}") from None
    return Document(path, text, environment)


def plain_yaml(path: Path) -> Any:
    """A file of ours, whose places nobody asks for."""
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
