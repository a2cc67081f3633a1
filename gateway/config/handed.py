"""A configuration on its way from one of our processes to another, secrets included: what has been read and judged once is not read again.

A worker that takes another one's place long after the file was changed for the worse still gets what is in force. Only for a pipe between
the two; whoever reads it trusts who wrote it, but not that it is of the same version.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel, SecretStr, ValidationError

from gateway.config.catalog import Catalog
from gateway.config.load import ConfigError, Finding, Loaded, dotted
from gateway.config.settings import Settings


def handed(loaded: Loaded) -> bytes:
    """MessagePack: settings, catalogue, digest, path. Where in the file things stand is left behind."""
    return msgspec.msgpack.encode([_plain(loaded.settings), _plain(loaded.catalog), loaded.digest, str(loaded.path or "")])


def taken(data: bytes) -> Loaded:
    """What `handed` wrote. ConfigError when this version does not know what stands in it."""
    settings, catalog, digest, path = msgspec.msgpack.decode(data)
    try:
        return Loaded(Settings.model_validate(settings), Catalog.model_validate(catalog), digest, Path(path) if path else None)
    except ValidationError as error:
        findings = [Finding("(handed over)", None, dotted(tuple(one["loc"])), str(one["msg"])) for one in error.errors()]
        raise ConfigError(findings) from None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
