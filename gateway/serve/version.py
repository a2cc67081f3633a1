"""Which version runs, how, and since when: what a worker and a supervisor say of themselves alike."""

from __future__ import annotations

import platform
import time

import gateway
from gateway.admin.views import VersionView
from gateway.config.loaded import Loaded


def version_view(loaded: Loaded, started_unix_s: float) -> VersionView:
    """Of a process that began then, under this configuration."""
    settings = loaded.settings
    return VersionView(
        version=gateway.__version__,
        python=platform.python_version(),
        mode=settings.mode.value,
        policy=settings.policy,
        started_unix_s=started_unix_s,
        uptime_s=time.time() - started_unix_s,
        config_hash=loaded.digest,
    )
