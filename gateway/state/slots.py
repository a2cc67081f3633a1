"""In-flight limits held together by many workers: each one uses only the slots it has leased, and asks for what it needs.

Several times a second a worker tells what it has running and waiting, reads what the others have, works out its share (shares.py) and
leases it, all in one atomic call (slots.lua). Never on the request path: the core is told how many slots it may use, as an event. A
lease stands for STANDS_S, and half as long again on the server: then what a killed worker held is anybody's.

Some slots are nobody's, and the core knows how many. A request that is best served by one of them waits in its queue for the one call
that leases it; a slot that somebody else waits for is given back as soon as what ran on it has ended.

Without an answer the last leases hold until they run out. After that, as configured: `open` goes on with a fixed share of each limit,
`closed` uses no slot. What the limit of an instance is, the controller says (core/enforce); where workers differ, the lowest that is
vouched for by somebody with work there is in force.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any
from zlib import crc32

import msgspec

from gateway.core.flow import UNSHARED, Lease
from gateway.core.instance import Instance
from gateway.live import Live
from gateway.state.looks import Bell, again
from gateway.state.script_text import script_text
from gateway.state.shares import shares, static_share
from gateway.state.store import Store, StoreError
from gateway.state.wants import most_choices, next_of, waiting_of, wishes_of

log = logging.getLogger("slo_gateway")

STANDS_S = 1.2
"""how long a worker goes by a lease without renewal"""
KEPT_RATIO = 1.5
"""for so many times longer the server keeps it from others: a call that is under way, or a worker that had no time to run, is late"""
EVERY_S = 0.15
"""between renewals"""
EACH_S = 0.008
FRESH_S = 0.05
"""the same where others place requests beside ours: so much for each worker, but FRESH_S at least and EVERY_S at most; prompts that two
workers send to one engine within that time know nothing of one another"""
IDLE_S = 0.3
"""the same for a worker that has nothing running and nothing waiting; two calls may still be lost before a lease has run out"""
LOOK_S = 0.03
"""the same while somebody waits for a slot that others hold"""
BORROW_S = 0.01
"""the same, between calls to lease a slot that nobody holds, or to give one back that somebody waits for"""
TURN_S = 1.0
"""for how long the same worker comes first when something cannot be divided"""
DECLINED_S = 0.5
"""a slot that waiting work did not take is not asked for again for this long: that work cannot use this instance"""
MOST_STAKE_PER_S = 1e6
"""that others are believed: thousands of requests that a delay of a second would ruin"""

SCRIPT = script_text("slots.lua")


class Row(msgspec.Struct, array_like=True):
    """What a worker says of one instance: slots leased, limit it vouches for, and its load there."""

    leased: int
    word: int
    figures: tuple[int, int, int, tuple[int, ...]]  # in flight, unprefilled tokens, context tokens, needs by class rank
    promises: tuple[float, float] = (0.0, 0.0)  # what a second of delay costs what runs there, its tightest ITL target, 0 = none


class Record(msgspec.Struct, array_like=True):
    """What a worker says of all."""

    expires_at_ms: int
    rows: dict[str, Row]


_records = msgspec.msgpack.Decoder(Record)
_grants = msgspec.msgpack.Decoder(list[tuple[int, int]])


@dataclass(slots=True)
class _Share:
    """What is known of one instance."""

    leased: int = 0  # as last answered
    limit: int = 0  # in force
    spare: int = 0  # nobody's, as last answered
    declined_at_s: float = -1e9
    offered: bool = False  # there was room and somebody waited, when last looked at


class Slots:
    """One worker's leases. `expected` workers are taken to exist when nobody has been seen yet; `lost` is told when leases have run out
    (True) and when there are leases again (False)."""

    def __init__(
        self,
        live: Live,
        store: Store,
        key: str,
        worker: str,
        *,
        closed: bool = False,
        expected: int = 1,
        stands_s: float = STANDS_S,
        lost: Callable[[bool], object] = lambda lost: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.live = live
        self.worker = worker
        self.closed = closed
        self.lost: bool | None = None  # no lease of ours stands; None before the first answer, or its failure
        self.known: list[str] = [worker]  # workers that were there at the last answer
        self._known: set[str] = set()  # others, at any answer since all was settled
        self.settled = False
        self._store = store
        self._key = key
        self._expected = expected
        self._stands_s = stands_s
        self._told = lost
        self._clock = clock
        self._until_s = 0.0
        self._unanswered = False  # the last time we asked
        self._asked_at_s = -1e9
        self._moved_at_s = -1e9  # the last time we asked because a slot could change hands at once
        self._made_ms = 0  # when what we last saw there was made
        self._calls = 0
        self._now_ms = 0
        self._records: dict[str, Record] = {}
        self._shares: dict[str, _Share] = {}
        self._bell = Bell()
        self._idle = False

    # ---- what happens all the time

    async def run(self) -> None:
        """Renew, for ever."""
        self.live.borrow = self._bell.ring
        await again(self._pause_s, "leases", self._look, self._bell)

    def _pause_s(self) -> float:
        return max(self._due_at_s() - self._clock(), 0.001)

    def _due_at_s(self) -> float:
        """When to call next."""
        if self._unanswered or not self.settled:
            return self._asked_at_s + EVERY_S  # nothing moves, however often we ask
        if self._moving():
            return self._moved_at_s + BORROW_S  # a call that had another reason does not keep a request waiting
        if self.wanting():
            return self._asked_at_s + LOOK_S
        if self._idle and self.live.core.idle():
            return self._asked_at_s + IDLE_S
        return self._asked_at_s + (min(max(EACH_S * len(self.known), FRESH_S), EVERY_S) if len(self.known) > 1 else EVERY_S)

    async def _look(self) -> None:
        now_s = self._clock()
        if now_s >= self._due_at_s() - 0.001:
            if self._moving():
                self._moved_at_s = now_s
            await self.renew()

    def begin(self) -> None:
        """Use nothing until there is an answer."""
        fleet = self.live.core.fleet
        fleet.unleased = 0
        self.live.leased([Lease(instance_id, 0) for instance_id in fleet.by_id])

    async def renew(self) -> bool:
        """Ask once, and once more if slots of ours are wanted elsewhere. False when there was no answer."""
        if not await self._ask():
            return False
        if self._owed():
            await self._ask()
        return True

    async def leave(self) -> None:
        """Give everything back."""
        self._shares.clear()
        await self._call([])

    async def _ask(self) -> bool:
        now_s = self._asked_at_s = self._clock()
        asked = self.asks(now_s)
        reply = await self._call(asked)
        self._unanswered = reply is None
        if reply is None:
            if self._clock() >= self._until_s:
                self.fall_back()
            else:
                self._nothing_to_borrow()
            return False
        self.answered(asked, reply, now_s)
        return True

    async def _call(self, asked: list[Any]) -> Any:
        self._calls += 1
        lapsed = self.lost is not None and self._clock() >= self._until_s + self._stands_s * (KEPT_RATIO - 1.0)
        args = (
            self.worker,
            int(self._stands_s * KEPT_RATIO * 1000),
            self._made_ms,
            msgspec.msgpack.encode(asked),
            self._calls,
            int(lapsed),
            msgspec.msgpack.encode(sorted(self._known)),
        )
        try:
            return await self._store.run(SCRIPT, [self._key], args)
        except StoreError as error:
            log.debug("leases: %s", error)
            return None

    def limit_of(self, instance_id: str) -> int:
        """The limit in force for all workers together; 0 when not known."""
        share = self._shares.get(instance_id)
        return share.limit if share is not None else 0

    # ---- asking

    def wanting(self) -> bool:
        """Does somebody wait here who might use a slot that others hold?"""
        core = self.live.core
        now_s = self._clock()
        for model, queues in core.queues.by_model.items():
            serving = core.fleet.serving(model) if queues.waiting else None
            if serving is not None:
                most = most_choices(queues)
                if any(self._exhausted(instance, most, now_s) for instance in serving.instances):
                    return True
        return False

    def asks(self, now_s: float) -> list[Any]:
        """What to ask for, a row for each instance. A smaller share is kept to from this moment on: whoever it is for may start
        before we hear the answer."""
        core = self.live.core
        names = sorted({self.worker, *self._records})
        waiting = {model: waiting_of(queues) for model, queues in core.queues.by_model.items() if queues.waiting}
        wishes = wishes_of(core.queues.by_model.values())
        ceilings = core.fleet.ceilings
        rows: list[Any] = []
        less: list[Lease] = []
        self._idle = core.idle()  # as the others know it
        for instance_id, instance in core.fleet.by_id.items():
            share = self._shares.get(instance_id)
            if share is None:
                share = self._shares[instance_id] = _Share()
            by_rank, most = waiting.get(instance.spec.model, (None, 1))
            wished = wishes.get(instance_id)
            needs = self._needs(instance, share, by_rank, most, wished, now_s)
            others = {name: self._records[name].rows.get(instance_id) for name in names if name != self.worker}
            there = [name for name in names if name == self.worker or others[name] is not None]
            all_needs = [needs if row is None else row.figures[3] for row in (others.get(name) for name in there)]
            word = instance.slots if instance.in_flight or instance.returned_at_s > 0.0 or instance.spec.limit_pinned else 0
            limit = min((row.word for row in others.values() if row is not None and row.word > 0), default=word or instance.slots)
            limit = min(limit, word) if word else limit
            turn = int(self._now_ms / (TURN_S * 1000.0)) + crc32(instance_id.encode())
            wanted = shares(limit, ceilings, all_needs, turn)[there.index(self.worker)]
            if wished is not None and not instance.owed:
                wanted = max(wanted, instance.in_flight + sum(wished))  # the core has seen that there is room, for this class too
            held = instance.leased if instance.leased != UNSHARED else 0
            if self._unanswered or not self.settled:
                wanted = max(wanted, held)  # nobody could take over what we give up
            elif wanted < held:
                held = wanted
                less.append(Lease(instance_id, held, spare=share.spare))
            figures = (instance.in_flight, max(instance.unprefilled_tokens, 0), max(instance.context_tokens, 0), needs)
            tightest_itl_s = min(instance.itl_targets, default=0.0)
            promises = (round(instance.stake_ours_per_s, 6), tightest_itl_s)
            rows.append((instance_id, instance.slots, wanted, held, instance.in_flight, word, figures, promises))
        if less:
            self.live.leased(less)
        return rows

    def _needs(
        self, instance: Instance, share: _Share, waiting: list[int] | None, most: int, wishes: list[int] | None, now_s: float
    ) -> tuple[int, ...]:
        """Sequences by class rank that run there or would like to."""
        loosest = len(self.live.core.fleet.ceilings) - 1
        needs = [0] * (loosest + 1)
        for placement in instance.residents:
            needs[min(placement.ticket.tag.rank, loosest)] += placement.ticket.request.n
        if waiting is None:
            share.offered = False
        elif self._exhausted(instance, most, now_s):
            needs = [running + more for running, more in zip(needs, waiting, strict=True)]
            share.offered = True
        elif share.offered and share.leased:
            # It got a slot and left it: who waits here cannot use this instance, and would keep it from others.
            share.offered = False
            share.declined_at_s = now_s
        if wishes is not None:
            needs = [needed + more for needed, more in zip(needs, wishes, strict=True)]
        return tuple(needs)

    def _moving(self) -> bool:
        """Is there a slot that could change hands at once?"""
        core = self.live.core
        if any(instance.owed and instance.in_flight < instance.leased for instance in core.fleet.by_id.values()):
            return True
        return any(ticket.wish is not None for queues in core.queues.by_model.values() if queues.waiting for ticket in next_of(queues))

    def _exhausted(self, instance: Instance, most: int, now_s: float) -> bool:
        """Is it our lease that keeps what waits from starting there?"""
        if instance.serving is None or instance.leased >= instance.slots or instance.in_flight + most <= instance.leased:
            return False
        share = self._shares.get(instance.spec.instance_id)
        return share is None or now_s - share.declined_at_s >= DECLINED_S

    def _owed(self) -> bool:
        """Do others wait for slots that we hold and do not need?"""
        for instance_id, instance in self.live.core.fleet.by_id.items():
            if instance.in_flight < instance.leased != UNSHARED:
                for record in self._records.values():
                    row = record.rows.get(instance_id)
                    if row is not None and sum(row.figures[3]) > row.leased:
                        return True
        return False

    # ---- being answered

    def answered(self, asked: list[Any], reply: Sequence[Any], asked_at_s: float) -> None:
        """These are the leases now, good for `stands_s` from when they were asked for."""
        now_ms, made_ms, settled, packed, *others = reply
        granted = _grants.decode(packed)
        self._now_ms, self._made_ms, self.settled = now_ms, made_ms, bool(settled)
        self._until_s = asked_at_s + self._stands_s
        self._records = {}
        for at in range(0, len(others) - 1, 2):
            try:
                self._records[_text(others[at])] = _records.decode(others[at + 1])
            except (msgspec.DecodeError, ValueError):
                continue
        self.known = sorted({self.worker, *self._records})
        self._known = self._records.keys() | (set() if settled else self._known)
        fleet = self.live.core.fleet
        leases: list[Lease] = []
        for (instance_id, _, _, _, _, word, _, _), (slots, limit) in zip(asked, granted, strict=False):
            instance = fleet.by_id.get(instance_id)
            if instance is None:
                continue
            share = self._shares.setdefault(instance_id, _Share())
            share.leased, share.limit = slots, limit
            rows = [row for record in self._records.values() if (row := record.rows.get(instance_id)) is not None]
            in_flight, unprefilled_tokens, context_tokens = (max(sum(figures), 0) for figures in _columns(rows))
            tightest_itl_s = min((row.promises[1] for row in rows if row.promises[1] > 0.0), default=inf)
            stake_per_s = _sane(sum(row.promises[0] for row in rows))
            fleet.others(instance, in_flight, unprefilled_tokens, context_tokens, stake_per_s, tightest_itl_s)
            instance.owed = any(sum(row.figures[3]) > row.leased for row in rows)
            # Where others wait, the rule alone says whose a slot is.
            free = limit - max(slots, instance.in_flight) - sum(row.leased for row in rows)
            share.spare = max(free, 0) if settled and not instance.owed else 0
            # Nothing of ours runs there to judge by: what the others have found is as good as ours.
            found = max(limit, instance.spec.limit_start) if not word and limit != instance.limit else 0
            leases.append(Lease(instance_id, slots, found, share.spare))
        if self.lost is not False:
            self.lost = False
            self._told(False)
        self.live.leased(leases)

    def _nothing_to_borrow(self) -> None:
        """Nobody answers: what waits for a lease goes where we hold one."""
        fleet = self.live.core.fleet
        if any(share.spare for share in self._shares.values()):
            for share in self._shares.values():
                share.spare = 0
            self.live.leased([Lease(instance_id, instance.leased) for instance_id, instance in fleet.by_id.items()])

    def fall_back(self) -> None:
        """No lease of ours stands and nobody answers: a fixed share of each limit, or nothing. Until every other worker must have come
        to the same end, no more than we had."""
        alone = self._clock() >= self._until_s + self._stands_s * (KEPT_RATIO - 1.0)
        if not self.lost:
            self.lost = True
            self._told(True)
        leases: list[Lease] = []
        served: set[str] = set()
        instances = list(self.live.core.fleet.by_id.items())
        for instance_id, instance in instances:
            slots = 0
            if not self.closed:
                turn = crc32(instance_id.encode())
                if self._expected > len(self.known):
                    slots = instance.slots // self._expected
                else:
                    slots = static_share(instance.slots, len(self.known), self.known.index(self.worker), turn)
                if not alone:
                    slots = min(slots, instance.leased)
                if slots:
                    served.add(instance.spec.model)
            leases.append(Lease(instance_id, slots))
        if alone and not self.closed:
            # More workers than slots: going on means that each has at least one somewhere.
            for at, (_, instance) in enumerate(instances):
                if instance.spec.model not in served:
                    served.add(instance.spec.model)
                    leases[at] = Lease(leases[at].instance_id, 1)
        self.live.leased(leases)


def _columns(rows: list[Row]) -> Iterator[list[int]]:
    """In flight, unprefilled tokens and context tokens, of everybody."""
    yield [row.figures[0] for row in rows]
    yield [row.figures[1] for row in rows]
    yield [row.figures[2] for row in rows]


def _sane(stake_per_s: float) -> float:
    """As somebody else told it."""
    return stake_per_s if 0.0 <= stake_per_s <= MOST_STAKE_PER_S else 0.0


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
