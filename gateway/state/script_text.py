"""The texts of the scripts that run on the server: files beside this one, so that editors know what they are."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def script_text(name: str) -> str:
    """A script over the records of all workers: records.lua, then the `.lua` file of this name."""
    return "".join((_HERE / part).read_text() for part in ("records.lua", name))
