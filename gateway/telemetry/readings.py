"""Metrics that are read from the live objects when somebody asks: how things stand, and the process's own counters. One row each, as in
instruments.py, which has those of every request and puts all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.measure.attainment import CellKey
from gateway.telemetry.sources import ClassifierNow, InstanceLoad, QueueLoad, QuotaNow, SecondNow, Sources, StoreNow

SLIS = ("ttft", "itl", "e2e")
Samples = Iterable[tuple[tuple[str, ...], float]]  # values of a row's labels, with the figure
OverWorkers = Literal["sum", "max", "min", "mean"]


@dataclass(frozen=True, slots=True)
class Reading:
    """A gauge or counter read from the live objects when it is asked for."""

    name: str
    about: str
    labels: tuple[str, ...]
    of: Callable[[Sources, Iterable[CellKey]], Samples]
    unit: str = ""
    kind: str = "gauge"
    over_workers: OverWorkers = "sum"  # what several workers' figures of the same labels are together


def _per_instance(figure: Callable[[InstanceLoad], float]) -> Callable[[Sources, Iterable[CellKey]], Samples]:
    return lambda sources, _: [((i.pool, i.tier, i.model, i.instance_id), figure(i)) for i in sources.fleet()]


def _stores(sources: Sources) -> Sequence[StoreNow]:
    store = sources.shares().store
    return [] if store is None else [store]


def _quotas(sources: Sources) -> Sequence[QuotaNow]:
    return sources.shares().quotas


def _per_queue(figure: Callable[[QueueLoad], float]) -> Callable[[Sources, Iterable[CellKey]], Samples]:
    return lambda sources, _: [((q.model, q.experience_class), figure(q)) for q in sources.queues()]


def _classifier(sources: Sources) -> Sequence[ClassifierNow]:
    learned = sources.classifier()
    return [] if learned is None else [learned]


def _second(sources: Sources) -> Sequence[SecondNow]:
    second = sources.second_opinion()
    return [] if second is None else [second]


def _pool_costs(sources: Sources, _: Iterable[CellKey]) -> Samples:
    costs: dict[tuple[str, ...], float] = {}
    for instance in sources.fleet():
        labels = (instance.pool, instance.tier, instance.gpu)
        costs[labels] = costs.get(labels, 0.0) + instance.usd_per_hour
    return costs.items()


def _targets(sources: Sources, cells: Iterable[CellKey]) -> Samples:
    for use_case, experience_class in sorted({(key.use_case, key.experience_class) for key in cells}):
        targets = sources.targets(use_case, experience_class)
        if targets is not None:
            for sli in SLIS:
                yield (use_case, experience_class, sli), getattr(targets, f"{sli}_s")


_INSTANCE = ("pool", "tier", "model", "instance_id")  # `instance` is what Prometheus calls the gateway it reads
_QUEUE = ("model", "experience_class")
_QUOTA = ("quota", "measure")
_WORKER = ("worker",)  # its number, 0 and up: the same place keeps its number over restarts
RESTARTS = ("crash", "upgrade")

READINGS: tuple[Reading, ...] = (
    # What is promised, and how things stand.
    Reading(
        "slo_gateway_target_seconds",
        "What is promised at p95, for every use case and class that has had a request.",
        ("use_case", "experience_class", "sli"),
        _targets,
        unit="s",
        over_workers="max",
    ),
    Reading("slo_gateway_instance_in_flight", "Requests this gateway has on an instance.", _INSTANCE, _per_instance(lambda i: i.in_flight)),
    Reading("slo_gateway_instance_limit", "Requests it may have there.", _INSTANCE, _per_instance(lambda i: i.limit), over_workers="max"),
    Reading(
        "slo_gateway_instance_saturation_ratio",
        "How full an instance is; 1 is full.",
        _INSTANCE,
        _per_instance(lambda i: i.saturation_ratio),
        unit="1",
        over_workers="max",
    ),
    Reading(
        "slo_gateway_instance_healthy",
        "1 when an instance answers its health checks, every worker's.",
        _INSTANCE,
        _per_instance(lambda i: i.healthy),
        over_workers="min",
    ),
    Reading(
        "slo_gateway_instance_draining",
        "1 when an instance is given nothing new.",
        _INSTANCE,
        _per_instance(lambda i: i.draining),
        over_workers="max",
    ),
    Reading("slo_gateway_pool_usd_per_hour", "What a pool's instances cost.", ("pool", "tier", "gpu"), _pool_costs, over_workers="max"),
    Reading("slo_gateway_queue_requests", "Requests that wait for a slot.", _QUEUE, _per_queue(lambda q: q.requests)),
    Reading("slo_gateway_queue_bytes", "Bytes of their bodies.", _QUEUE, _per_queue(lambda q: q.bytes), unit="By"),
    Reading(
        "slo_gateway_queue_oldest_seconds",
        "How long the oldest has waited.",
        _QUEUE,
        _per_queue(lambda q: q.oldest_s),
        unit="s",
        over_workers="max",
    ),
    # What is shared with other workers, and what keys may use.
    Reading(
        "slo_gateway_state_shared",
        "1 while leases of the shared state stand, 0 when it is lost; absent when nothing is shared.",
        (),
        lambda sources, _: [((), now.state == "shared")] if (now := sources.shares()).state != "alone" else [],
        over_workers="min",
    ),
    Reading(
        "slo_gateway_state_connected",
        "1 when the shared state answered the latest call.",
        (),
        lambda sources, _: [((), store.connected) for store in _stores(sources)],
        over_workers="min",
    ),
    Reading(
        "slo_gateway_state_silent_seconds",
        "How long ago it last answered.",
        (),
        lambda sources, _: [((), store.silent_s) for store in _stores(sources) if store.silent_s is not None],
        unit="s",
        over_workers="max",
    ),
    Reading(
        "slo_gateway_state_errors_total",
        "Calls to the shared state that came to nothing, of those that background tasks make.",
        (),
        lambda sources, _: [((), store.errors) for store in _stores(sources)],
        kind="counter",
    ),
    Reading(
        "slo_gateway_controller",
        "1 in the one gateway whose worker does what only one may do.",
        (),
        lambda sources, _: [((), sources.shares().controller)],
    ),
    Reading(
        "slo_gateway_workers",
        "Workers that share instances and quotas, those of other gateways with the same state included.",
        (),
        lambda sources, _: [((), sources.shares().workers)],
        over_workers="max",
    ),
    Reading(
        "slo_gateway_leased_slots",
        "Requests this gateway may have on an instance, of the limit it shares with others.",
        ("instance_id",),
        lambda sources, _: [((lease.instance_id,), lease.slots) for lease in sources.shares().leases],
    ),
    Reading(
        "slo_gateway_quota_limit",
        "A key's quota.",
        _QUOTA,
        lambda sources, _: [((q.quota, q.measure), q.limit) for q in _quotas(sources)],
        over_workers="max",
    ),
    Reading(
        "slo_gateway_quota_remaining",
        "What is left of it now.",
        _QUOTA,
        lambda sources, _: [((q.quota, q.measure), q.remaining) for q in _quotas(sources)],
        over_workers="min",
    ),
    Reading(
        "slo_gateway_quota_refused_total",
        "Requests refused because a quota was used up; they count neither as offered nor as missed.",
        _QUOTA,
        lambda sources, _: sources.quota_refused().items(),
        kind="counter",
    ),
    # How requests that nobody tagged are classified.
    Reading(
        "slo_gateway_classified_total",
        "Requests whose use case was learnt: from a look at them, or from memory of their application.",
        ("source",),
        lambda sources, _: [sample for now in _classifier(sources) for sample in ((("look",), now.looks), (("memory",), now.remembered))],
        kind="counter",
    ),
    Reading(
        "slo_gateway_classify_confidence_total",
        "Looks by how sure they were; `at_most` is the upper edge of the tenth.",
        ("at_most",),
        lambda sources, _: [
            ((f"{(tenth + 1) / 10:.1f}",), count) for now in _classifier(sources) for tenth, count in enumerate(now.confidence)
        ],
        kind="counter",
    ),
    Reading(
        "slo_gateway_classify_mix_ratio",
        "Share of each kind among the last some hundred looks.",
        ("kind",),
        lambda sources, _: [((kind,), share) for now in _classifier(sources) for kind, share in now.kinds().items()],
        unit="1",
        over_workers="mean",
    ),
    Reading(
        "slo_gateway_classify_drift_ratio",
        "How far that mix is from the one that was trained on: 0 is the same, 1 has nothing in common (Jensen-Shannon divergence).",
        (),
        lambda sources, _: [((), drift) for now in _classifier(sources) if (drift := now.drift()) is not None],
        unit="1",
        over_workers="mean",
    ),
    Reading(
        "slo_gateway_classify_known_applications",
        "Applications whose use case is remembered.",
        (),
        lambda sources, _: [((), now.known()) for now in _classifier(sources)],
        over_workers="max",
    ),
    Reading(
        "slo_gateway_classify_shadow_total",
        "Looks by their use case and by what the shadow model would have said.",
        ("use_case", "shadow_use_case"),
        lambda sources, _: [(pair, count) for now in _classifier(sources) for pair, count in now.shadowed.items()],
        kind="counter",
    ),
    Reading(
        "slo_gateway_second_opinions_total",
        "Second opinions that were asked for, by how that ended: the application's use case changed or did not, no room, or no answer.",
        ("end",),
        lambda sources, _: [((end,), count) for now in _second(sources) for end, count in now.ended.items()],
        kind="counter",
    ),
    Reading(
        "slo_gateway_second_opinion_answer_seconds_total",
        "How long all answers took together, their turn included.",
        (),
        lambda sources, _: [((), now.answers_s) for now in _second(sources)],
        unit="s",
        kind="counter",
    ),
    Reading(
        "slo_gateway_second_opinion_up",
        "1 when the process that gives second opinions answers.",
        (),
        lambda sources, _: [((), up)] if (up := sources.adviser_is_up()) is not None else [],
    ),
    # The gateway and its processes.
    Reading(
        "slo_gateway_ready",
        "1 when traffic should be sent here.",
        (),
        lambda sources, _: [((), not sources.not_ready())],
        over_workers="max",
    ),
    Reading(
        "slo_gateway_config_last_reload_successful",
        "0 when the configuration's file was refused the last time it was read, and an older one is in force.",
        (),
        lambda sources, _: [((), not sources.reload_refused())],
        over_workers="min",
    ),
    Reading(
        "slo_gateway_worker_accepting",
        "1 when a worker takes connections.",
        _WORKER,
        lambda sources, _: [((sources.worker(),), sources.accepting())],
        over_workers="max",
    ),
    Reading(
        "slo_gateway_worker_restarts_total",
        "Workers that took another one's place, by why: after a crash at most the last second of what that one counted is missing.",
        ("why",),
        lambda sources, _: [((why,), count) for why, count in sources.restarts().items()],
        kind="counter",
    ),
    Reading(
        "slo_gateway_worker_loop_lag_seconds",
        "The worst lateness of a worker's own timers of late: how long streams were held up.",
        _WORKER,
        lambda sources, _: [((sources.worker(),), sources.loop_lag_s())],
        unit="s",
        over_workers="max",
    ),
    Reading(
        "slo_gateway_connections",
        "Open client connections, by worker.",
        _WORKER,
        lambda sources, _: [((sources.worker(),), sources.connections())],
    ),
    Reading(
        "slo_gateway_limit_hits_total",
        "Clients turned away by a limit, by its key in the configuration.",
        ("limit",),
        lambda sources, _: [((name,), count) for name, count in sources.limit_hits().items()],
        kind="counter",
    ),
    Reading(
        "slo_gateway_telemetry_dropped_total",
        "Data points, spans and log lines given up because their destination was slow or gone.",
        ("signal",),
        lambda sources, _: [((name,), count) for name, count in sources.dropped().items()],
        kind="counter",
    ),
    Reading(
        "slo_gateway_start_time_seconds",
        "When the gateway started, in Unix time.",
        (),
        lambda sources, _: [((), sources.started_unix_s())],
        unit="s",
        over_workers="min",
    ),
    Reading(
        "slo_gateway_info",
        "Always 1; the labels say what runs here.",
        ("version", "mode", "policy"),
        lambda sources, _: [(sources.labels(), 1)],
        over_workers="max",
    ),
)
