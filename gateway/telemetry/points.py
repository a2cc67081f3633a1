"""Our counts and spans as the objects that opentelemetry-sdk's exporters take. When they are sent, and by whom, is otlp.py's business.

OpenTelemetry is imported inside the functions: whoever calls them has asked for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import gateway
from gateway.core.flow import Endpoint
from gateway.measure.attainment import CellKey
from gateway.measure.histogram import Histogram
from gateway.measure.tally import Tally
from gateway.telemetry.exemplars import ByHistogram, Exemplar, by_bucket
from gateway.telemetry.instruments import METRICS, OPERATIONS, PROVIDER, CellCounter, CellHistogram, GenAiHistogram, Metric
from gateway.telemetry.readings import Reading
from gateway.telemetry.spans import SAMPLED, Span

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint, NumberDataPoint
    from opentelemetry.sdk.metrics.export import Metric as SdkMetric
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

POINTS_A_REQUEST = 500  # data points; some 200 kB
_UNKNOWN = cast(float, None)  # least and greatest value: optional on the wire, and of no use over a process's life


@dataclass(slots=True)
class Snapshot:
    """All counts at one moment, copied: the thread may take its time with them."""

    at_unix_s: float
    cells: list[tuple[CellKey, Tally]]
    readings: dict[str, list[tuple[tuple[str, ...], float]]]
    exemplars: ByHistogram


OURS = ("service.name", "service.instance.id")  # these, when we say them, replace what is there


def resource(instance_id: str = "") -> Resource:
    """Who we are: what OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say, completed. Without `instance_id` the SDK gives every process
    a `service.instance.id` of its own; with one, an id in the environment, which all workers have in common, does not count."""
    from opentelemetry.sdk.resources import Resource

    found = Resource.create()
    ours = {"service.version": gateway.__version__} | ({"service.instance.id": instance_id} if instance_id else {})
    if str(found.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
        ours["service.name"] = "slo-gateway"
    return found.merge(Resource({name: value for name, value in ours.items() if name not in found.attributes or name in OURS}))


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
        instrumentation_scope=scope(),
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
                found = ((key, metric.of(tally)) for key, tally in snapshot.cells)
                points = [
                    _point(key._asdict(), h, h.edges.values_s, start_ns, at_ns, snapshot.exemplars.get((metric.name, key), ()))
                    for key, h in found
                    if h
                ]
                data = SdkHistogram(points, cumulative)
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


def _point(
    labels: Mapping[str, str],
    histogram: Histogram,
    edges_s: tuple[float, ...],
    start_ns: int,
    at_ns: int,
    exemplars: Sequence[Exemplar] = (),
) -> HistogramDataPoint:
    from opentelemetry.sdk.metrics import Exemplar as SdkExemplar
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    every = dict(zip(histogram.edges.values_s, histogram.cumulative(), strict=True))
    reached = [every[edge] for edge in edges_s]
    count = histogram.count
    buckets = [upper - lower for lower, upper in zip([0, *reached], [*reached, count], strict=True)]
    shown = [SdkExemplar({}, one.value_s, _ns(one.at_unix_s), one.span_id, one.trace_id) for one in by_bucket(exemplars, edges_s).values()]
    return HistogramDataPoint(dict(labels), start_ns, at_ns, count, histogram.sum_s, buckets, edges_s, _UNKNOWN, _UNKNOWN, shown)


def in_parts(metrics: Iterator[SdkMetric]) -> Iterator[tuple[list[SdkMetric], int]]:
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


def scope() -> InstrumentationScope:
    """Who names what is told."""
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    return InstrumentationScope("slo-gateway", gateway.__version__)


def _ns(unix_s: float) -> int:
    return int(unix_s * 1e9)
