"""A configuration on its way from one of our processes to another, secrets included: what has been read and judged once is not read again.

A worker that takes another one's place long after the file was changed for the worse still gets what is in force. Only for a pipe between
the two; whoever reads it trusts who wrote it, but not that it is of the same version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from gateway.config.catalog import Catalog
from gateway.config.gpus import Gpus
from gateway.config.loaded import ConfigError, Finding, Loaded, dotted
from gateway.config.quantities import Secret
from gateway.config.settings import Settings


def handed(loaded: Loaded) -> bytes:
    """MessagePack: settings, catalogue, what is known of GPUs, digest, what is shown, path. Where things stand in the file is left out."""
    told = [loaded.settings, loaded.catalog, loaded.gpus, loaded.digest, loaded.shown, str(loaded.path or "")]
    return msgspec.msgpack.encode(told, enc_hook=_told)


def taken(data: bytes) -> Loaded:
    """What `handed` wrote. ConfigError when this version does not know what stands in it."""
    try:
        kinds = tuple[Settings, Catalog, Gpus, str, bytes, str]
        settings, catalog, gpus, digest, shown, path = msgspec.msgpack.decode(data, type=kinds, dec_hook=_heard)
    except msgspec.ValidationError as problem:
        raise ConfigError([Finding("(handed over)", None, "", str(problem))]) from None
    loaded = Loaded(settings, catalog, gpus, digest, shown, Path(path) if path else None)
    unknown = _unknown(msgspec.msgpack.decode(data), msgspec.msgpack.decode(handed(loaded)))
    if unknown:
        raise ConfigError([Finding("(handed over)", None, dotted(tuple(path)), "no such key in this version") for path in unknown])
    return loaded


def _unknown(told: Any, known: Any) -> list[list[str | int]]:
    """Paths of what was told and not taken."""
    if isinstance(told, dict):
        pairs = [(key, inner, known.get(key)) for key, inner in told.items()]
        lost = [[key] for key in told if key not in known]
    elif isinstance(told, list):
        pairs, lost = [(at, inner, known[at]) for at, inner in enumerate(told)], []
    else:
        return []
    return lost + [[key, *path] for key, inner, ours in pairs if ours is not None for path in _unknown(inner, ours)]


def _told(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.get_secret_value()
    raise TypeError(f"{type(value).__name__} is not handed over")


def _heard(kind: type[Any], value: Any) -> Any:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise TypeError(f"{kind.__name__} is not handed over")
