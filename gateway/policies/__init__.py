"""Scheduling policies, one a file: `policy(chance) -> Policy`. The file's name is the policy's name in the configuration."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import cast

from gateway.config.shipped import policy_names
from gateway.core.policy import Chance, Policy


def names() -> list[str]:
    """Those that come with the gateway."""
    return policy_names()


def load(name: str) -> Callable[[Chance], Policy]:
    """A policy by its name, or by a path to a file of one. ValueError when there is none."""
    if name.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        if spec is None or spec.loader is None or not Path(name).is_file():
            raise ValueError(f"{name}: no such policy file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        if name not in names():
            raise ValueError(f"no policy is named {name!r}; there are {', '.join(names())}")
        module = importlib.import_module(f"gateway.policies.{name}")
    made = getattr(module, "policy", None)
    if made is None:
        raise ValueError(f"{name}: a policy file offers `policy(chance) -> Policy`")
    return cast("Callable[[Chance], Policy]", made)
