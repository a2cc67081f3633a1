"""Waiting requests: one lane per (model, class), inside a lane the policy's order, between tenants shares in tokens by weight.

A lane offers its next tickets and is told which of them left; it knows nothing of instances. Tickets that can no longer be saved stand in
a lane of their own per model and are served after the others. A ticket that is `gone` or expired is dropped when it is next seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final, NamedTuple

from gateway.core.flow import CoreSettings, QueueLimits, RefuseReason, Ticket
from gateway.core.policy import Policy

LATE_RANK: Final = 1_000  # of the lane for tickets that cannot be saved


class QueueView(NamedTuple):
    """What operators see of a lane."""

    model: str
    experience_class: str
    requests: int
    bytes: int
    oldest_at_s: float
    late: int


class _Line:
    """One tenant's tickets in a lane, by the policy's order. `served` is the lane's virtual time at which its next one is due."""

    __slots__ = ("heap", "served", "tenant")

    def __init__(self, tenant: str, served: float) -> None:
        self.tenant = tenant
        self.heap: list[tuple[float, int, Ticket]] = []
        self.served = served


class Lane:
    """The queue of one class for one model. Between tenants it is start-time fair queueing over tokens: each ticket moves its tenant's
    virtual time on by its tokens over the tenant's weight, and the tenant that is furthest behind is next."""

    __slots__ = ("_lines", "_order", "_served", "_turns", "bytes", "experience_class", "model", "paid", "rank", "requests", "weights")

    def __init__(self, model: str, experience_class: str, rank: int, turns: bool, weights: dict[str, float]) -> None:
        self.model = model
        self.experience_class = experience_class
        self.rank = rank
        self.requests = 0
        self.bytes = 0
        self.weights = weights
        self.paid: dict[str, float] = {}  # tokens that each tenant has been served from here, ever
        self._turns = turns
        self._lines: dict[str, _Line] = {}
        self._served = 0.0
        self._order = 0

    def push(self, ticket: Ticket, order: float) -> None:
        """Stand in line."""
        tenant = ticket.request.tenant if self._turns else ""
        line = self._lines.get(tenant)
        if line is None:
            # Who was away has saved nothing up: it begins where the others are.
            line = self._lines[tenant] = _Line(tenant, self._served)
        self._order += 1
        heappush(line.heap, (order, self._order, ticket))
        ticket.lane = self
        self.requests += 1
        self.bytes += ticket.request.body_bytes

    def remove(self, ticket: Ticket) -> None:
        """It waits no longer. Its place in the heap is cleared when it comes up."""
        if ticket.lane is self:
            ticket.lane = None
            self.requests -= 1
            self.bytes -= ticket.request.body_bytes

    def heads(self, most: int) -> list[Ticket]:
        """The tickets that are next, fairest tenant first; at most one a tenant, or the first few of the only tenant there is."""
        lines = self._lines
        if len(lines) == 1:
            line = next(iter(lines.values()))
            head = self._head(line)
            if head is None:
                return []
            if most == 1 or len(line.heap) == 1:
                return [head]
            return self._first(line, most)
        heads: list[Ticket] = []
        for line in sorted(lines.values(), key=_served):
            head = self._head(line)
            if head is not None:
                heads.append(head)
                if len(heads) >= most:
                    break
        return heads

    def took(self, ticket: Ticket) -> None:
        """A ticket of `heads` has been given a place: its tenant pays for it."""
        line = self._lines.get(ticket.request.tenant if self._turns else "")
        self.remove(ticket)
        if line is not None:
            cost = ticket.request.prompt_tokens + ticket.expected_output_tokens
            self._served = max(self._served, line.served)
            line.served += cost / self.weights.get(line.tenant, 1.0)
            self.paid[line.tenant] = self.paid.get(line.tenant, 0.0) + cost

    def served_elsewhere(self, tenant: str, tokens: float) -> None:
        """Another worker has served a tenant so many tokens of this class: if it waits here as well, it has had that much already."""
        line = self._lines.get(tenant)
        if line is not None:
            line.served += tokens / self.weights.get(tenant, 1.0)

    def oldest_at_s(self) -> float:
        """When the oldest arrived; 0 when nobody waits. Walks the lane."""
        return min((ticket.request.arrived_at_s for ticket in self.tickets()), default=0.0)

    def tickets(self) -> Iterator[Ticket]:
        """All that wait, in no order."""
        for line in self._lines.values():
            for _, _, ticket in line.heap:
                if ticket.lane is self:
                    yield ticket

    def _head(self, line: _Line) -> Ticket | None:
        heap = line.heap
        while heap:
            ticket = heap[0][2]
            if ticket.lane is self:
                return ticket
            heappop(heap)
        del self._lines[line.tenant]
        return None

    def _first(self, line: _Line, most: int) -> list[Ticket]:
        heap = line.heap
        # The least two of a heap are among its first three, the least three among its first seven.
        found = [entry[2] for entry in sorted(heap[: 2**most - 1])[:most]]
        if all(ticket.lane is self for ticket in found):
            return found
        taken: list[tuple[float, int, Ticket]] = []
        while heap and len(taken) < most:
            entry = heappop(heap)
            if entry[2].lane is self:
                taken.append(entry)
        for entry in taken:
            heappush(heap, entry)
        return [entry[2] for entry in taken]


def _served(line: _Line) -> float:
    return line.served


@dataclass(slots=True)
class ModelQueues:
    """The lanes of one model, by rank, the late one last."""

    lanes: list[Lane]
    late: Lane
    waiting: int = 0


class Queues:
    """All lanes of all models."""

    def __init__(self, settings: CoreSettings, policy: Policy) -> None:
        self._settings = settings
        self._policy = policy
        self.by_model: dict[str, ModelQueues] = {}
        self.waiting = 0  # anywhere
        self._limits: dict[str, QueueLimits] = {c.name: c.limits for c in settings.classes}

    def of(self, model: str) -> ModelQueues:
        """A model's lanes."""
        found = self.by_model.get(model)
        if found is None:
            turns, weights = not self._policy.plain, self._settings.tenant_weights
            lanes = [Lane(model, c.name, c.rank, turns, weights) for c in self._settings.classes]
            found = self.by_model[model] = ModelQueues(lanes, Lane(model, "", LATE_RANK, turns, weights))
        return found

    def full(self, ticket: Ticket) -> RefuseReason | None:
        """Why one more of this class may not wait, None when it may."""
        lane = self.of(ticket.model).lanes[ticket.tag.rank]
        limits = self._limits[lane.experience_class]
        if lane.requests >= limits.max_requests:
            return RefuseReason.QUEUE_FULL
        if lane.bytes + ticket.request.body_bytes > limits.max_bytes:
            return RefuseReason.QUEUE_BYTES
        return None

    def push(self, ticket: Ticket) -> None:
        """Stand in line, among the late ones if it is late."""
        queues = self.of(ticket.model)
        lane = queues.late if ticket.late else queues.lanes[ticket.tag.rank]
        lane.push(ticket, self._policy.order(ticket))
        queues.waiting += 1
        self.waiting += 1

    def remove(self, ticket: Ticket) -> None:
        """It leaves without a place."""
        lane: Lane | None = ticket.lane
        if lane is not None:
            lane.remove(ticket)
            self.by_model[lane.model].waiting -= 1
            self.waiting -= 1

    def took(self, ticket: Ticket) -> None:
        """It leaves for a place."""
        lane: Lane | None = ticket.lane
        if lane is not None:
            lane.took(ticket)
            self.by_model[lane.model].waiting -= 1
            self.waiting -= 1

    def late(self, ticket: Ticket) -> None:
        """It can no longer be saved: behind all that can."""
        self.remove(ticket)
        ticket.late, ticket.seen_version = True, -1
        self.push(ticket)

    def served_elsewhere(self, model: str, experience_class: str, tenant: str, tokens: float) -> None:
        """Another worker has served a tenant so many tokens: between tenants it is the fleet's turns that are fair."""
        queues = self.by_model.get(model)
        if queues is not None:
            for lane in (*queues.lanes, queues.late):
                if lane.experience_class == experience_class:
                    lane.served_elsewhere(tenant, tokens)

    def paid(self) -> Iterator[tuple[str, str, str, float]]:
        """Model, class ("" = late), tenant, and the tokens it was ever served of what had waited."""
        for model, queues in self.by_model.items():
            for lane in (*queues.lanes, queues.late):
                for tenant, tokens in lane.paid.items():
                    yield model, lane.experience_class, tenant, tokens

    def ahead(self, model: str, rank: int) -> int:
        """Requests waiting for `model` in classes as tight as `rank` or tighter: what stands before a new one."""
        return sum(lane.requests for lane in self.of(model).lanes if lane.rank <= rank)

    def wishing(self, model: str) -> bool:
        """Does who is next wait for no more than a lease?"""
        queues = self.of(model)
        return any(ticket.wish is not None for lane in queues.lanes if lane.requests for ticket in lane.heads(1))

    def tickets(self) -> Iterator[Ticket]:
        """Everything that waits, anywhere."""
        for queues in self.by_model.values():
            for lane in (*queues.lanes, queues.late):
                yield from lane.tickets()

    def views(self) -> list[QueueView]:
        """For operators: lanes that hold somebody."""
        views: list[QueueView] = []
        for model, queues in self.by_model.items():
            late: dict[str, int] = {}
            for ticket in queues.late.tickets():
                late[ticket.tag.experience_class] = late.get(ticket.tag.experience_class, 0) + 1
            for lane in queues.lanes:
                name = lane.experience_class
                behind = late.get(name, 0)
                if lane.requests or behind:
                    oldest = [t.request.arrived_at_s for t in queues.late.tickets() if t.tag.experience_class == name]
                    if lane.requests:
                        oldest.append(lane.oldest_at_s())
                    views.append(QueueView(model, name, lane.requests + behind, lane.bytes, min(oldest), behind))
        return views

    def change(self, settings: CoreSettings) -> list[Ticket]:
        """Other classes or weights: everybody stands in line anew. Tickets of classes that are no more are given back."""
        tickets = list(self.tickets())
        self._settings = settings
        self._limits = {c.name: c.limits for c in settings.classes}
        self.by_model.clear()
        self.waiting = 0
        ranks = {c.name: c.rank for c in settings.classes}
        lost: list[Ticket] = []
        for ticket in sorted(tickets, key=lambda t: t.queued_at_s):
            ticket.lane = None
            rank = ranks.get(ticket.tag.experience_class)
            if rank is None:
                lost.append(ticket)
            else:
                ticket.tag.rank = rank
                self.push(ticket)
        return lost
