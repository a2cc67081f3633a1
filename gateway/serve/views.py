"""What operators see of a worker: admin/views.Views and telemetry/instruments.Sources over the live objects. Computes nothing itself."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

import gateway
from gateway.admin.answers import in_steps
from gateway.admin.slo import report
from gateway.admin.views import (
    InstanceView,
    LeaseView,
    ModelView,
    OtherCounts,
    QueueView,
    QuotaView,
    ReloadView,
    RestartView,
    SharesView,
    SloReport,
    StoreView,
    VersionView,
    WorkersView,
    WorkerView,
)
from gateway.config.loaded import ConfigError
from gateway.core import trail
from gateway.core.flow import SloTargets
from gateway.openai.errors import ApiError
from gateway.serve.version import version_view
from gateway.telemetry.exposition import render
from gateway.telemetry.openmetrics import written

if TYPE_CHECKING:
    from gateway.classify.learned import Learned
    from gateway.serve.adviser import Adviser
    from gateway.serve.second_opinion import SecondOpinion
    from gateway.serve.worker import Worker
    from gateway.state.store import Health


class WorkerViews:
    """One worker's."""

    def __init__(self, worker: Worker, adviser: Adviser | None = None) -> None:
        self._worker, self._adviser = worker, adviser
        self.attainment = worker.attainment
        self.draining = False
        self.serving = True  # connections are taken
        self._reloading = asyncio.Lock()

    def now_s(self) -> float:
        return time.monotonic()

    def version(self) -> VersionView:
        return version_view(self._worker.loaded, self._worker.started_unix_s)

    def authorised(self, authorization: str | None) -> bool:
        try:
            self._worker.front.keys.tenant_of({b"authorization": authorization.encode("latin-1", "replace")} if authorization else {})
        except ApiError:
            return False
        return True

    def models(self) -> list[ModelView]:
        return [ModelView(id=model.name, aliases=tuple(model.aliases)) for model in self._worker.loaded.settings.models]

    def not_ready(self) -> str:
        return self.own_not_ready()

    def own_not_ready(self) -> str:
        """Why this very worker cannot serve, "" when it can."""
        if self.draining:
            return "shutting down"
        core = self._worker.live.core
        if not any(core.fleet.serving(model) and core.fleet.serving(model).instances for model in core.fleet.models()):  # type: ignore[union-attr]
            return "no engine answers"
        return ""

    def metrics(self, openmetrics: bool = False) -> Iterator[str]:
        text = render(self.attainment, self)
        if not openmetrics:
            return text
        otlp = self._worker.otlp
        return written(text, otlp.exemplars() if otlp is not None else {})

    def fleet(self) -> list[InstanceView]:
        worker = self._worker
        fleet = worker.live.core.fleet
        views = []
        for instance in (*fleet.by_id.values(), *fleet.leaving):
            spec = instance.spec
            views.append(
                InstanceView(
                    instance_id=spec.instance_id,
                    pool=spec.pool,
                    tier=spec.tier,
                    model=spec.model,
                    gpu=spec.gpu,
                    usd_per_hour=spec.usd_per_hour,
                    in_flight=instance.in_flight,
                    limit=instance.limit,
                    saturation_ratio=instance.saturation_ratio,
                    healthy=instance.healthy,
                    draining=instance.draining,
                    ejected_for_s=worker.health.ejected_for_s(spec.instance_id),
                    unprefilled_tokens=instance.unprefilled_tokens,
                    context_tokens=instance.context_tokens,
                )
            )
        shown = {view.instance_id for view in views}
        for spec in worker.specs:
            if spec.instance_id in worker.drained and spec.instance_id not in shown:
                views.append(
                    InstanceView(
                        instance_id=spec.instance_id,
                        pool=spec.pool,
                        tier=spec.tier,
                        model=spec.model,
                        gpu=spec.gpu,
                        usd_per_hour=spec.usd_per_hour,
                        in_flight=0,
                        limit=spec.limit_start,
                        saturation_ratio=0.0,
                        healthy=True,
                        draining=True,
                    )
                )
        return views

    def classifier(self) -> Learned | None:
        return self._worker.learned

    def second_opinion(self) -> SecondOpinion | None:
        worker = self._worker
        return worker.second if worker.loaded.settings.classify.second_opinion else None

    def adviser_is_up(self) -> bool | None:
        return self._adviser.up if self._adviser is not None and self._worker.loaded.settings.classify.second_opinion else None

    def queues(self) -> list[QueueView]:
        now_s = self.now_s()
        return [
            QueueView(
                model=queue.model,
                experience_class=queue.experience_class,
                requests=queue.requests,
                bytes=queue.bytes,
                oldest_s=max(now_s - queue.oldest_at_s, 0.0),
                late=queue.late,
            )
            for queue in self._worker.live.core.queues.views()
        ]

    def shares(self) -> SharesView:
        worker = self._worker
        sharing, now_s = worker.sharing, time.monotonic()
        quotas, slots = worker.front.quotas, sharing.slots if sharing is not None else None
        return SharesView(
            state="alone" if slots is None else "shared" if slots.lost is False else "lost",
            when_lost="closed" if slots is not None and slots.closed else "open",
            workers=1 if slots is None else len(slots.known),
            worker=worker.name,
            controller=sharing is None or sharing.controller.held(),
            store=None if sharing is None else store_view(sharing.store.health),
            leases=()
            if slots is None
            else tuple(
                LeaseView(
                    instance_id=instance_id,
                    slots=instance.leased,
                    in_flight=instance.in_flight,
                    others_in_flight=instance.others_in_flight,
                    limit=slots.limit_of(instance_id) or instance.slots,
                )
                for instance_id, instance in worker.live.core.fleet.by_id.items()
            ),
            quotas=()
            if quotas is None
            else tuple(
                QuotaView(
                    quota=quota_id,
                    measure=name,
                    limit=measure.limit,
                    remaining=measure.remaining(now_s),
                    used=measure.used(now_s),
                    wallet=measure.wallet,
                )
                for quota_id, name, measure in quotas.rows()
            ),
        )

    async def look(self, openmetrics: bool = False) -> None:
        """There is nobody to ask."""

    async def slo(self, window_s: float, by: str) -> SloReport:
        sharing = self._worker.sharing
        others: OtherCounts | None = None
        if sharing is not None:
            others = await sharing.counted(window_s)
        return await in_steps(report(self, window_s, by, others))

    def view(self) -> WorkerView:
        """This worker."""
        worker = self._worker
        return WorkerView(
            worker=self.worker(),
            pid=os.getpid(),
            state="serving" if self.serving else "retiring",
            ready=self.serving and not self.own_not_ready(),
            name=worker.name,
            instance_id=worker.seat.instance_id,
            version=gateway.__version__,
            started_unix_s=worker.started_unix_s,
            connections=self.connections(),
            in_flight=sum(instance.in_flight for instance in worker.live.core.fleet.by_id.values()),
            loop_lag_s=self.loop_lag_s(),
        )

    async def workers(self) -> WorkersView:
        return WorkersView(configured=1, serving=int(self.serving), restarts={}, changing="", workers=(self.view(),), lost=())

    async def restart(self) -> RestartView:
        return RestartView(ok=False, problem="one process serves, and nobody else could meanwhile; with `workers: 2` or more this works")

    def quota_refused(self) -> Mapping[tuple[str, str], int]:
        quotas = self._worker.front.quotas
        return quotas.refused if quotas is not None else {}

    def targets(self, use_case: str, experience_class: str) -> SloTargets | None:
        catalog = self._worker.loaded.catalog
        if use_case not in catalog.use_cases or experience_class not in catalog.classes:
            return None
        return catalog.targets_for(use_case, experience_class)

    async def explain(self, request_id: str) -> dict[str, Any] | None:
        found = self._worker.live.core.trails.of(request_id)
        return trail.tell(found) if found is not None else None

    def config(self) -> object:
        return msgspec.Raw(self._worker.loaded.shown)

    async def reload(self) -> ReloadView:
        worker = self._worker
        if worker.reader is None:
            return ReloadView(ok=False, problems=("this gateway was started without a file; start it again with other arguments",))
        async with self._reloading:  # or what was read first could be taken last
            try:
                loaded = await worker.reader()
            except ConfigError as error:
                worker.reload_refused = True
                return ReloadView(ok=False, problems=tuple(str(finding) for finding in error.findings))
            worker.reload_refused = False
            return ReloadView(ok=True, changed=tuple(worker.change(loaded)))

    async def drain(self, instance_id: str, draining: bool) -> bool:
        return self._worker.drain(instance_id, draining)

    # ---- telemetry's

    def labels(self) -> tuple[str, str, str]:
        settings = self._worker.loaded.settings
        return gateway.__version__, settings.mode.value, settings.policy

    def connections(self) -> int:
        return len(self._worker.front.connections)

    def reload_refused(self) -> bool:
        return self._worker.reload_refused

    def worker(self) -> str:
        return str(self._worker.seat.number)

    def accepting(self) -> bool:
        return self.serving

    def loop_lag_s(self) -> float:
        return self._worker.front.loop_lag_s

    def restarts(self) -> Mapping[str, int]:
        return {}

    def limit_hits(self) -> Mapping[str, int]:
        return self._worker.front.hits

    def dropped(self) -> Mapping[str, int]:
        worker = self._worker
        dropped = {"request_log": worker.request_log.dropped if worker.request_log is not None else 0}
        return dropped | worker.otlp.dropped if worker.otlp is not None else dropped

    def started_unix_s(self) -> float:
        return self._worker.started_unix_s


def store_view(health: Health) -> StoreView:
    return StoreView(
        where=health.where,
        connected=health.connected,
        silent_s=health.silent_s(),
        calls=health.calls,
        errors=health.errors,
        last_error=health.last_error,
    )
