"""What the requests that wait at this worker would use: any slot of their model, or one on the instance that suits them best.

Read from the core's queues by slots.py, when it asks for leases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gateway.core.decide import LOOK_AHEAD
from gateway.core.flow import Ticket
from gateway.core.queues import ModelQueues


def waiting_of(queues: ModelQueues) -> tuple[list[int], int]:
    """Sequences that wait for a model, by class rank, and the most that one request asks for."""
    most = most_choices(queues)
    counts = [lane.requests + (most - 1 if lane.requests else 0) for lane in queues.lanes]
    for ticket in next_of(queues):
        if ticket.wish is not None:
            counts[-1 if ticket.late else ticket.tag.rank] -= 1  # that one knows where it wants to go
    counts[-1] += queues.late.requests  # what is late anyway may use what the loosest may
    return [max(count, 0) for count in counts], most


def next_of(queues: ModelQueues) -> Iterator[Ticket]:
    """Those that the core looks at when a slot frees."""
    for lane in (*queues.lanes, queues.late):
        if lane.requests:
            yield from lane.heads(LOOK_AHEAD)


def wishes_of(all_queues: Iterable[ModelQueues]) -> dict[str, list[int]]:
    """Sequences that would start on an instance if there was a lease, by class rank."""
    wishes: dict[str, list[int]] = {}
    for queues in all_queues:
        for ticket in next_of(queues) if queues.waiting else ():
            if ticket.wish is not None:
                counts = wishes.setdefault(ticket.wish.spec.instance_id, [0] * len(queues.lanes))
                counts[-1 if ticket.late else ticket.tag.rank] += ticket.request.n
    return wishes


def most_choices(queues: ModelQueues) -> int:
    """The most sequences that one of those next in line asks for at once."""
    lanes = [lane for lane in (*queues.lanes, queues.late) if lane.requests]
    return max((ticket.request.n for lane in lanes for ticket in lane.heads(1)), default=1)
