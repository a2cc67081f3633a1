"""Every metric of the gateway, one row each: name, kind, unit, labels, and what it is of. To add one, add a row.

/metrics (exposition.py), OTLP (otlp.py) and docs/metrics.md are all made from these rows, so that they cannot differ. Names are written
as in Prometheus; in OTLP the unit is a field of its own and the prefix ends in a dot (`slo_gateway.ttft`, unit `s`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.core.flow import Endpoint, FailReason, RefuseReason
from gateway.measure.attainment import CellKey
from gateway.measure.histogram import OTEL_DURATION_EDGES_S, OTEL_TPOT_EDGES_S, OTEL_TTFT_EDGES_S, Histogram
from gateway.measure.tally import Tally
from gateway.telemetry.sources import ClassifierNow, InstanceLoad, QueueLoad, QuotaNow, Sources, StoreNow

CELL_LABELS = CellKey._fields
RESULTS = ("attained", "missed", "refused", "failed", "client_gone", "client_error")
SLIS = ("ttft", "itl", "e2e")
TOKEN_TYPES = ("input", "cached", "output")
SIGNALS = ("metrics", "traces", "request_log")
PROVIDER = "slo_gateway"  # gen_ai.provider.name has no value for one's own servers; a custom one is allowed

# The GenAI operation an endpoint is; /v1/responses and /v1/messages are chat by another protocol.
OPERATIONS = {
    Endpoint.CHAT: "chat",
    Endpoint.COMPLETIONS: "text_completion",
    Endpoint.RESPONSES: "chat",
    Endpoint.EMBEDDINGS: "embeddings",
    Endpoint.MESSAGES: "chat",
}

Samples = Iterable[tuple[tuple[str, ...], float]]  # values of a row's labels, with the figure
OverWorkers = Literal["sum", "max", "min", "mean"]


@dataclass(frozen=True, slots=True)
class CellHistogram:
    """A latency, per cell."""

    name: str
    about: str
    of: Callable[[Tally], Histogram]
    labels: tuple[str, ...] = CELL_LABELS
    unit: str = "s"
    kind: str = "histogram"


@dataclass(frozen=True, slots=True)
class GenAiHistogram:
    """The same samples under the GenAI conventions' name, added up per operation and model, with their boundaries."""

    name: str
    otel_name: str
    about: str
    of: Callable[[Tally], Histogram]
    edges_s: tuple[float, ...]
    labels: tuple[str, ...] = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
    unit: str = "s"
    kind: str = "histogram"


@dataclass(frozen=True, slots=True)
class CellCounter:
    """A count that only grows, per cell; `of` gives the value for each value of the label `by` ("" = without one)."""

    name: str
    about: str
    of: Callable[[Tally], Mapping[str, int]]
    by: str = ""
    values: tuple[str, ...] = ()  # what `by` may be
    unit: str = ""
    kind: str = "counter"

    @property
    def labels(self) -> tuple[str, ...]:
        return (*CELL_LABELS, self.by) if self.by else CELL_LABELS


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


Metric = CellHistogram | GenAiHistogram | CellCounter | Reading


def _results(tally: Tally) -> Mapping[str, int]:
    return {
        "attained": tally.attained,
        "missed": tally.completed - tally.attained,
        "refused": sum(tally.refused.values()),
        "failed": sum(tally.failed.values()),
        "client_gone": tally.client_gone,
        "client_error": tally.client_error,
    }


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

METRICS: tuple[Metric, ...] = (
    # What users got, against what they were promised.
    CellCounter(
        "slo_gateway_requests_total",
        "Requests by how they ended. Attainment is attained over attained + missed + refused + failed; the other two are not offered.",
        of=_results,
        by="result",
        values=RESULTS,
    ),
    CellCounter(
        "slo_gateway_attained_strict_total",
        "Requests that attained their SLO when ITL is read as the p95 of the request's own gaps instead of its TPOT.",
        of=lambda tally: {"": tally.attained_strict},
    ),
    CellCounter(
        "slo_gateway_missed_total",
        "Completed requests that missed a target, by which; a request may miss several.",
        of=lambda tally: {"ttft": tally.missed_ttft, "itl": tally.missed_itl, "e2e": tally.missed_e2e},
        by="sli",
        values=SLIS,
    ),
    CellCounter(
        "slo_gateway_refused_total",
        "Requests refused before any engine saw them, by reason.",
        of=lambda tally: tally.refused,
        by="reason",
        values=tuple(reason.value for reason in RefuseReason),
    ),
    CellCounter(
        "slo_gateway_failed_total",
        "Requests that were started and did not complete, by reason.",
        of=lambda tally: tally.failed,
        by="reason",
        values=tuple(reason.value for reason in FailReason),
    ),
    CellCounter(
        "slo_gateway_degraded_total",
        "Requests that took a looser class instead of a refusal, as their caller allowed; under the class they were served as.",
        of=lambda tally: {"": tally.degraded},
    ),
    CellHistogram(
        "slo_gateway_ttft_seconds",
        "Last byte of a streamed request read to its first content token sent, completed requests.",
        of=lambda tally: tally.ttft,
    ),
    CellHistogram(
        "slo_gateway_itl_seconds",
        "Gap between content tokens, one sample a gap, as it happens.",
        of=lambda tally: tally.itl,
    ),
    CellHistogram(
        "slo_gateway_tpot_seconds",
        "(last token - first token) / (output tokens - 1), one sample a completed stream.",
        of=lambda tally: tally.tpot,
    ),
    CellHistogram(
        "slo_gateway_e2e_seconds",
        "Last byte of the request read to last byte sent, completed requests.",
        of=lambda tally: tally.e2e,
    ),
    CellHistogram(
        "slo_gateway_queue_seconds",
        "Time in the gateway's own queue before the request was sent to an engine, completed requests.",
        of=lambda tally: tally.queue,
    ),
    CellCounter(
        "slo_gateway_tokens_total",
        "Tokens by type, as engines report them or else as counted; cached ones are part of the input.",
        of=lambda tally: {"input": tally.prompt_tokens, "cached": tally.cached_tokens, "output": tally.output_tokens},
        by="token_type",
        values=TOKEN_TYPES,
    ),
    # The same under the names other LLM servers use.
    GenAiHistogram(
        "gen_ai_server_request_duration_seconds",
        "gen_ai.server.request.duration",
        "slo_gateway_e2e_seconds per operation and model.",
        of=lambda tally: tally.e2e,
        edges_s=OTEL_DURATION_EDGES_S,
    ),
    GenAiHistogram(
        "gen_ai_server_time_to_first_token_seconds",
        "gen_ai.server.time_to_first_token",
        "slo_gateway_ttft_seconds per operation and model.",
        of=lambda tally: tally.ttft,
        edges_s=OTEL_TTFT_EDGES_S,
    ),
    GenAiHistogram(
        "gen_ai_server_time_per_output_token_seconds",
        "gen_ai.server.time_per_output_token",
        "slo_gateway_tpot_seconds per operation and model.",
        of=lambda tally: tally.tpot,
        edges_s=OTEL_TPOT_EDGES_S,
    ),
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
