"""What reading a configuration comes to: one that holds together, or all that is wrong with it. How it is read is load.py's business, which
who only serves need not import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gateway.config.catalog import Catalog
from gateway.config.gpus import Gpus
from gateway.config.settings import Settings

if TYPE_CHECKING:
    from gateway.config.document import Document


class Place(NamedTuple):
    """Where something stands, counted from 1."""

    line: int
    column: int


class Finding(NamedTuple):
    """One mistake, or one warning. `nearest` is the right name that was probably meant, "" when none is near."""

    file: str
    place: Place | None
    path: str
    message: str
    nearest: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.place.line}:{self.place.column}" if self.place else self.file
        text = f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"
        return f"{text}; did you mean '{self.nearest}'?" if self.nearest else text


class ConfigError(Exception):
    """The configuration is wrong; `findings` are all that is wrong with it."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = findings


@dataclass(frozen=True)
class Loaded:
    """A configuration that holds together. `catalog` has the site's changes in it; `digest` is of everything that was read, and `shown` are
    the settings in JSON, as operators may see them: without secrets."""

    settings: Settings
    catalog: Catalog
    gpus: Gpus
    digest: str
    shown: bytes
    path: Path | None
    document: Document | None = None


def is_loopback(host: str) -> bool:
    """Can only this machine connect there?"""
    return host in ("localhost", "::1") or host.startswith("127.")


def dotted(path: tuple[str | int, ...]) -> str:
    """`("pools", "a b", "instances", 0)` -> `pools.a b.instances[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text
