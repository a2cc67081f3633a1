"""Durations and sizes as people write them (`150ms`, `8MiB`), and the field types and base model that every configuration class is made of.

A bare number is refused where a unit decides its meaning: `ttft: 0.15` against a page that says "150 ms" invites slips of a thousand.
Code holds seconds and bytes. The classes cost nothing to import: what judges them (config/reading.py) is asked for by who reads a file, and
not by who serves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import Field, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, dataclass_transform

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, ValidationInfo
    from pydantic_core import CoreSchema

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


class Secret:
    """A key or password. It is only told to who asks for it by name: no log line, no traceback and no page shows it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        """The secret itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('**********')" if self._value else "Secret('')"

    def __str__(self) -> str:
        return "**********" if self._value else ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.with_info_before_validator_function(
            _of_file,
            core_schema.union_schema(
                [core_schema.is_instance_schema(cls), core_schema.no_info_after_validator_function(cls, core_schema.str_schema())],
                mode="left_to_right",
                custom_error_type="string_type",
            ),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: "**********"),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        return {"type": "string", "description": "`${ENV}` or `file:PATH`; never the secret itself", "writeOnly": True}


def _of_file(value: Any, info: ValidationInfo) -> Any:
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


class Quantity:
    """What stands in a file with its unit: how it is read and written, and what it may be. Values from a file must carry their unit; code
    that builds settings hands in seconds and bytes."""

    def __init__(
        self, about: str, parse: Callable[[str], float], format: Callable[[Any], str], most: float, pattern: str, examples: list[str]
    ) -> None:
        self.about, self.parse, self.format, self.most = about, parse, format, most
        self.whole = isinstance(most, int)
        self._schema = {"type": "string", "pattern": pattern, "examples": examples}

    def read(self, value: Any, info: ValidationInfo) -> float:
        """From a file or from code. ValueError says what was expected."""
        if isinstance(value, str):
            return self.parse(value)
        right = isinstance(value, int if self.whole else int | float) and not isinstance(value, bool)
        if not right or info.context or not 0 <= value <= self.most:
            raise ValueError(self.about)
        number: float = value
        return number if self.whole else float(number)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        written = core_schema.plain_serializer_function_ser_schema(self.format, return_schema=core_schema.str_schema(), when_used="json")
        return core_schema.with_info_before_validator_function(self.read, handler(source), serialization=written)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        return dict(self._schema)


class Rule:
    """What a value must be, in the words of pydantic's core schema: `ge`, `le`, `gt`, `min_length`, `max_length`, `pattern`, `strict`."""

    def __init__(self, **words: Any) -> None:
        self.words = words

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: Any = handler(source)
        (schema["schema"] if schema["type"] == "function-before" else schema).update(self.words)
        made: CoreSchema = schema
        return made


class Judged:
    """What a function has to say of a value: ValueError with what was expected."""

    def __init__(self, judge: Callable[[Any], object]) -> None:
        self._judge = judge

    def _asked(self, value: Any) -> Any:
        self._judge(value)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._asked, handler(source))


DURATION = Quantity(
    "a duration with its unit, such as 150ms, 7s or 2m",
    parse_duration,
    format_duration,
    LONGEST_S,
    r"^(0|(\d+(\.\d+)?(us|ms|s|m|h|d))+)$",
    ["150ms", "7s", "2m"],
)
SIZE = Quantity(
    "a size with its unit, such as 16KiB or 8MiB",
    parse_size,
    format_size,
    LARGEST_BYTES,
    r"^\d+(\.\d+)? ?(B|KiB|MiB|GiB|kB|KB|MB|GB)$",
    ["16KiB", "8MiB"],
)

Seconds = Annotated[float, DURATION]
"""A duration: written with its unit, held in seconds. 0 to a year."""

PositiveSeconds = Annotated[Seconds, Rule(gt=0)]

Bytes = Annotated[int, SIZE]
"""A size: written with its unit, held in bytes. 0 to 1 TiB."""

Text = Annotated[str, Rule(max_length=1024)]
Name = Annotated[str, Rule(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,255}$")]
"""A name that ends up in URLs, metric labels and log lines: 1 to 256 plain characters."""

Flag = Annotated[bool, Rule(strict=True)]
Count = Annotated[int, Rule(strict=True, ge=0, le=10**9)]
PositiveCount = Annotated[int, Rule(strict=True, ge=1, le=10**9)]
Port = Annotated[int, Rule(strict=True, ge=0, le=65535)]
Ratio = Annotated[float, Rule(strict=True, ge=0, le=1)]
Factor = Annotated[float, Rule(strict=True, gt=0, le=1000)]
Money = Annotated[float, Rule(strict=True, ge=0, le=10**6)]

SOME = Rule(min_length=1)
"""Of a list or of named things: at least one."""


def config_word(field_name: str) -> str:
    """The word that stands in the YAML for an attribute: a duration's value carries its unit, so the word does not."""
    return field_name.removesuffix("_s")


@dataclass_transform(frozen_default=True, kw_only_default=True)
class ConfigModel:
    """A frozen dataclass: unknown keys refused, and the same words as in the YAML but for the `_s` of durations. Made in code it is what it
    was told to be; config/reading.py judges what comes from elsewhere."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "alias_generator": config_word,
        "validate_by_name": True,
        "validate_by_alias": True,
        "hide_input_in_errors": True,
        "allow_inf_nan": False,
    }

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)
