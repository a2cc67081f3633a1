"""Sends metrics and spans to an OpenTelemetry collector, over HTTP, by opentelemetry-sdk's exporters.

It is there when `OTEL_EXPORTER_OTLP_ENDPOINT` (or the traces' or metrics' own) is set, and the exporters read the other standard
variables themselves. Only then is anything of OpenTelemetry imported. The event loop takes a copy of the counts in small steps;
everything else happens in one thread. A collector that is slow or gone costs data and a counter, never a request.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from uuid import uuid4

import gateway
from gateway.core.flow import Endpoint
from gateway.measure.attainment import Attainment, CellKey
from gateway.measure.histogram import Histogram
from gateway.measure.tally import Tally
from gateway.telemetry.instruments import (
    METRICS,
    OPERATIONS,
    PROVIDER,
    CellCounter,
    CellHistogram,
    GenAiHistogram,
    Metric,
    Reading,
    Sources,
)
from gateway.telemetry.spans import SAMPLED, Span, Spans

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics.export import HistogramDataPoint, NumberDataPoint
    from opentelemetry.sdk.metrics.export import Metric as SdkMetric
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

log = logging.getLogger("slo_gateway")

STEP_S = 0.0005  # of the loop's time at once
SWITCH_S = 0.0005  # Python's default of 5 ms would let the thread hold every stream up that long, again and again
POINTS_A_REQUEST = 500  # data points; some 200 kB
STOP_S = 3.0  # what a collector gets at the end
_UNKNOWN = cast(float, None)  # least and greatest value: optional on the wire, and of no use over a process's life


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """What the environment asks for. Durations in seconds."""

    traces: bool
    metrics: bool
    metrics_every_s: float = 60.0
    spans_every_s: float = 5.0
    spans_at_once: int = 512

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> OtlpSettings | None:
        """None when nothing is to be sent. Numbers that are none are ignored, as OpenTelemetry asks."""

        def number(name: str, default: float) -> float:
            text = environ.get(name, "").strip()
            return float(text) if text.isdecimal() and int(text) > 0 else default

        def wanted(signal: str) -> bool:
            if environ.get(f"OTEL_{signal}_EXPORTER", "otlp").strip().lower() == "none":
                return False
            return bool(environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))

        traces, metrics = wanted("TRACES"), wanted("METRICS")
        if not (traces or metrics) or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return None
        return cls(
            traces,
            metrics,
            number("OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1000,
            number("OTEL_BSP_SCHEDULE_DELAY", 5_000) / 1000,
            int(number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)),
        )


@dataclass(slots=True)
class Snapshot:
    """All counts at one moment, copied: the thread may take its time with them."""

    at_unix_s: float
    cells: list[tuple[CellKey, Tally]]
    readings: dict[str, list[tuple[tuple[str, ...], float]]]


class Otlp:
    """`start` in the loop, `stop` at the end. `spans` may be None when there are none to send; it is observed by others."""

    def __init__(self, settings: OtlpSettings, spans: Spans | None, attainment: Attainment, sources: Sources) -> None:
        self.settings = settings
        self.dropped = {"metrics": 0, "traces": 0}  # data points, spans
        self._spans = spans if settings.traces else None
        self._attainment = attainment
        self._sources = sources
        self._snapshot: Snapshot | None = None
        self._unwell: set[str] = set()
        self._wake = threading.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        # Imported here and not in the thread, where it would be the first thing that requests have to wait for.
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # a collector that is gone is told once, by us
        self._traces: OTLPSpanExporter | None = OTLPSpanExporter() if settings.traces else None
        self._metrics: OTLPMetricExporter | None = OTLPMetricExporter() if settings.metrics else None
        self.resource = resource()

    def start(self) -> None:
        """Begin to send. To be called in the running loop."""
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))
        self._thread.start()
        if self._metrics is not None:
            self._task = asyncio.get_running_loop().create_task(self._copy_regularly())

    def stop(self) -> None:
        """Send what is left; waits for the collector at most STOP_S."""
        if self._task is not None:
            self._task.cancel()
        if not self._thread.is_alive():
            return
        if self._metrics is not None:
            self._hand_over(list(self._copy())[-1])
        self._stopping = True
        self._wake.set()
        self._thread.join(STOP_S)

    # ---- in the loop

    async def _copy_regularly(self) -> None:
        while True:
            await asyncio.sleep(self.settings.metrics_every_s)
            try:
                await self._copy_once()
            except Exception:
                log.exception("the metrics could not be copied for export")

    async def _copy_once(self) -> None:
        until_s = time.perf_counter() + STEP_S
        for snapshot in self._copy():
            if snapshot is not None:
                self._hand_over(snapshot)
            if time.perf_counter() >= until_s:
                await asyncio.sleep(0)
                until_s = time.perf_counter() + STEP_S

    def _copy(self) -> Iterator[Snapshot | None]:
        """In small steps; the last one is the answer."""
        cells: list[tuple[CellKey, Tally]] = []
        for cell in list(self._attainment.cells.values()):
            cells.append((cell.key, cell.total()))
            yield None
        readings: dict[str, list[tuple[tuple[str, ...], float]]] = {}
        for metric in METRICS:
            if isinstance(metric, Reading):
                readings[metric.name] = list(metric.of(self._sources, (key for key, _ in cells)))
                yield None
        yield Snapshot(time.time(), cells, readings)

    def _hand_over(self, snapshot: Snapshot | None) -> None:
        # One that was not taken yet is replaced: counts are cumulative, the newer tells all that the older would have.
        self._snapshot = snapshot
        self._wake.set()

    # ---- in the thread

    def _run(self) -> None:
        while True:
            stopping = self._stopping
            self._send_spans()
            snapshot, self._snapshot = self._snapshot, None
            if snapshot is not None:
                self._send_metrics(snapshot)
            if stopping:
                return
            self._wake.wait(self.settings.spans_every_s)
            self._wake.clear()

    def _send_spans(self) -> None:
        if self._spans is None or self._traces is None:
            return
        waiting = self._spans.waiting
        while waiting:
            batch = [waiting.popleft() for _ in range(min(len(waiting), self.settings.spans_at_once))]
            try:
                sent = self._traces.export([readable(span, self.resource) for span in batch]).name == "SUCCESS"
            except Exception:
                log.exception("spans could not be exported")
                sent = False
            self._told("traces", sent, len(batch))
            if not sent:
                return  # what waits meanwhile is bounded

    def _send_metrics(self, snapshot: Snapshot) -> None:
        if self._metrics is None:
            return
        from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics

        scope = _scope()
        for part, points in _parts(sdk_metrics(snapshot, self._sources.started_unix_s())):
            data = MetricsData([ResourceMetrics(self.resource, [ScopeMetrics(scope, part, "")], "")])
            try:
                sent = self._metrics.export(data).name == "SUCCESS"
            except Exception:
                log.exception("metrics could not be exported")
                sent = False
            self._told("metrics", sent, points)
            if not sent:
                return

    def _told(self, signal: str, sent: bool, count: int) -> None:
        if not sent:
            self.dropped[signal] += count
        if sent and signal in self._unwell:
            self._unwell.discard(signal)
            log.info("the OpenTelemetry collector takes %s again", signal)
        elif not sent and signal not in self._unwell:
            self._unwell.add(signal)
            log.warning("the OpenTelemetry collector does not take %s; they are dropped and counted until it does", signal)


def resource() -> Resource:
    """Who we are: what OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say, completed. Every process is an instance of its own."""
    from opentelemetry.sdk.resources import Resource

    found = Resource.create()
    known = found.attributes
    ours = {"service.version": gateway.__version__, "service.instance.id": str(uuid4())}
    if str(known.get("service.name", "unknown_service")).startswith("unknown_service"):
        ours["service.name"] = "slo-gateway"
    return found.merge(Resource({name: value for name, value in ours.items() if name not in known or name == "service.name"}))


def readable(span: Span, told_by: Resource) -> ReadableSpan:
    """As the SDK's exporter takes it."""
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    flags = TraceFlags(SAMPLED)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(span.trace_id, span.span_id, False, flags),
        parent=SpanContext(span.trace_id, span.parent_id, True, flags) if span.parent_id else None,
        resource=told_by,
        attributes=span.attributes,
        events=[Event(name, {}, _ns(at_unix_s)) for name, at_unix_s in span.events],
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
        start_time=_ns(span.start_unix_s),
        end_time=_ns(span.end_unix_s),
        instrumentation_scope=_scope(),
    )


def otlp_name(metric: Metric) -> str:
    """`slo_gateway_ttft_seconds` is `slo_gateway.ttft` with unit `s`, and a collector that writes Prometheus makes it the former again."""
    if isinstance(metric, GenAiHistogram):
        return metric.otel_name
    return metric.name.removesuffix("_total").removesuffix("_seconds").replace("slo_gateway_", "slo_gateway.", 1)


def sdk_metrics(snapshot: Snapshot, started_unix_s: float) -> Iterator[SdkMetric]:
    """All metrics of a snapshot, cumulative since the process started."""
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, NumberDataPoint, Sum
    from opentelemetry.sdk.metrics.export import Histogram as SdkHistogram
    from opentelemetry.sdk.metrics.export import Metric as SdkMetric

    start_ns, at_ns = _ns(started_unix_s), _ns(snapshot.at_unix_s)
    cumulative = AggregationTemporality.CUMULATIVE

    def number(labels: Mapping[str, str], value: float) -> NumberDataPoint:
        return NumberDataPoint(dict(labels), start_ns, at_ns, value)

    for metric in METRICS:
        data: Sum | Gauge | SdkHistogram
        match metric:
            case CellCounter():
                counts = [
                    number({**key._asdict(), **({metric.by: value} if metric.by else {})}, count)
                    for key, tally in snapshot.cells
                    for value, count in metric.of(tally).items()
                ]
                data = Sum(counts, cumulative, is_monotonic=True)
            case CellHistogram():
                found = ((key._asdict(), metric.of(tally)) for key, tally in snapshot.cells)
                data = SdkHistogram([_point(labels, h, h.edges.values_s, start_ns, at_ns) for labels, h in found if h], cumulative)
            case GenAiHistogram():
                merged = _by_operation(metric, snapshot.cells)
                data = SdkHistogram([_point(labels, h, metric.edges_s, start_ns, at_ns) for labels, h in merged if h], cumulative)
            case Reading():
                read = [
                    number(dict(zip(metric.labels, values, strict=True)), float(figure))
                    for values, figure in snapshot.readings[metric.name]
                ]
                data = Sum(read, cumulative, is_monotonic=True) if metric.kind == "counter" else Gauge(read)
        if data.data_points:
            yield SdkMetric(otlp_name(metric), metric.about, metric.unit, data)


def _by_operation(metric: GenAiHistogram, cells: list[tuple[CellKey, Tally]]) -> list[tuple[dict[str, str], Histogram]]:
    merged: dict[tuple[str, str], Histogram] = {}
    for key, tally in cells:
        group = (OPERATIONS[Endpoint(key.endpoint)], key.model)
        if group in merged:
            merged[group].merge(metric.of(tally))
        else:
            merged[group] = metric.of(tally).copy()
    names = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
    return [(dict(zip(names, (operation, PROVIDER, model), strict=True)), h) for (operation, model), h in merged.items()]


def _point(labels: Mapping[str, str], histogram: Histogram, edges_s: tuple[float, ...], start_ns: int, at_ns: int) -> HistogramDataPoint:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    every = dict(zip(histogram.edges.values_s, histogram.cumulative(), strict=True))
    reached = [every[edge] for edge in edges_s]
    count = histogram.count
    buckets = [upper - lower for lower, upper in zip([0, *reached], [*reached, count], strict=True)]
    return HistogramDataPoint(dict(labels), start_ns, at_ns, count, histogram.sum_s, buckets, edges_s, _UNKNOWN, _UNKNOWN)


def _parts(metrics: Iterator[SdkMetric]) -> Iterator[tuple[list[SdkMetric], int]]:
    """In requests of about POINTS_A_REQUEST data points."""
    part: list[SdkMetric] = []
    points = 0
    for metric in metrics:
        part.append(metric)
        points += len(metric.data.data_points)
        if points >= POINTS_A_REQUEST:
            yield part, points
            part, points = [], 0
    if part:
        yield part, points


def _scope() -> InstrumentationScope:
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    return InstrumentationScope("slo-gateway", gateway.__version__)


def _ns(unix_s: float) -> int:
    return int(unix_s * 1e9)
