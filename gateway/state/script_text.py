"""The texts of the scripts that run on the server: files beside this one, so that editors know what they are."""

from __future__ import annotations

from importlib.resources import files


def script_text(name: str) -> str:
    """The text of a `.lua` file of this room."""
    return files("gateway.state").joinpath(name).read_text()
