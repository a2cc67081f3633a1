"""A slow bucket leads to the trace of a request in it: on /metrics for those who ask for OpenMetrics, and in what a collector gets."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gateway.admin.public import METRICS_TYPE, OPENMETRICS_TYPE
from gateway.measure.attainment import CellKey
from gateway.telemetry import exemplars as module
from gateway.telemetry.exemplars import ALWAYS, STREAMED, Exemplar, Exemplars, by_bucket
from gateway.telemetry.exposition import render
from gateway.telemetry.instruments import METRICS, CellHistogram
from gateway.telemetry.openmetrics import written
from gateway.telemetry.otlp import Otlp, OtlpSettings
from gateway.telemetry.spans import Spans
from tests.admin.conftest import Operator
from tests.measure.conftest import completed, placed

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


def slow(operator: Operator, spans: Spans, **figures: Any) -> tuple[str, str]:
    """A late request; its trace and span."""
    placement, outcome = placed(), completed(**figures)
    operator.worker.attainment.observe(placement, outcome, 0.0)
    spans.observe(placement, outcome, time.monotonic())
    return f"{spans.waiting[-1].trace_id:032x}", f"{spans.waiting[-1].span_id:016x}"


def spans_of(operator: Operator) -> Spans:
    return Spans(0.0, time.time, operator.views.now_s, lambda ticket: b"", Random(1))


def read(operator: Operator, spans: Spans | None) -> dict[str, Any]:
    found = spans.exemplars.by_histogram() if spans is not None else {}
    text = "".join(written(render(operator.worker.attainment, operator.views), found))
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_every_metric_is_valid_openmetrics(operator: Operator) -> None:
    operator.traffic()
    families = read(operator, None)
    assert set(families) == {metric.name.removesuffix("_total") for metric in METRICS}
    for metric in METRICS:
        assert families[metric.name.removesuffix("_total")].type == metric.kind


def test_a_slow_bucket_links_to_a_trace_of_a_request_in_it(operator: Operator) -> None:
    spans = spans_of(operator)
    operator.traffic()
    slow(operator, spans, ttft_s=0.41)
    trace_id, span_id = slow(operator, spans, ttft_s=0.42)
    shown = [sample for sample in read(operator, spans)["slo_gateway_ttft_seconds"].samples if sample.exemplar is not None]
    [sample] = shown
    assert sample.name == "slo_gateway_ttft_seconds_bucket"
    assert sample.labels["le"] == "0.5"
    assert sample.labels["use_case"] == "chatbot"
    assert sample.exemplar.labels == {"trace_id": trace_id, "span_id": span_id}
    assert sample.exemplar.value == pytest.approx(0.42)
    assert float(sample.exemplar.timestamp) == pytest.approx(spans.waiting[-1].end_unix_s, abs=0.01)


def test_one_above_every_edge_stands_at_the_last_bucket(operator: Operator) -> None:
    spans = spans_of(operator)
    slow(operator, spans, ttft_s=500.0)
    [sample] = [sample for sample in read(operator, spans)["slo_gateway_ttft_seconds"].samples if sample.exemplar is not None]
    assert sample.labels["le"] == "+Inf"


def test_a_request_without_a_span_is_nobodys_exemplar(operator: Operator) -> None:
    spans = spans_of(operator)
    placement = placed()
    operator.worker.attainment.observe(placement, completed(), 0.0)
    spans.observe(placement, completed(), 0.0)
    assert not spans.exemplars.by_histogram()


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (PROMETHEUS, OPENMETRICS_TYPE),
        ("application/openmetrics-text", OPENMETRICS_TYPE),
        ("text/plain;q=0.9, application/openmetrics-text;q=0.1", METRICS_TYPE),
        ("application/openmetrics-text;q=0", METRICS_TYPE),
        ("application/openmetrics-text;q=x", METRICS_TYPE),
        ("*/*", METRICS_TYPE),
        ("", METRICS_TYPE),
        (";;,,;q=,", METRICS_TYPE),
    ],
)
def test_openmetrics_is_for_those_who_ask_for_it(operator: Operator, accept: str, media_type: str) -> None:
    from gateway.admin.public import public_app

    async def answer() -> httpx.Response:
        transport = httpx.ASGITransport(app=public_app(operator.views))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.get("/metrics", headers={"accept": accept})

    got = operator.loop.run_until_complete(answer())
    assert got.headers["content-type"] == media_type
    assert got.text.endswith("# EOF\n") is (media_type == OPENMETRICS_TYPE)


def test_there_are_exemplars_for_every_latency_of_a_cell() -> None:
    assert set(STREAMED) | set(ALWAYS) == {metric.name for metric in METRICS if isinstance(metric, CellHistogram)}


def test_memory_is_bounded_and_the_newest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 50)
    kept = Exemplars()
    for number in range(500):
        kept.note(placed(use_case=f"u{number}"), completed(), number + 1, 1, 0.0)
    found = kept.by_histogram()
    assert sum(map(len, found.values())) == 50
    assert {exemplar.trace_id for found in found.values() for exemplar in found} == set(range(491, 501))


@given(st.lists(st.floats(1e-5, 1e3), max_size=30), st.lists(st.floats(1e-4, 100.0), unique=True, max_size=10).map(sorted))
def test_an_exemplar_lies_in_its_bucket(values_s: list[float], edges_s: list[float]) -> None:
    bounds = [0.0, *edges_s, float("inf")]
    for bucket, exemplar in by_bucket([Exemplar(value_s, 1, 1, 0.0) for value_s in values_s], edges_s).items():
        assert bounds[bucket] < exemplar.value_s <= bounds[bucket + 1]


def test_a_collector_gets_them_with_the_data_points(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics

    from gateway.telemetry.points import resource, scope, sdk_metrics

    spans = spans_of(operator)
    trace_id, span_id = slow(operator, spans, ttft_s=0.42)
    settings = OtlpSettings.of({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    assert settings is not None
    otlp = Otlp(settings, spans, operator.worker.attainment, operator.views)
    copy: Callable[[], Any] = otlp._copy
    snapshot = list(copy())[-1]
    metrics = list(sdk_metrics(snapshot, 0.0))
    encoded = encode_metrics(MetricsData([ResourceMetrics(resource(), [ScopeMetrics(scope(), metrics, "")], "")]))
    [told] = [m for r in encoded.resource_metrics for s in r.scope_metrics for m in s.metrics if m.name == "slo_gateway.ttft"]
    [point] = told.histogram.data_points
    [exemplar] = point.exemplars
    assert (exemplar.trace_id.hex(), exemplar.span_id.hex()) == (trace_id, span_id)
    assert exemplar.as_double == pytest.approx(0.42)
    assert CellKey(*(a.value.string_value for a in point.attributes)).use_case == "chatbot"
