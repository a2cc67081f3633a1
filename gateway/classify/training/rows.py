"""Labelled requests as they lie on disk: JSON lines, long documents kept apart and put in where `{{doc:ID}}` stands.

A row is {"label", "endpoint", "request"} and better has a "family": what is held out together when a model is judged. Documents are lines
{"id", "text"} in files named docs*.jsonl or *docs.jsonl beside the rows; a row may quote any document beside any of the files given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.classify.asking import RowError, prompt_tokens, read
from gateway.classify.model import KINDS
from gateway.classify.verdict import BY_LENGTH
from gateway.openai.body import Body

_PLACE = re.compile(r"\{\{doc:([\w.-]+)\}\}")
_NUMBERS = re.compile(r"\d+")
_NUMBER = re.compile(r"-?\d+$")  # files that differ by it are one set
FAMILY_CHARS = 48

KIND_OF = {kind: kind for kind in KINDS} | {name: kind for kind, names in BY_LENGTH.items() for name in names}


class DataError(ValueError):
    """Data that cannot be trained on: which file, which line, and why."""


@dataclass(slots=True)
class Labelled:
    """A request whose use case is known. `family` is never in two folds; `source` is the set it came from."""

    body: Body
    use_case: str
    family: str
    source: str
    request: dict[str, Any]

    @property
    def kind(self) -> int:
        """Index in KINDS."""
        return KINDS.index(KIND_OF[self.use_case])

    @property
    def prompt_tokens(self) -> int:
        """As the gateway estimates them."""
        return prompt_tokens(self.body)


def is_documents(path: Path) -> bool:
    """A file of documents, by its name."""
    return path.suffix == ".jsonl" and (path.name.startswith("docs") or path.stem.endswith("docs"))


def documents_beside(paths: Iterable[Path]) -> dict[str, str]:
    """Every document beside any of these files, by id."""
    found: dict[str, str] = {}
    for folder in sorted({path.parent for path in paths}):
        for file in sorted(folder.glob("*.jsonl")):
            if is_documents(file):
                for line in file.read_text("utf8").splitlines():
                    document = json.loads(line)
                    found[document["id"]] = document["text"]
    return found


def load_rows(paths: Sequence[Path]) -> list[Labelled]:
    """The rows of all files, in order. DataError names the first that is wrong."""
    documents = documents_beside(paths)
    rows: list[Labelled] = []
    for path in paths:
        with path.open(encoding="utf8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        said = json.loads(line)
                    except ValueError as error:
                        raise DataError(f"{path}, line {number}: no JSON ({error})") from None
                    rows.append(labelled(_NUMBER.sub("", path.stem), number, said, documents))
    return rows


def labelled(source: str, number: int, said: Any, documents: dict[str, str]) -> Labelled:
    """One row. DataError says what is wrong with it."""
    where = f"{source}, row {number}"
    try:
        label, endpoint, request = said["label"], said["endpoint"], said["request"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: a row is a JSON object with label, endpoint and request ({error})") from None
    if label not in KIND_OF:
        raise DataError(f"{where}: '{label}' is none of {', '.join(sorted(KIND_OF))}")
    family = said.get("family") or said.get("source") or _family_of(label, request)
    request = with_documents(request, documents, where)
    raw = json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode("utf8", "surrogatepass")
    try:
        return Labelled(read(endpoint, raw), label, str(family), source, request)
    except RowError as error:
        raise DataError(f"{where}: {error}") from None


def with_documents(value: Any, documents: dict[str, str], where: str) -> Any:
    """`value` with every document put in its place."""
    if isinstance(value, str):
        if "{{doc:" not in value:
            return value
        try:
            return _PLACE.sub(lambda match: documents[match[1]], value)
        except KeyError as missing:
            raise DataError(f"{where}: there is no document {missing}") from None
    if isinstance(value, list):
        return [with_documents(part, documents, where) for part in value]
    if isinstance(value, dict):
        return {key: with_documents(part, documents, where) for key, part in value.items()}
    return value


def _family_of(label: str, request: dict[str, Any]) -> str:
    """Rows that say no family are of one when their last message begins, or ends, alike."""
    messages = request.get("messages")
    text: Any = messages[-1].get("content") if isinstance(messages, list) and messages else request.get("prompt")
    text = _PLACE.sub("", text if isinstance(text, str) else json.dumps(text)).strip()
    text = _NUMBERS.sub("0", text)
    edge = text[:FAMILY_CHARS] if len(text) < 400 or label.startswith("code") else text[-FAMILY_CHARS:]
    return f"{label}: {edge}"
