"""What processes take of a machine: time on its cores, and time they could have run and had to wait for one. From Linux' /proc."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Burden:
    """Up to now, in seconds."""

    at_s: float
    ran_s: float
    waited_s: float

    def since(self, before: Burden) -> tuple[float, float]:
        """Milliseconds a second on a core, and waiting for one."""
        for_s = max(self.at_s - before.at_s, 1e-3)
        return (self.ran_s - before.ran_s) / for_s * 1e3, (self.waited_s - before.waited_s) / for_s * 1e3


def burden(pids: Iterable[int]) -> Burden:
    """Of these processes and all that they have started, every thread of them. What has ended counts no more."""
    ran_ns = waited_ns = 0
    todo = list(pids)
    while todo:
        for thread in Path(f"/proc/{todo.pop()}/task").glob("*"):
            try:
                ran, waited, _ = (thread / "schedstat").read_text().split()
                todo += map(int, (thread / "children").read_text().split())
            except (OSError, ValueError):
                continue
            ran_ns, waited_ns = ran_ns + int(ran), waited_ns + int(waited)
    return Burden(time.monotonic(), ran_ns / 1e9, waited_ns / 1e9)
