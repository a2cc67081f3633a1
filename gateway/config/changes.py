"""A site's own changes to the catalogue, laid over it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gateway.config.catalog import Catalog
from gateway.config.quantities import ConfigModel
from gateway.config.reading import read_as
from gateway.config.settings import Settings


def catalog_with(catalog: Catalog, settings: Settings) -> Catalog:
    """The catalogue with a site's changes. pydantic.ValidationError when a new use case is incomplete."""
    if not settings.use_cases and not settings.classes:
        return catalog
    data = asdict(catalog)
    for id_, use_case in settings.use_cases.items():
        data["use_cases"][id_] = _merged(data["use_cases"].get(id_, {"title": id_}), _said(use_case))
    for id_, class_ in settings.classes.items():
        if id_ in data["classes"]:
            data["classes"][id_] = _merged(data["classes"][id_], _said(class_))
    return read_as(Catalog, data)


def _said(change: ConfigModel) -> dict[str, Any]:
    """What a change says, without what it leaves as it is."""
    said = {name: getattr(change, name) for name in change.__dataclass_fields__}
    return {name: _said(value) if isinstance(value, ConfigModel) else value for name, value in said.items() if value is not None}


def _merged(old: Any, new: Any) -> Any:
    """`new` over `old`, key by key; a range is replaced whole, since a limit says nothing without its target."""
    if not isinstance(old, dict) or not isinstance(new, dict) or "target_s" in new:
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}
