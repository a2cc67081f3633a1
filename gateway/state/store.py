"""What workers and replicas share, behind one small interface: values, fields of a window, and atomic scripts on the server's time.

Called by background tasks only, never by a request. Every call ends within the store's timeout, is tried once, and raises StoreError and
nothing else. What is kept, under which key and in which format, is decided by those who keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol, Self

Arg = bytes | str | int | float


class StoreError(OSError):
    """The shared state could not be asked. `where` is its address, without secrets; the message says why."""

    def __init__(self, why: str, where: str) -> None:
        super().__init__(f"{where}: {why}")
        self.why = why
        self.where = where


class Script(str):
    """A script in the server's Lua, and the same in Python for the store in memory: `here(values, keys, args, now_s)`."""

    here: Callable[[dict[str, Any], Sequence[str], Sequence[Arg], float], Any]

    def __new__(cls, lua: str, here: Callable[[dict[str, Any], Sequence[str], Sequence[Arg], float], Any]) -> Self:
        made = super().__new__(cls, lua)
        made.here = here
        return made


@dataclass(slots=True)
class Health:
    """How the store does, by its latest answer. Instants are on the monotonic clock."""

    where: str
    connected: bool = False
    calls: int = 0
    errors: int = 0
    last_error: str = ""
    answered_at_s: float | None = None

    def answered(self) -> None:
        self.calls += 1
        self.connected = True
        self.answered_at_s = monotonic()

    def failed(self, why: str) -> StoreError:
        """Note it, and make the error to raise."""
        self.calls += 1
        self.errors += 1
        self.connected = False
        self.last_error = why
        return StoreError(why, self.where)

    def silent_s(self) -> float | None:
        """How long ago the last answer came, None when there was none yet."""
        return None if self.answered_at_s is None else monotonic() - self.answered_at_s


class Store(Protocol):
    """Shared state. Keys are whole names (names.py); a key holds either a value or fields."""

    health: Health

    async def get(self, key: str) -> bytes | None:
        """A value; None when there is none, or something else under its key."""
        ...

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep a value for `ttl_s`, whatever was there."""
        ...

    async def fields(self, keys: Sequence[str]) -> list[Mapping[str, bytes]]:
        """For each key its fields, none when it has none."""
        ...

    async def put_fields(self, key: str, fields: Mapping[str, bytes], ttl_s: float) -> int:
        """Set these fields beside the others of `key`, all of which are kept for `ttl_s` from now. How many were not there before."""
        ...

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        """Run a script, atomically. Strings in its answer are bytes."""
        ...

    async def close(self) -> None: ...
