"""A server of the test's own: valkey, and redis too in the modules that ask for both kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.state.sharing import Server, redis_binary


@pytest.fixture
def kind() -> str:
    return "valkey"


@pytest.fixture
def server(kind: str, tmp_path: Path) -> Iterator[Server]:
    binary = redis_binary() if kind == "redis" else ""
    if kind == "redis" and not binary:
        pytest.skip("no redis-server installed")
    made = Server(tmp_path, binary)
    yield made
    made.go_on()
    made.kill()
