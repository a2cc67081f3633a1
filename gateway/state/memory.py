"""The store of a worker that is alone: a dict in this process. Nothing outlives it, nothing is waited for, nothing ever fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

from gateway.state.store import Arg, Health, Script


class MemoryStore:
    """In memory. A script needs its Python half (store.Script), which gets the live values: (value, expires at) by key."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.health = Health("memory")
        self._clock = clock
        self._values: dict[str, tuple[Any, float]] = {}

    def _live(self) -> dict[str, tuple[Any, float]]:
        now_s = self._clock()
        for key in [key for key, (_, until_s) in self._values.items() if until_s <= now_s]:
            del self._values[key]
        self.health.answered()
        return self._values

    async def get(self, key: str) -> bytes | None:
        value, _ = self._live().get(key, (None, 0.0))
        return value if isinstance(value, bytes) else None

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        self._live()[key] = (value, self._clock() + ttl_s)

    async def fields(self, keys: Sequence[str]) -> list[Mapping[str, bytes]]:
        values = self._live()
        found = [values.get(key, (None, 0.0))[0] for key in keys]
        return [dict(value) if isinstance(value, dict) else {} for value in found]

    async def put_fields(self, key: str, fields: Mapping[str, bytes], ttl_s: float) -> int:
        values = self._live()
        value, _ = values.get(key, (None, 0.0))
        known = value if isinstance(value, dict) else {}
        values[key] = ({**known, **fields}, self._clock() + ttl_s)
        return len(fields.keys() - known.keys())

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        if not isinstance(script, Script):
            raise self.health.failed("this script runs on a server only")
        return script.here(self._live(), keys, args, self._clock())

    async def close(self) -> None:
        self._values.clear()
