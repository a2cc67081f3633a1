"""What workers that have gone remembered of single requests: kept by the supervisor, so that a rolling restart is not the end of `explain`.

A worker tells its last requests' decisions as the last thing it does; one that is killed takes them with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

MAX_BYTES = 32 * 1024 * 1024
"""some 2 kB a request: those of eight workers that remembered as many as they may"""

Story = tuple[str, bytes]  # the request's id, and what the admin API tells of it, as JSON


class Past:
    """Of those that went last, within MAX_BYTES; the worker that went first is forgotten first, all of it."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._by_worker: OrderedDict[str, dict[str, bytes]] = OrderedDict()
        self._max_bytes = max_bytes
        self._bytes = 0

    def take(self, worker: str, stories: Iterable[Story]) -> None:
        """Some of what one remembered. The first that is told of an id counts."""
        kept = self._by_worker.setdefault(worker, {})
        for request_id, story in stories:
            if request_id not in kept:
                kept[request_id] = story
                self._bytes += len(story) + len(request_id)
        while self._bytes > self._max_bytes and self._by_worker:
            _, forgotten = self._by_worker.popitem(last=False)
            self._bytes -= sum(len(story) + len(request_id) for request_id, story in forgotten.items())

    def of(self, request_id: str) -> bytes | None:
        """None when nobody remembered it, or it is forgotten."""
        for kept in reversed(self._by_worker.values()):
            if request_id in kept:
                return kept[request_id]
        return None
