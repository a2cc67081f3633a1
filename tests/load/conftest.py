"""The NOTICE, and shots without much in them."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def notice() -> str:
    return (Path(__file__).resolve().parents[2] / "NOTICE").read_text()
