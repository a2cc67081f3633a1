"""What users got, against what they were promised: counted per cell, over the whole run and over windows.

A *cell* is one (experience class, use case, pool, model, endpoint); a request that never reached a pool has pool "". The definitions:

- **attained**: completed, and TTFT, TPOT (against the ITL target) and E2E all within target; **attained_strict** takes the p95 of the
  request's own gaps instead of TPOT. A request whose client can see nothing but the end (not streamed) is judged by E2E only.
- **offered** = completed + refused + failed: attainment is over all that was asked. A client's own disconnect (**client_gone**) and a
  mistake that is the caller's own (**client_error**: the engine answered 4xx, but not 408 or 429) are left out and counted apart.

Targets are those of the ticket's tag, so a request that accepted a looser class is judged by that class. Time comes in as an argument;
who asks, and how it is printed, is the business of telemetry/ and admin/.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.core.flow import Outcome, Placement, Result, SloTargets, Ticket
from gateway.measure.histogram import (
    OTEL_DURATION_EDGES_S,
    OTEL_TPOT_EDGES_S,
    OTEL_TTFT_EDGES_S,
    QUEUE_EDGES_S,
    Edges,
)
from gateway.measure.tally import Counts, Tally, TallyEdges
from gateway.measure.windows import TICKS_TO_PACK, Merged, Windows

if TYPE_CHECKING:
    from gateway.config.catalog import Catalog

MAX_TENANTS: Final = 1000  # tenants counted apart; those that come later share OTHER_TENANTS
OTHER_TENANTS: Final = "(others)"
MAX_CELLS: Final = 4096  # classes x use cases x pools x models of any sane deployment; what comes later shares one cell


class CellKey(NamedTuple):
    """Whose samples these are: the labels of every per-request metric."""

    experience_class: str
    use_case: str
    pool: str  # "" = never placed
    model: str
    endpoint: str


class Cell:
    """`now` is the open window's tally and takes every sample; it is exchanged for a fresh one when the window closes."""

    __slots__ = ("_closed", "_total", "key", "now")

    def __init__(self, key: CellKey, edges: TallyEdges) -> None:
        self.key = key
        self.now = Tally(edges)
        self._total = Tally(edges)
        self._closed: list[Tally] = []

    def close(self) -> Tally:
        """The open window's tally, which takes no more samples from now on."""
        closed = self.now
        self.now = Tally(closed.edges)
        self._closed.append(closed)
        return closed

    def change_edges(self, edges: TallyEdges) -> None:
        """Count exactly at other targets from now on."""
        self.fold()
        for name in ("now", "_total"):
            moved = Tally(edges)
            moved.merge(getattr(self, name))
            setattr(self, name, moved)

    def fold(self) -> None:
        """Add what was closed to the total. Without it closed tallies would gather for as long as nobody asks."""
        for closed in self._closed:
            self._total.merge(closed)
        self._closed.clear()

    def total(self) -> Tally:
        """Everything since the start, as a tally of its own; costs some 50 us."""
        self.fold()
        total = self._total.copy()
        total.merge(self.now)
        return total


@dataclass(slots=True)
class Verdict:
    """What a completed request's outcome is worth; `offered` is false for what counts neither way."""

    offered: bool
    attained: bool = False
    attained_strict: bool = False
    missed_ttft: bool = False
    missed_itl: bool = False
    missed_e2e: bool = False


NOT_OFFERED: Final = Verdict(offered=False)
NOT_COMPLETED: Final = Verdict(offered=True)
_ATTAINED: Final = Verdict(offered=True, attained=True, attained_strict=True)


def judge(outcome: Outcome, targets: SloTargets, stream: bool) -> Verdict:
    """The verdict on one outcome; never changed by those who get it."""
    result = outcome.result
    if result is not Result.COMPLETED:
        return NOT_OFFERED if result is Result.CLIENT_GONE or is_client_error(outcome) else NOT_COMPLETED
    missed_e2e = outcome.e2e_s is not None and outcome.e2e_s > targets.e2e_s
    if not stream:
        return _ATTAINED if not missed_e2e else Verdict(offered=True, missed_e2e=True)
    missed_ttft = outcome.ttft_s is not None and outcome.ttft_s > targets.ttft_s
    missed_itl = outcome.tpot_s is not None and outcome.tpot_s > targets.itl_s
    p95_late = outcome.itl_p95_s is not None and outcome.itl_p95_s > targets.itl_s
    if not (missed_ttft or missed_itl or missed_e2e or p95_late):
        return _ATTAINED
    in_time = not (missed_ttft or missed_e2e)
    return Verdict(True, in_time and not missed_itl, in_time and not p95_late, missed_ttft, missed_itl, missed_e2e)


def is_client_error(outcome: Outcome) -> bool:
    """The caller's own mistake, as the engine says: no promise was broken."""
    return outcome.result is not Result.REFUSED and 400 <= outcome.status < 500 and outcome.status not in (408, 429, 499)


def tally_edges(targets: Iterable[SloTargets]) -> TallyEdges:
    """OTel's boundaries and every target given, limits included."""
    every = list(targets)
    ttft = {t.ttft_s for t in every}
    itl = {t.itl_s for t in every}
    e2e = {t.e2e_s for t in every} | {t.e2e_limit_s for t in every}
    return TallyEdges(
        ttft=Edges({*OTEL_TTFT_EDGES_S, *ttft}),
        itl=Edges({*OTEL_TPOT_EDGES_S, *itl}),
        tpot=Edges({*OTEL_TPOT_EDGES_S, *itl}),
        e2e=Edges({*OTEL_DURATION_EDGES_S, *e2e}),
        queue=Edges(QUEUE_EDGES_S),
    )


def edges_of(catalog: Catalog) -> TallyEdges:
    """Where counts are exact: at every target that the catalogue can promise."""
    classes = [catalog.class_targets(name) for name in catalog.classes]
    return tally_edges(classes + [catalog.targets_for(use_case, name) for use_case in catalog.use_cases for name in catalog.classes])


class Attainment:
    """All cells and tenants of one process. `observe` once a request, `tick` about once a second."""

    def __init__(self, edges: TallyEdges, now_s: float) -> None:
        self.edges = edges
        self.cells: dict[tuple[str, ...], Cell] = {}  # by CellKey
        self.tenants: dict[str, Counts] = {}  # of the open window
        self.windows = Windows(edges, now_s)
        self._to_fold: list[Cell] = []
        self._share = 0

    def cell(self, ticket: Ticket, pool: str) -> Cell:
        """The cell of a ticket, placed in `pool` or ("") not at all."""
        tag, request = ticket.tag, ticket.request
        # A plain tuple finds the named one, and is made in a third of the time.
        key = (tag.experience_class, tag.use_case, pool, request.model, request.endpoint._value_)
        found = self.cells.get(key)
        return found if found is not None else self._new_cell(CellKey(*key))

    def _new_cell(self, key: CellKey) -> Cell:
        if len(self.cells) >= MAX_CELLS:
            key = CellKey(key.experience_class, "(others)", "", "(others)", key.endpoint)
        cell = self.cells.get(key)
        if cell is None:
            cell = self.cells[key] = Cell(key, self.edges)
        return cell

    def observe(self, subject: Placement | Ticket, outcome: Outcome, now_s: float) -> Verdict:
        """Count one outcome. `subject` is the placement, or the ticket of a request that never had one."""
        if isinstance(subject, Placement):
            ticket, pool = subject.ticket, subject.pool
        else:
            ticket, pool = subject, ""
        tally = self.cell(ticket, pool).now
        verdict = judge(outcome, ticket.tag.targets, ticket.request.stream)
        tenant = self.tenants.get(ticket.request.tenant)
        if tenant is None:
            tenant = self._new_tenant(ticket.request.tenant)
        if outcome.result is Result.COMPLETED and verdict.offered:
            stream = ticket.request.stream
            if outcome.e2e_s is not None:
                tally.e2e.record(outcome.e2e_s)
            if stream and outcome.ttft_s is not None:
                tally.ttft.record(outcome.ttft_s)
            if stream and outcome.tpot_s is not None:
                tally.tpot.record(outcome.tpot_s)
            tally.queue.record(outcome.queue_s)
            tally.completed += 1
            tenant.completed += 1
            if verdict.attained:
                tally.attained += 1
                tenant.attained += 1
            if verdict.attained_strict:
                tally.attained_strict += 1
                tenant.attained_strict += 1
            if verdict is not _ATTAINED:
                tally.missed_ttft += verdict.missed_ttft
                tally.missed_itl += verdict.missed_itl
                tally.missed_e2e += verdict.missed_e2e
        else:
            tally.count_uncompleted(outcome, verdict.offered)
            tenant.count_uncompleted(outcome, verdict.offered)
        if ticket.degraded_from:
            tally.degraded += 1
        if outcome.prompt_tokens:
            tally.prompt_tokens += outcome.prompt_tokens
            tally.cached_tokens += outcome.cached_tokens
            tally.output_tokens += outcome.output_tokens
            tenant.prompt_tokens += outcome.prompt_tokens
            tenant.output_tokens += outcome.output_tokens
        return verdict

    def _new_tenant(self, tenant: str) -> Counts:
        if len(self.tenants) >= MAX_TENANTS:
            tenant = OTHER_TENANTS
        found = self.tenants.get(tenant)
        if found is None:
            found = self.tenants[tenant] = Counts()
        return found

    def change_edges(self, edges: TallyEdges) -> None:
        """The targets have changed: count exactly at these from now on. What was counted stays, at new edges to a bucket's width."""
        if edges.key == self.edges.key:
            return
        self.edges = edges
        self.windows.change_edges(edges)
        for cell in self.cells.values():
            cell.change_edges(edges)

    def tick(self, now_s: float) -> None:
        """Close the windows that are over and pack a share of what was closed. Call it about once a second."""
        if now_s >= self.windows.next_close_at_s:
            self._to_fold.extend(cell for cell in self.cells.values() if cell.now)
            self._share = -(-len(self._to_fold) // TICKS_TO_PACK)
            self.windows.close(self.cells, self.tenants, now_s)
            self.tenants.clear()
        self.windows.work()
        for _ in range(min(self._share, len(self._to_fold))):
            self._to_fold.pop().fold()

    def merging(self, now_s: float, window_s: float) -> Generator[None, None, Merged]:
        """What every cell and tenant had in the last `window_s` seconds, in small steps: see Windows.merging."""
        return self.windows.merging(self.cells, self.tenants, now_s, window_s)

    def merged(self, now_s: float, window_s: float) -> Merged:
        """The same in one go."""
        steps = self.merging(now_s, window_s)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                answer: Merged = end.value
                return answer
