"""docs/admin.md names every endpoint of the operator's port, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.admin.control import ENDPOINTS
from gateway.admin.openapi import OPEN_PATHS

PAGE = (Path(__file__).parents[2] / "docs/admin.md").read_text()


def test_every_endpoint_is_documented_as_it_is() -> None:
    lines = PAGE.splitlines()
    for endpoint in ENDPOINTS:
        assert f"| `{endpoint.method} {endpoint.path}` | {endpoint.about} |" in lines
    for path, (about, _) in OPEN_PATHS.items():
        assert f"| `GET {path}` | {about} |" in lines


def test_nothing_is_documented_that_does_not_exist() -> None:
    documented = set(re.findall(r"^\| `((?:GET|POST) \S+)`", PAGE, re.MULTILINE))
    assert documented == {f"{e.method} {e.path}" for e in ENDPOINTS} | {f"GET {path}" for path in OPEN_PATHS}


def test_every_parameter_is_documented_with_its_values() -> None:
    for endpoint in ENDPOINTS:
        for name, about, allowed in endpoint.query:
            values = " ".join(f"`{value}`" for value in allowed) or "any"
            assert f"| `{name}` | {about} | {values} |" in PAGE.splitlines()
