"""A gateway from one line of arguments: without a file (`--model M --pool premium:H100=http://a:8000,http://b:8000`), or over one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from gateway.config.asked import GRAMMAR, Over
from gateway.config.gpus import shipped_gpus
from gateway.config.load import load, of_settings, shipped_catalog
from gateway.config.loaded import ConfigError, Finding, Loaded, dotted
from gateway.config.mistakes import in_words
from gateway.config.reading import read_as, shown
from gateway.config.settings import Settings
from gateway.config.state_url import parse_state_url
from gateway.core.flow import Mode

_POOL = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?::(?P<gpu>[A-Za-z0-9][A-Za-z0-9.-]*))?(?::limit=(?P<limit>\d{1,5}))?=(?P<urls>.+)"
)


def loaded_from_args(model: str, pools: Sequence[str], over: Over = Over()) -> Loaded:  # noqa: B008  (frozen)
    """The settings those arguments mean. ConfigError names every mistake."""
    catalog, gpus = shipped_catalog(), shipped_gpus()
    findings: list[Finding] = []
    made: dict[str, Any] = {}
    for text in pools:
        match = _POOL.fullmatch(text)
        if match is None:
            findings.append(Finding("(arguments)", None, "--pool", f"{text!r} is not {GRAMMAR}"))
            continue
        name, gpu_name = match["name"], match["gpu"] or ""
        gpu = gpus.find(gpu_name) if gpu_name else None
        tier = name if name in catalog.tiers else (catalog.tier_of_gpu(gpu.name if gpu else gpu_name) if gpu_name else None)
        if tier is None:
            known = ", ".join(catalog.tiers)
            findings.append(Finding("(arguments)", None, "--pool", f"{text!r}: neither the name nor the GPU says a tier; name it {known}"))
            continue
        if name in made:
            findings.append(Finding("(arguments)", None, "--pool", f"{name!r} is there twice"))
        limit = {"limit": {"start": int(match["limit"]), "pinned": True}} if match["limit"] else {}
        made[name] = {"tier": tier, "gpu": gpu_name, "model": model, "instances": match["urls"].split(","), **limit}
    if not pools:
        findings.append(Finding("(arguments)", None, "--pool", f"at least one pool, as {GRAMMAR}"))
    if findings:
        raise ConfigError(findings)
    data: dict[str, Any] = {"models": [{"name": model}], "pools": made, "listen": {}, "admin": {}}
    for section, key, value in (("listen", "port", over.port), ("listen", "host", over.host), ("admin", "port", over.admin_port)):
        if value is not None:
            data[section][key] = value
    if over.mode is not None:
        data["mode"] = over.mode
    if over.workers is not None:
        data["workers"] = over.workers
    if over.state is not None:
        data["state"] = {"url": over.state}
    try:
        settings = read_as(Settings, data)
    except ValidationError as error:
        raise ConfigError([Finding("(arguments)", None, dotted(tuple(one["loc"])), in_words(one)) for one in error.errors()]) from None
    return of_settings(settings)


def from_file(file: str | None, over: Over = Over()) -> Loaded:  # noqa: B008  (frozen)
    """What a file says (None: the one that ships), with the command line's on top. ConfigError names every mistake."""
    loaded = replace(load(file), document=None)  # what stands where was of use while it was read
    settings = loaded.settings
    listen: dict[str, Any] = {name: value for name, value in (("port", over.port), ("host", over.host)) if value is not None}
    update: dict[str, Any] = {"listen": replace(settings.listen, **listen)} if listen else {}
    if over.admin_port is not None:
        update["admin"] = replace(settings.admin, port=over.admin_port)
    if over.mode is not None:
        update["mode"] = Mode(over.mode)
    if over.workers is not None:
        update["workers"] = over.workers
    if over.state is not None:
        try:
            parse_state_url(over.state)
        except ValueError as wrong:
            raise ConfigError([Finding("(arguments)", None, "--state", f"expected {wrong}")]) from None
        update["state"] = replace(settings.state, url=over.state)
    settings = replace(settings, **update)
    return replace(loaded, settings=settings, shown=shown(settings))
