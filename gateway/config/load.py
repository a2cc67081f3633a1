"""Reads gateway.yaml and the catalogue: either both are right, or every mistake is told at once, each with its place and the nearest
right name. What is right but unwise is check.py's business.
"""

from __future__ import annotations

import copy
import hashlib
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from gateway.config import sentence_model
from gateway.config.catalog import Catalog
from gateway.config.changes import catalog_with
from gateway.config.document import Document, DocumentError, plain_yaml, read
from gateway.config.gpus import shipped_gpus
from gateway.config.loaded import ConfigError, Finding, Loaded, Place, dotted, is_loopback
from gateway.config.mistakes import UNKNOWN_KEY, in_words, nearest_name, told
from gateway.config.reading import read_as, shown
from gateway.config.settings import Settings, State, Upstream
from gateway.config.shipped import policy_names, shipped

FORBIDDEN_HOSTS = ("metadata.google.internal", "169.254.169.254", "fd00:ec2::254", "100.100.100.200")


def load(path: str | Path | None = None) -> Loaded:
    """The file at `path`, or the one that comes with the gateway. ConfigError names every mistake."""
    file = Path(path) if path is not None else shipped("gateway.yaml")
    try:
        document = read(file)
    except DocumentError as error:
        raise ConfigError([Finding(str(file), error.place, "", error.message)]) from None
    findings = [
        Finding(str(file), document.place_of(where), dotted(where), f"the environment variable {name} is not set")
        for where, name in document.missing
    ]
    settings: Settings | None = None
    if not isinstance(document.data, dict):
        findings.append(Finding(str(file), Place(1, 1), "", "expected keys such as models and pools"))
    else:
        try:
            settings = read_as(Settings, document.data, file.parent)
        except ValidationError as error:
            findings += told(error, document, Settings)
            findings += _behind(error, document, file)
    if settings is None:
        raise ConfigError(sorted(findings, key=lambda f: f.place or Place(0, 0)))
    loaded = _joined(settings, file, document, findings)
    return loaded


_LOOKED_UP = ("models", "catalog", "use_cases", "classes")


def _behind(error: ValidationError, document: Document, file: Path) -> list[Finding]:
    """What else is wrong, found in the rest of the file: references are judged without the values that are no good themselves. Not
    where one of those is itself looked up in: what is missing then may only be what was left out."""
    data = copy.deepcopy(document.data)
    for one in error.errors():
        path = list(one["loc"])
        if one["type"] == "missing":
            path.pop()
        if not path or (path[0] in _LOOKED_UP and one["type"] != UNKNOWN_KEY):
            return []
        here: Any = data
        part: Any
        for part in path[:-1]:
            inside = part in here if isinstance(here, dict) else isinstance(here, list)
            here = here[part] if inside else {}
        if isinstance(here, dict):
            here.pop(path[-1], None)
    try:
        rest = read_as(Settings, data, file.parent)
        _joined(rest, file, document, [])
    except ValidationError:
        return []
    except ConfigError as more:
        return more.findings
    return []


def of_settings(settings: Settings) -> Loaded:
    """Settings that came from somewhere else (the command line). ConfigError as from a file."""
    return _joined(settings, None, None, [])


def _joined(settings: Settings, file: Path | None, document: Document | None, findings: list[Finding]) -> Loaded:
    name = str(file) if file is not None else "(arguments)"
    catalog = shipped_catalog()
    if settings.catalog:
        own = (file.parent if file is not None else Path()) / settings.catalog
        try:
            catalog = load_catalog(own)
        except ConfigError as error:
            findings += error.findings
    try:
        catalog = catalog_with(catalog, settings)
    except ValidationError as error:
        for one in error.errors():
            where = tuple(one["loc"])
            findings.append(Finding(name, document.place_of(where) if document else None, dotted(where), in_words(one)))
    known = {str(finding) for finding in findings}
    for where, message, wrong, right in wrong_references(settings, catalog):
        nearest = nearest_name(wrong, right)
        finding = Finding(name, document.place_of(where) if document else None, dotted(where), message, nearest)
        if str(finding) not in known:
            findings.append(finding)
    if findings:
        raise ConfigError(sorted(findings, key=lambda f: (f.file, f.place or Place(0, 0))))
    as_shown = shown(settings)
    digest = hashlib.sha256(as_shown + shown(catalog)).hexdigest()[:16]
    return Loaded(settings, catalog, shipped_gpus(), digest, as_shown, file, document)


def load_catalog(path: Path) -> Catalog:
    """A catalogue file. ConfigError names every mistake."""
    try:
        document = read(path)
        catalog = read_as(Catalog, document.data, path.parent)
    except DocumentError as error:
        raise ConfigError([Finding(str(path), error.place, "", error.message)]) from None
    except ValidationError as error:
        raise ConfigError(told(error, document, Catalog)) from None
    wrong = [
        Finding(str(path), document.place_of(where), dotted(where), f"'{name}' is not {what}", nearest_name(name, right))
        for where, name, what, right in catalog.wrong_references()
    ]
    if wrong:
        raise ConfigError(wrong)
    return catalog


@cache
def shipped_catalog() -> Catalog:
    """The catalogue that comes with the gateway."""
    path = shipped("catalog.yaml")
    return read_as(Catalog, plain_yaml(path), path.parent)


def wrong_references(settings: Settings, catalog: Catalog) -> list[tuple[tuple[str | int, ...], str, str, list[str]]]:
    """What needs the whole file to be judged, as (path, message, the wrong name, names that exist)."""
    wrong: list[tuple[tuple[str | int, ...], str, str, list[str]]] = []

    def expect(name: str | None, known: Any, what: str, *path: str | int) -> None:
        if name is not None and name not in known:
            wrong.append((path, f"'{name}' is not {what}", name, list(known)))

    expect(settings.policy, policy_names(), "a scheduling policy", "policy")
    models = {model.name: model for model in settings.models}
    for index, model in enumerate(settings.models):
        for at, fallback in enumerate(model.fallbacks):
            expect(fallback, models, "one of the models", "models", index, "fallbacks", at)
        for alias, said in model.aliases.items():
            expect(said.use_case, catalog.use_cases, "a use case", "models", index, "aliases", alias, "use_case")
            expect(said.experience_class, catalog.classes, "an experience class", "models", index, "aliases", alias, "experience_class")
    names: dict[str, int] = {}
    for index, model in enumerate(settings.models):
        if model.name in names:
            wrong.append((("models", index, "name"), f"'{model.name}' is there twice", "", []))
        names[model.name] = index
    addresses: dict[tuple[str, str], str] = {}
    for name, pool in settings.pools.items():
        expect(pool.model, models, "one of the models", "pools", name, "model")
        expect(pool.tier, catalog.tiers, "a tier", "pools", name, "tier")
        for at, url in enumerate(pool.instances):
            problem = _address_problem(url, settings)
            if problem:
                wrong.append((("pools", name, "instances", at), problem, "", []))
            if (url, pool.model) in addresses:
                other = addresses[url, pool.model]
                wrong.append((("pools", name, "instances", at), f"{url} serves this model in pool {other} already", "", []))
            addresses[url, pool.model] = name
        if pool.limit.min > pool.limit.max:
            wrong.append((("pools", name, "limit", "max"), "a limit's max is not below its min", "", []))
        wrong += [(("pools", name, "upstream", *path), problem, "", []) for path, problem in _certificate_problems(pool.upstream)]
    ids: set[str] = set()
    for index, key in enumerate(settings.keys):
        if (key.sha256 is None) == (key.key is None):
            wrong.append((("keys", index), "exactly one of sha256 and key", "", []))
        if key.id in ids:
            wrong.append((("keys", index, "id"), f"'{key.id}' is there twice", "", []))
        ids.add(key.id)
        for at, name in enumerate(key.classes):
            expect(name, catalog.classes, "an experience class", "keys", index, "classes", at)
        expect(key.use_case, catalog.use_cases, "a use case", "keys", index, "use_case")
        expect(key.experience_class, catalog.classes, "an experience class", "keys", index, "experience_class")
        for name in key.quota.classes if key.quota is not None else ():
            expect(name, catalog.classes, "an experience class", "keys", index, "quota", "classes", name)
    wrong += [(("state", *path), problem, "", []) for path, problem in _certificate_problems(settings.state)]
    expect(settings.classify.fallback, catalog.use_cases, "a use case", "classify", "fallback")
    for true, taken in settings.classify.costs.pairs.items():
        for name in (true, *taken):
            expect(name, catalog.use_cases, "a use case", "classify", "costs", "pairs", true)
    if settings.classify.second_opinion and not sentence_model.is_installed():
        problem = f"there is no sentence model to give one: {sentence_model.REMEDY}"
        wrong.append((("classify", "second_opinion"), problem, "", []))
    if settings.classify.second_opinion and not settings.classify.learned:
        wrong.append((("classify", "second_opinion"), "with learned: false there is no first opinion", "", []))
    for name in settings.classes:
        expect(name, catalog.classes, "an experience class", "classes", name)
    for at, name in enumerate(settings.coalesce.classes):
        expect(name, catalog.classes, "an experience class", "coalesce", "classes", at)
    for where, name, what, right in catalog.wrong_references():
        wrong.append((where, f"'{name}' is not {what}", name, right))
    if settings.admin.key is None and not is_loopback(settings.admin.host):
        wrong.append((("admin", "key"), "a key is needed when the admin port is not on loopback", "", []))
    return wrong


def _address_problem(url: str, settings: Settings) -> str:
    try:
        parts = urlsplit(url)
        port_is_good = parts.port != 0
    except ValueError:
        return "expected an address such as http://host:8000"
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_good or parts.query or parts.fragment:
        return "expected an address such as http://host:8000"
    if parts.username or parts.password:
        return "expected an address without a password; an engine's key goes to upstream.api_key"
    if parts.path.rstrip("/").endswith("/v1"):
        return "expected an address without /v1"
    host = parts.hostname.lower()
    if (host in FORBIDDEN_HOSTS or host.startswith(("169.254.", "fe80:"))) and host not in settings.allow_addresses:
        return f"{host} is a link-local or metadata address; list it in allow_addresses if it is meant"
    return ""


def _certificate_problems(section: Upstream | State) -> list[tuple[tuple[str, ...], str]]:
    """Certificates that cannot be used are found here, and not when the first connection is made with them."""
    ca, cert, key = section.ca_file, section.cert_file, section.key_file
    if bool(cert) != bool(key):
        return [((), "cert_file and key_file go together")]
    if not ca and not cert:
        return []
    files = (("ca_file", ca), ("cert_file", cert), ("key_file", key))
    missing: list[tuple[tuple[str, ...], str]] = [((name,), "no such file") for name, file in files if file and not Path(file).is_file()]
    if missing:
        return missing
    import ssl  # only where there are certificates

    try:
        ssl.create_default_context(cafile=ca or None)
    except OSError:
        return [(("ca_file",), "no certificate of an authority is in it")]
    try:
        if cert:
            ssl.create_default_context().load_cert_chain(cert, key, password="")
    except OSError:
        return [(("cert_file",), "it and key_file are not a certificate and its key, in PEM and without a password")]
    return []
