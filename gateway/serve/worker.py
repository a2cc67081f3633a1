"""One worker: every room of the gateway, put together for one configuration, and changed in place when that changes.

Sockets and signals are process.py's business; what operators see of all this is views.py's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING
from uuid import uuid4

import gateway
from gateway import policies
from gateway.classify.explicit import Classifier
from gateway.config.build import core_settings, instance_specs, step_facts
from gateway.config.loaded import Loaded
from gateway.config.settings import Pool
from gateway.core.decide import Core
from gateway.core.flow import FailReason, InstanceSpec, Placement, Ticket
from gateway.engines.health import Health
from gateway.live import Live
from gateway.measure.attainment import Attainment, edges_of
from gateway.predict.predictor import LearningPredictor
from gateway.quota.quotas import quotas_of
from gateway.serve.memory import Ebb, trim
from gateway.serve.second_opinion import Advises, SecondOpinion
from gateway.telemetry.otlp import Otlp, OtlpSettings
from gateway.telemetry.request_log import RequestLog
from gateway.telemetry.spans import Spans
from gateway.wire.front import Front
from gateway.wire.keys import Keys
from gateway.wire.probe import status_of
from gateway.wire.upstream import Upstream, Upstreams

if TYPE_CHECKING:
    from gateway.classify.learned import Learned
    from gateway.serve.reader import Reads
    from gateway.serve.sharing import Sharing
    from gateway.state.learnt_file import LearntFile
    from gateway.telemetry.sources import Sources

log = logging.getLogger("slo_gateway")

TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Seat:
    """A worker's place among those of one gateway. `instance_id` is its `service.instance.id`, "" = the SDK's own choice."""

    number: int = 0
    of: int = 1
    instance_id: str = ""
    store_forgets: bool = False  # what they share does not outlive the gateway


ALONE = Seat()


class Worker:
    """Built inside a running loop. `reload` swaps the configuration; requests in flight keep what they began with."""

    def __init__(self, loaded: Loaded, reload: Reads | None = None, seat: Seat = ALONE, adviser: Advises | None = None) -> None:
        settings, catalog = loaded.settings, loaded.catalog
        self.loaded = loaded
        self.reader = reload
        self.reload_refused = False  # what it read last was wrong
        self.seat = seat
        self.started_unix_s = time.time()
        loop = self.loop = asyncio.get_running_loop()
        specs = self.specs = instance_specs(settings, catalog, loaded.gpus)
        self.predictor = LearningPredictor(step_facts(specs, loaded.gpus))
        core = Core(core_settings(settings, catalog), policies.load(settings.policy)(Random(0)), self.predictor)  # noqa: S311
        now_s = time.monotonic()
        self.attainment = Attainment(edges_of(catalog), now_s)
        self.live = Live(core, time.monotonic, [self.attainment.observe])
        self.live.wake = self._wake
        self.upstreams = Upstreams()
        self.front = Front(
            loop,
            self.live,
            self.upstreams,
            self.attainment.cell,
            self.predictor.prompts,
            max_connections(-(-settings.limits.connections // seat.of)),
        )
        self.health = Health(self.live.instance_health, self._status_of)
        self.front.on_attempt_failed = self._attempt_failed
        self.front.on_recovered = self.health.request_completed
        state = settings.state
        self.name = worker_name()
        self.sharing: Sharing | None = None  # with other workers
        if state.url:
            from gateway.serve.sharing import Sharing  # a megabyte, for those who share

            self.sharing = Sharing(self.front, self.attainment, self.predictor, state, self.name, expected=seat.of)
        self.learnt: LearntFile | None = None
        if state.learnt_file and (not state.url or seat.store_forgets):
            from gateway.state.learnt_file import LearntFile

            self.learnt = LearntFile(self.predictor, state.learnt_file, self._controls)
        self.request_log: RequestLog | None = None
        self.otlp: Otlp | None = None
        self._ebb = Ebb()
        self._wake_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.drained: set[str] = set()  # instances an operator has taken out
        self.learned: Learned | None = None  # the classifier for what nobody tagged
        self.second = SecondOpinion(adviser, loop) if adviser is not None else None
        self._configure()

    # ---- configuration

    def _configure(self) -> None:
        settings, catalog = self.loaded.settings, self.loaded.catalog
        self.learned = classifier_of(self.loaded, self.learned)
        if self.learned is not None and self.second is not None and settings.classify.second_opinion:
            self.learned.second = self.second.about
        self.front.configure(settings, Keys(settings, catalog), Classifier(settings, catalog, self.learned))
        self.front.quotas = quotas_of(settings, time.monotonic, self.front.quotas)
        self.specs = instance_specs(settings, catalog, self.loaded.gpus)
        made: dict[str, Upstream] = {}
        for spec in self.specs:
            known = self.upstreams.by_id.get(spec.instance_id)
            pool = settings.pools[spec.pool]
            same = known is not None and known.spec == spec and self._pools.get(spec.pool) == pool
            made[spec.instance_id] = known if known is not None and same else self._upstream(spec, pool)
        self.upstreams.change(made)
        self._pools = dict(settings.pools)
        self.predictor.latencies.know(step_facts(self.specs, self.loaded.gpus))
        self.live.instances_changed([spec for spec in self.specs if spec.instance_id not in self.drained])
        self.health.change(self.specs, settings.timeouts.probe_s)
        for instance_id, state in self.health.states.items():
            if not state.up:
                self.live.instance_health(instance_id, False)

    _pools: dict[str, Pool] = {}  # noqa: RUF012  (replaced whole)

    def _upstream(self, spec: InstanceSpec, pool: Pool) -> Upstream:
        settings = self.loaded.settings
        return Upstream(
            spec,
            self.loop,
            api_key=pool.upstream.api_key.get_secret_value() if pool.upstream.api_key else None,
            tls=tls_context(pool) if spec.url.startswith("https:") else None,
            connect_s=settings.timeouts.connect_s,
            idle_s=settings.timeouts.upstream_idle_s,
            user_agent=f"slo-gateway/{gateway.__version__}",
        )

    def change(self, loaded: Loaded) -> list[str]:
        """Another configuration, from now on. What is different, one sentence each."""
        old, new = self.loaded.settings, loaded.settings
        changed = [f"{name} has changed" for name in type(new).__dataclass_fields__ if getattr(old, name) != getattr(new, name)]
        if self.loaded.catalog != loaded.catalog:
            changed.append("the catalogue has changed")
        if old.listen != new.listen or old.admin != new.admin:
            changed.append("listen and admin take effect at the next start")
        if old.state != new.state:
            changed.append("state takes effect at the next start")
        if old.policy != new.policy:
            changed.append("policy takes effect at the next start")
        if old.workers != new.workers:
            changed.append("workers takes effect at the next start")
        self.loaded = loaded
        self.live.settings_changed(core_settings(new, loaded.catalog))
        self.attainment.change_edges(edges_of(loaded.catalog))
        self._configure()
        return changed

    def drain(self, instance_id: str, draining: bool) -> bool:
        """Take an instance out, or back in. False when there is none of that name."""
        if all(spec.instance_id != instance_id for spec in self.specs):
            return False
        (self.drained.add if draining else self.drained.discard)(instance_id)
        self.live.instances_changed([spec for spec in self.specs if spec.instance_id not in self.drained])
        return True

    # ---- what happens all the time

    def start(self, sources: Sources) -> None:
        """Begin to tick, probe and write. `sources` is where gauges are read from."""
        settings = self.loaded.settings
        wanted = OtlpSettings.of(os.environ)
        if wanted is not None:
            spans = Spans(settings.telemetry.sample_ratio, time.time, time.monotonic, _traceparent_of, Random())  # noqa: S311
            self.live.observers.append(spans.observe)
            self.front.onward = spans.onward
            self.otlp = Otlp(wanted, spans, self.attainment, sources, self.seat.instance_id)
            self.otlp.start()
        if settings.telemetry.request_log:
            self.request_log = RequestLog(
                Path(settings.telemetry.request_log), settings.telemetry.request_log_max_bytes, time.time, time.monotonic
            )
            self.request_log.start()
            self.live.observers.append(self.request_log.observe)
        self.front.start()
        self._tick()
        background = [self.health.run(), self.upstreams.keep_resolved()]
        if self.learnt is not None:
            self.learnt.begin()
            background.append(self.learnt.run())
        for run in background:
            task = self.loop.create_task(run)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """No more of it; what is written down is complete."""
        self.front.stop()
        if self.second is not None:
            self.second.stop()
        for timer in (self._wake_timer, self._tick_timer):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        self.upstreams.change({})
        if self.request_log is not None:
            self.request_log.stop()
        if self.otlp is not None:
            self.otlp.stop()

    def _tick(self) -> None:
        self._tick_timer = self.loop.call_later(TICK_S, self._tick)
        try:
            self.live.tick()
            now_s = time.monotonic()
            self.attainment.tick(now_s)
            if self._ebb.due(self.front.exchanges, sum(i.in_flight for i in self.live.core.fleet.by_id.values()), now_s):
                trim()
        except Exception:
            log.exception("the tick of the gateway failed")

    def _wake(self, at_s: float) -> None:
        if self._wake_timer is not None:
            self._wake_timer.cancel()
        self._wake_timer = self.loop.call_later(max(at_s - time.monotonic(), 0.0), self._woken)

    def _woken(self) -> None:
        self._wake_timer = None
        self.live.tick()

    def _controls(self) -> bool:
        return self.sharing is None or self.sharing.controller.held()

    async def keep_learnt(self) -> None:
        """At the end: what was learnt is written once more, by the worker that controls."""
        if self.learnt is not None:
            if self.sharing is not None:
                await self.sharing.controller.keep()
            await self.learnt.save()

    async def _status_of(self, instance_id: str, path: str, timeout_s: float) -> int:
        upstream = self.upstreams.by_id.get(instance_id)
        if upstream is None:
            raise ConnectionError("it has left")
        return await status_of(upstream, path, timeout_s)

    def _attempt_failed(self, placement: Placement, reason: FailReason) -> None:
        self.health.request_failed(placement.instance_id, reason)


def worker_name() -> str:
    """Unique, and says where to look."""
    return f"{socket.gethostname()[:40]}:{os.getpid()}:{uuid4().hex[:8]}"


def classifier_of(loaded: Loaded, before: Learned | None) -> Learned | None:
    """The learned classifier, loaded (and numpy with it) only where the configuration asks for one."""
    if not loaded.settings.classify.learned:
        return None
    # Its products are too small to share: threads of its own would cost 25 MB, and turns at the processor.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from gateway.classify.learned import learned_of

    return learned_of(loaded, before)


def _traceparent_of(ticket: Ticket) -> bytes:
    return getattr(ticket.handle, "traceparent", b"")


def tls_context(pool: Pool) -> ssl.SSLContext:
    """How a pool's engines are to be trusted, and how they trust us."""
    upstream = pool.upstream
    context = ssl.create_default_context(cafile=upstream.ca_file or None)
    if not upstream.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if upstream.cert_file:
        context.load_cert_chain(upstream.cert_file, upstream.key_file or None)
    return context


def max_connections(configured: int) -> int:
    """Open client connections a worker takes: as configured, else so many that each can have one to an engine."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return configured or max(int(min(soft, 1_000_000) * 0.8) // 2, 16)
