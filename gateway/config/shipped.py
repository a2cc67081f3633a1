"""Where the configuration files that come with the gateway are: config/ of a checkout, gateway/shipped/ of an installed package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(name: str) -> Path:
    """The path of a file that comes with the gateway. FileNotFoundError names both places that were looked at."""
    places = (_PACKAGE / "shipped" / name, _PACKAGE.parent / "config" / name)
    for path in places:
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name} is neither at {places[0]} nor at {places[1]}; reinstall slo-gateway")


def suites() -> Path:
    """The folder of the simulator's suites."""
    installed = _PACKAGE / "shipped" / "suites"
    return installed if installed.is_dir() else _PACKAGE.parent / "loadtests" / "suites"


def policy_names() -> list[str]:
    """The scheduling policies that come with the gateway, by their files; none of them is imported."""
    return sorted(path.stem for path in (_PACKAGE / "policies").glob("*.py") if not path.stem.startswith("_"))
