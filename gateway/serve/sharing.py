"""What a worker shares with others: the store, its leases on instances, its part of quotas, what its users got and it has learnt, and
who controls, put together and kept going.

Without `state.url` there is none of it: every limit and quota is this worker's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from time import monotonic, time
from typing import TYPE_CHECKING

from gateway.admin.views import CountedView, SilentView
from gateway.config.settings import StateLost
from gateway.config.state_url import parse_state_url
from gateway.state.controller import ControllerLease
from gateway.state.history import MISSING_S, History, Others
from gateway.state.looks import ended
from gateway.state.names import Names
from gateway.state.quota_shares import QuotaShares
from gateway.state.slots import Slots
from gateway.state.store import StoreError
from gateway.state.telemetry import Telemetry
from gateway.state.turns import Turns
from gateway.state.warm import WarmStart

if TYPE_CHECKING:
    from gateway.config.settings import State
    from gateway.measure.attainment import Attainment
    from gateway.predict.predictor import LearningPredictor
    from gateway.state.store import Store
    from gateway.wire.front import Front

log = logging.getLogger("slo_gateway")

START_S = 1.0
RETRY_S = 0.05


def store_of(state: State) -> Store:
    """The store that the configuration names; nothing is connected yet."""
    from gateway.state.redis import RedisStore  # 8 MB and a tenth of the start, for those who share

    return RedisStore(
        parse_state_url(state.url),
        timeout_s=state.timeout_s,
        password=state.password.get_secret_value() if state.password is not None else None,
        ca_file=state.ca_file,
        cert_file=state.cert_file,
        key_file=state.key_file,
        verify=state.verify,
    )


class Sharing:
    """One worker's. `expected` workers are taken to exist until others have been seen."""

    def __init__(
        self, front: Front, attainment: Attainment, predictor: LearningPredictor, state: State, worker: str, expected: int = 1
    ) -> None:
        self.store = store_of(state)
        self.names = Names(state.deployment)
        self.worker = worker
        self.closed = state.lost is StateLost.CLOSED
        self.slots = Slots(front.live, self.store, self.names.slots, worker, closed=self.closed, expected=expected, lost=self._lost)
        self.quotas = QuotaShares(lambda: front.quotas, self.store, self.names.quotas, worker, expected=expected)
        self.controller = ControllerLease(self.store, self.names, worker)
        self.telemetry = Telemetry(attainment, self.store, self.names, worker, clock=monotonic, unix=time)
        self.history = History(self.store, self.names, worker)
        self.warm = WarmStart(predictor, self.store, self.names, self.controller)
        self.turns = Turns(front.live.core.queues, self.store, self.names, worker, unix=time)
        self._front = front
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Ask for leases and wallets, for START_S at most, and keep asking. Whoever begins to serve without an answer knows of nobody
        else, and uses all of every limit: one answer that comes late on a busy machine must not lead there."""
        self.slots.begin()
        self.quotas.begin()
        until_s = monotonic() + START_S
        while not (await self.slots.renew() and await self.quotas.look()) and monotonic() < until_s:
            await asyncio.sleep(RETRY_S)
        with contextlib.suppress(StoreError):
            await self.warm.begin()
        running = (self.slots.run(), self.quotas.run(), self.controller.run(), self.telemetry.run(), self.warm.run(), self.turns.run())
        self._tasks = [asyncio.ensure_future(run) for run in running]

    async def stop(self) -> None:
        """Give everything back, if the store listens."""
        await ended(self._tasks)
        await self.slots.leave()
        await self.quotas.leave()
        await self.controller.leave()
        await self.telemetry.leave()
        await self.store.close()

    async def counted(self, window_s: float) -> OthersCounted:
        """What the others have counted in the last so many seconds."""
        return OthersCounted(await self.history.others(window_s, time()))

    def _lost(self, lost: bool) -> None:
        self._front.closed = lost and self.closed
        if lost:
            then = "requests are refused until it is back" if self.closed else "going on with a fixed share of every limit"
            log.warning("the shared state at %s does not answer (%s); %s", self.store.health.where, self.store.health.last_error, then)
        else:
            log.info("sharing limits and quotas through %s", self.store.health.where)


class OthersCounted:
    """admin/views.OtherCounts over what state/history has read."""

    def __init__(self, others: Others) -> None:
        self.merging = others.merging
        self._others = others

    def counted(self) -> CountedView:
        others = self._others
        present, lost = others.present, others.lost
        return CountedView(
            workers=1 + len(present),
            gone=len(others.heard) - len(present),
            oldest_s=max((heard.age_s for heard in present), default=0.0),
            silent=tuple(SilentView(worker=heard.worker, silent_s=heard.age_s, missing_s=MISSING_S) for heard in lost),
            unreachable=others.unreachable,
        )
