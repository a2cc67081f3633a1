"""Durations and sizes as people write them (`150ms`, `8MiB`), and the field types and base model that every configuration class is made of.

A bare number is refused where a unit decides its meaning: `ttft: 0.15` against a page that says "150 ms" invites slips of a thousand.
Code holds seconds and bytes. Where a value comes from and where an error is shown is config/load.py's business.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    Strict,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
)

SECONDS_PER = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES_PER = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3}
LONGEST_S = 365 * 86400.0
LARGEST_BYTES = 1024**4

_NUMBER = r"\d{1,15}(?:\.\d{1,9})?"
_DURATION = re.compile(rf"(?:{_NUMBER}(?:us|ms|s|m|h|d))+")
_DURATION_PART = re.compile(rf"({_NUMBER})(us|ms|s|m|h|d)")
_SIZE = re.compile(rf"({_NUMBER})\s?(B|KiB|MiB|GiB|kB|KB|MB|GB)")


def parse_duration(text: str) -> float:
    """`150ms`, `7s`, `1.5s`, `2m`, `1h30m` -> seconds, up to a year. ValueError says what was expected."""
    text = text.strip()
    if text == "0":
        return 0.0
    if not _DURATION.fullmatch(text):
        raise ValueError("a duration with its unit, such as 150ms, 7s or 2m")
    seconds = sum(float(number) * SECONDS_PER[unit] for number, unit in _DURATION_PART.findall(text))
    if seconds > LONGEST_S:
        raise ValueError("a duration of at most a year")
    return round(seconds, 9)


def format_duration(seconds: float) -> str:
    """The shortest exact way to write it in one unit: 0.15 -> `150ms`, 90.0 -> `90s`, 7200.0 -> `2h`."""
    if seconds == 0:
        return "0s"
    for unit in ("h", "m"):
        if seconds >= 2 * SECONDS_PER[unit] and seconds % SECONDS_PER[unit] == 0:
            return f"{seconds / SECONDS_PER[unit]:.0f}{unit}"
    unit = "s" if seconds >= 1 else "ms" if seconds >= 1e-3 else "us"
    return f"{round(seconds / SECONDS_PER[unit], 6):.15g}{unit}"


def parse_size(text: str) -> int:
    """`8MiB`, `64 KiB`, `512B` -> bytes, up to a TiB. ValueError says what was expected."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("a size with its unit, such as 16KiB or 8MiB")
    size = round(float(match[1]) * BYTES_PER[match[2]])
    if size > LARGEST_BYTES:
        raise ValueError("a size of at most 1024GiB")
    return size


def format_size(size: int) -> str:
    """The shortest exact way to write it: 8388608 -> `8MiB`, 1000 -> `1000B`."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % BYTES_PER[unit] == 0:
            return f"{size // BYTES_PER[unit]}{unit}"
    return f"{size}B"


def _from_file(info: ValidationInfo) -> bool:
    """Values from a file must carry their unit; code that builds settings hands in seconds and bytes."""
    return bool(info.context and info.context.get("from_file"))


def _duration(value: Any, info: ValidationInfo) -> float:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or _from_file(info) or not 0 <= value <= LONGEST_S:
        raise ValueError("a duration with its unit, such as 150ms, 7s or 2m")
    return float(value)


def _size(value: Any, info: ValidationInfo) -> int:
    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, bool) or not isinstance(value, int) or _from_file(info) or not 0 <= value <= LARGEST_BYTES:
        raise ValueError("a size with its unit, such as 16KiB or 8MiB")
    return value


def _secret(value: Any, info: ValidationInfo) -> Any:
    """`file:PATH` is read here (relative to the configuration's own folder); `${ENV}` was already replaced."""
    if not isinstance(value, str) or not value.startswith("file:") or not info.context:
        return value
    path = info.context["folder"] / value.removeprefix("file:")
    try:
        with open(path, encoding="utf-8") as file:
            secret = file.read(65537).strip()
    except (OSError, UnicodeDecodeError, ValueError) as problem:
        raise ValueError(f"a readable file at {str(path)!r} ({getattr(problem, 'strerror', None) or 'not text'})") from None
    if not secret or len(secret) > 65536:
        raise ValueError(f"a secret of 1 to 65536 characters in {str(path)!r}")
    return secret


Seconds = Annotated[
    float,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^(0|(\d+(\.\d+)?(us|ms|s|m|h|d))+)$", "examples": ["150ms", "7s", "2m"]}),
]
"""A duration: written with its unit, held in seconds. 0 to a year."""

PositiveSeconds = Annotated[Seconds, Field(gt=0)]

Bytes = Annotated[
    int,
    BeforeValidator(_size),
    PlainSerializer(format_size, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)? ?(B|KiB|MiB|GiB|kB|KB|MB|GB)$", "examples": ["16KiB", "8MiB"]}),
]
"""A size: written with its unit, held in bytes. 0 to 1 TiB."""

Text = Annotated[str, StringConstraints(max_length=1024)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,255}$")]
"""A name that ends up in URLs, metric labels and log lines: 1 to 256 plain characters."""

Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=0, le=10**9)]
PositiveCount = Annotated[int, Strict(), Field(ge=1, le=10**9)]
Port = Annotated[int, Strict(), Field(ge=0, le=65535)]
Ratio = Annotated[float, Strict(), Field(ge=0, le=1)]
Factor = Annotated[float, Strict(), Field(gt=0, le=1000)]
Money = Annotated[float, Strict(), Field(ge=0, le=10**6)]
Secret = Annotated[
    SecretStr,
    BeforeValidator(_secret),
    PlainSerializer(lambda value: "**********", return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "description": "`${ENV}` or `file:PATH`; never the secret itself", "writeOnly": True}),
]


def config_word(field_name: str) -> str:
    """The word that stands in the YAML for an attribute: a duration's value carries its unit, so the word does not."""
    return field_name.removesuffix("_s")


class ConfigModel(BaseModel):
    """Frozen, unknown keys refused, and the same words as in the YAML but for the `_s` of durations."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=config_word,
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
