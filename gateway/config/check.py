"""What is right in a configuration but unwise: promises that cannot hold, names that hide one another, secrets in the clear.

Warnings only; what is wrong never gets past load.py.
"""

from __future__ import annotations

import re
from math import inf

from gateway.config.catalog import UseCase
from gateway.config.gpus import Gpus, StepTimes, shipped_gpus
from gateway.config.loaded import Finding, Loaded, dotted, is_loopback
from gateway.config.mistakes import nearest_name
from gateway.config.settings import Pool
from gateway.config.state_server import SERVER_REMEDY, server_binary

_PARAMETERS = re.compile(r"(\d+(?:\.\d+)?)\s*b\b", re.IGNORECASE)
_WEIGHT_BYTES = {"w8": 1.0, "w4": 0.55}
# Beyond this share of the GPU's memory for weights, nothing is left to serve with.
_WEIGHTS_SHARE = 0.9


def warnings(loaded: Loaded, gpus: Gpus | None = None) -> list[Finding]:
    """Every warning, with its place where it has one."""
    gpus = gpus or shipped_gpus()
    found = _looser(loaded) + _aliases(loaded) + _promises(loaded, gpus) + _open(loaded) + _secrets(loaded) + _workers(loaded)
    return sorted(found, key=lambda finding: finding.place or (0, 0))


def _finding(loaded: Loaded, path: tuple[str | int, ...], message: str, nearest: str = "") -> Finding:
    place = loaded.document.place_of(path) if loaded.document is not None else None
    return Finding(str(loaded.path) if loaded.path else "(arguments)", place, dotted(path), message, nearest)


def _looser(loaded: Loaded) -> list[Finding]:
    catalog = loaded.catalog
    found = []
    for name, use_case in catalog.use_cases.items():
        own, theirs = use_case.targets.slo, catalog.class_targets(use_case.experience_class)
        for word, mine, tolerance in (("ttft", own.ttft_s, theirs.ttft_s), ("itl", own.itl_s, theirs.itl_s)):
            if mine > tolerance:
                message = (
                    f"{word} of {mine * 1000:.0f} ms is looser than its class {use_case.experience_class} "
                    f"tolerates ({tolerance * 1000:.0f} ms); its own target wins"
                )
                if name in loaded.settings.use_cases:
                    found.append(_finding(loaded, ("use_cases", name), message))
                else:  # as the catalogue has it
                    found.append(Finding(loaded.settings.catalog or "catalog.yaml", None, f"use_cases.{name}", message))
    return found


def _aliases(loaded: Loaded) -> list[Finding]:
    names = {model.name for model in loaded.settings.models}
    seen: dict[str, str] = {}
    found = []
    for index, model in enumerate(loaded.settings.models):
        for alias in model.aliases:
            path = ("models", index, "aliases", alias)
            if alias in names:
                found.append(_finding(loaded, path, f"shadows the model {alias}, which wins"))
            elif alias in seen:
                found.append(_finding(loaded, path, f"is an alias of {seen[alias]} too; the last one wins"))
            seen[alias] = model.name
    return found


def _promises(loaded: Loaded, gpus: Gpus) -> list[Finding]:
    """Use cases that no pool, or that a preferred pool, could serve even if it were idle."""
    settings, catalog = loaded.settings, loaded.catalog
    found = []
    known: dict[str, StepTimes] = {}
    for name, pool in settings.pools.items():
        gpu = gpus.find(pool.gpu)
        if gpu is None:
            if pool.gpu:
                message = f"the GPU {pool.gpu} is unknown: predictions begin from a guess"
                found.append(_finding(loaded, ("pools", name, "gpu"), message, nearest_name(pool.gpu, list(gpus.gpus))))
            continue
        times = gpu.step_times(pool.engine_config)
        needed = _weight_bytes(pool)
        if times is None or needed > gpu.memory_bytes * _WEIGHTS_SHARE:
            message = f"{pool.model} does not fit a {gpu.name} at 16 bits; say engine_config: w8 or w4 if its weights are smaller"
            found.append(_finding(loaded, ("pools", name, "gpu"), message))
            continue
        known[name] = times
    for model in settings.models:
        pools = {name: pool for name, pool in settings.pools.items() if pool.model == model.name}
        if not pools:
            found.append(_finding(loaded, ("models",), f"no pool serves {model.name}"))
            continue
        judged = {name: known[name] for name in pools if name in known}
        if len(judged) < len(pools) or not judged:
            continue
        for name, use_case in catalog.use_cases.items():
            missing = {pool: _misses(times, use_case, loaded) for pool, times in judged.items()}
            if all(missing.values()):
                what = "; ".join(f"{pool}: {why}" for pool, why in missing.items())
                found.append(
                    _finding(loaded, ("pools",), f"{name} can never keep its promise on {model.name}, even on an idle instance ({what})")
                )
                continue
            preferred = catalog.classes[use_case.experience_class].tiers[0]
            for at, why in missing.items():
                if why and pools[at].tier == preferred:
                    message = f"{name} prefers the tier {preferred}, but can never keep its promise there ({why}); it goes to other pools"
                    found.append(_finding(loaded, ("pools", at), message))
    return found


def _weight_bytes(pool: Pool) -> float:
    match = _PARAMETERS.search(pool.model.replace("-", " ").replace("_", " "))
    if match is None:
        return 0.0
    words = pool.engine_config.lower().replace("-", " ").split()
    return float(match[1]) * 1e9 * next((size for word, size in _WEIGHT_BYTES.items() if word in words), 2.0)


def _misses(times: StepTimes, use_case: UseCase, loaded: Loaded) -> str:
    """What an idle instance would miss of a use case's own promise, "" when nothing."""
    profile = loaded.catalog.profiles[use_case.profile]
    own = use_case.targets.slo
    ttft_s = times.idle_ttft_s(profile.prompt_tokens)
    itl_s = times.idle_itl_s(profile.prompt_tokens, profile.output_tokens)
    e2e_s = times.idle_e2e_s(profile.prompt_tokens, profile.output_tokens)
    missed = []
    for word, takes_s, target_s in (("ttft", ttft_s, own.ttft_s), ("itl", itl_s, own.itl_s), ("e2e", e2e_s, own.e2e_s)):
        if takes_s > target_s:
            missed.append(f"{word} {_shown(takes_s)} against {_shown(target_s)}")
    return ", ".join(missed)


def _shown(seconds: float) -> str:
    return "never" if seconds == inf else f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _open(loaded: Loaded) -> list[Finding]:
    settings = loaded.settings
    if settings.keys or is_loopback(settings.listen.host):
        return []
    return [
        _finding(loaded, ("listen", "host"), "no keys are configured and this is not loopback: everybody who can connect may use the GPUs")
    ]


def _workers(loaded: Loaded) -> list[Finding]:
    settings = loaded.settings
    if settings.workers == 1 or settings.state.url or server_binary():
        return []
    return [_finding(loaded, ("workers",), f"they need a server for what they share, and this machine has none: {SERVER_REMEDY}")]


def _secrets(loaded: Loaded) -> list[Finding]:
    """A secret that stands in the file itself."""
    document = loaded.document
    if document is None:
        return []
    text = document.text
    found = []
    for path, secret in _every_secret(loaded):
        if secret and secret in text:
            found.append(_finding(loaded, path, "a secret in the clear; write ${ENVIRONMENT_VARIABLE} or file:PATH, or a key's sha256"))
    return found


def _every_secret(loaded: Loaded) -> list[tuple[tuple[str | int, ...], str]]:
    settings = loaded.settings
    secrets: list[tuple[tuple[str | int, ...], str]] = []
    if settings.admin.key is not None:
        secrets.append((("admin", "key"), settings.admin.key.get_secret_value()))
    if settings.state.password is not None:
        secrets.append((("state", "password"), settings.state.password.get_secret_value()))
    for index, key in enumerate(settings.keys):
        if key.key is not None:
            secrets.append((("keys", index, "key"), key.key.get_secret_value()))
    for name, pool in settings.pools.items():
        if pool.upstream.api_key is not None:
            secrets.append((("pools", name, "upstream", "api_key"), pool.upstream.api_key.get_secret_value()))
    return secrets
