"""What a collector gets over HTTP, and what happens when there is none."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.measure.histogram import OTEL_TTFT_EDGES_S
from gateway.telemetry.instruments import METRICS
from gateway.telemetry.otlp import Otlp, OtlpSettings
from gateway.telemetry.points import otlp_name, resource
from gateway.telemetry.spans import Spans
from tests.admin.conftest import Operator
from tests.conftest import HANG_S, MODEL, Place, Script, ScriptedEngine, chat, closed_port, json_answer, until, whole
from tests.measure.conftest import completed, placed

POOL = {"tier": "premium", "gpu": "H100", "model": MODEL}
TRACEPARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collector:
    """Takes OTLP over HTTP, as a collector does. `status` is what it answers; nothing at all while `held`."""

    def __init__(self) -> None:
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.held = threading.Event()
        self.held.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.held.wait(HANG_S)
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if outer.status == 200:
                    outer.headers.append(dict(self.headers))
                    if self.path == "/v1/traces":
                        outer.traces.append(ExportTraceServiceRequest.FromString(body))
                    elif self.path == "/v1/metrics":
                        outer.metrics.append(ExportMetricsServiceRequest.FromString(body))
                self.send_response(outer.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.held.set()
        self.server.shutdown()
        self.server.server_close()

    def spans(self) -> list[Any]:
        return [s for request in self.traces for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]

    def points(self) -> dict[str, Any]:
        """The last of each metric, by name."""
        return {
            metric.name: metric
            for request in self.metrics
            for r in request.resource_metrics
            for scope in r.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.stop()


Sending = Callable[..., Otlp]


@pytest.fixture
def sending(operator: Operator, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sending]:
    """Starts to send what an operator's worker has, to `url`."""
    made: list[Otlp] = []
    switch_s = sys.getswitchinterval()

    def start(url: str, traceparent: bytes = b"", **more: str) -> Otlp:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        for name, value in more.items():
            monkeypatch.setenv(name, value)
        settings = OtlpSettings.of({"OTEL_EXPORTER_OTLP_ENDPOINT": url} | more)
        assert settings is not None
        spans = Spans(0.0, time.time, operator.views.now_s, lambda ticket: traceparent, Random(1))
        otlp = Otlp(settings, spans, operator.worker.attainment, operator.views)

        async def begin() -> None:
            otlp.start()

        operator.loop.run_until_complete(begin())
        made.append(otlp)
        return otlp

    yield start
    for otlp in made:
        otlp.stop()
    sys.setswitchinterval(switch_s)


def spans_of(otlp: Otlp) -> Spans:
    assert otlp._spans is not None
    return otlp._spans


def attributes(of: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in of.attributes}


def test_a_collector_gets_the_span_of_a_missed_request_in_its_callers_trace(sending: Sending, collector: Collector) -> None:
    otlp = sending(collector.url, TRACEPARENT, OTEL_BSP_SCHEDULE_DELAY="20")
    spans_of(otlp).observe(placed(), completed(ttft_s=0.4), 2000.0)
    [span] = until(collector.spans, what="a span")
    assert span.trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert span.parent_span_id.hex() == "00f067aa0ba902b7"
    assert span.name == "chat llama-8b"
    told = attributes(span)
    assert told["slo_gateway.attained"] is False
    assert told["gen_ai.usage.output_tokens"] == 200
    assert span.end_time_unix_nano - span.start_time_unix_nano == pytest.approx(5e9, abs=1e4)
    assert [event.name for event in span.events] == ["started", "first token"]


def test_a_collector_gets_every_metric_with_what_prometheus_would_read(sending: Sending, collector: Collector, operator: Operator) -> None:
    operator.traffic()
    sending(collector.url).stop()  # the last counts are sent at the end
    points = collector.points()
    read = "".join(operator.views.metrics())
    named = {otlp_name(metric): metric for metric in METRICS if f"\n{metric.name}" in read}
    assert set(named) <= set(points)
    assert set(points) <= {otlp_name(metric) for metric in METRICS}
    for name, metric in named.items():
        assert points[name].unit == metric.unit
        assert points[name].description == metric.about
        assert points[name].WhichOneof("data") == {"counter": "sum", "gauge": "gauge", "histogram": "histogram"}[metric.kind]
    attained = {
        attributes(p)["use_case"]: p.as_int
        for p in points["slo_gateway.requests"].sum.data_points
        if attributes(p)["result"] == "attained" and p.as_int
    }
    assert attained == {"chatbot": 8, "summarization_short": 2}
    assert points["slo_gateway.requests"].sum.is_monotonic


def test_the_histograms_add_up_and_have_an_edge_at_every_target(sending: Sending, collector: Collector, operator: Operator) -> None:
    operator.traffic()
    sending(collector.url).stop()
    [chat] = [p for p in collector.points()["slo_gateway.ttft"].histogram.data_points if attributes(p)["use_case"] == "chatbot"]
    assert sum(chat.bucket_counts) == chat.count == 9
    at = list(chat.explicit_bounds).index(0.15)
    assert sum(chat.bucket_counts[: at + 1]) == 8
    assert chat.sum == pytest.approx(1.2)
    assert not chat.HasField("min")
    [operation] = collector.points()["gen_ai.server.time_to_first_token"].histogram.data_points
    assert tuple(operation.explicit_bounds) == OTEL_TTFT_EDGES_S
    assert operation.count == 11
    assert attributes(operation)["gen_ai.operation.name"] == "chat"


def test_metrics_are_sent_again_and_again_while_the_gateway_runs(sending: Sending, collector: Collector, operator: Operator) -> None:
    otlp = sending(collector.url, OTEL_METRIC_EXPORT_INTERVAL="20")
    operator.traffic()

    async def wait() -> None:
        end_s = time.monotonic() + HANG_S
        while len(collector.metrics) < 3 and time.monotonic() < end_s:
            await asyncio.sleep(0.01)

    operator.loop.run_until_complete(wait())
    assert len(collector.metrics) >= 3
    assert otlp.dropped == {"metrics": 0, "traces": 0}


def test_many_data_points_come_in_requests_of_bounded_size(sending: Sending, collector: Collector, operator: Operator) -> None:
    for number in range(200):
        operator.worker.attainment.observe(placed(use_case=f"u{number}"), completed(), 2000.0)
    sending(collector.url).stop()
    assert len(collector.metrics) > 3
    sent = {attributes(p)["use_case"] for p in collector.points()["slo_gateway.ttft"].histogram.data_points}
    assert len(sent) == 200


def test_every_process_is_an_instance_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    code = "from gateway.telemetry.points import resource; print(resource().attributes['service.instance.id'])"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    ours = resource().attributes
    assert ours["service.name"] == "slo-gateway"
    assert ours["service.version"]
    assert len(other) == 36
    assert ours["service.instance.id"] not in ("", other)


def test_who_it_is_can_be_said_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "gate-eu")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,service.instance.id=pod-7")
    known = resource().attributes
    assert (known["service.name"], known["service.instance.id"], known["deployment.environment.name"]) == ("gate-eu", "pod-7", "prod")


def test_the_standard_variables_are_heard(sending: Sending, collector: Collector) -> None:
    otlp = sending(
        collector.url,
        OTEL_BSP_SCHEDULE_DELAY="20",
        OTEL_METRICS_EXPORTER="none",
        OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20t0ken",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
    )
    spans_of(otlp).observe(placed(), completed(ttft_s=0.4), 2000.0)
    until(collector.spans, what="a span")
    assert collector.headers[0]["authorization"] == "Bearer t0ken"
    assert collector.headers[0]["Content-Encoding"] == "gzip"
    otlp.stop()
    assert not collector.metrics


def test_without_a_collector_things_are_dropped_counted_and_told_once(
    sending: Sending, operator: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    operator.traffic()
    otlp = sending(f"http://127.0.0.1:{closed_port()}", OTEL_BSP_SCHEDULE_DELAY="20", OTEL_EXPORTER_OTLP_TIMEOUT="0.2")
    for expected in (1, 2):
        spans_of(otlp).observe(placed(), completed(ttft_s=0.4), 2000.0)
        until(lambda expected=expected: otlp.dropped["traces"] == expected, what="the span to be given up")  # type: ignore[misc]
    otlp.stop()
    assert otlp.dropped["metrics"] > 50
    assert [r.message for r in caplog.records if "traces" in r.message] == [
        "the OpenTelemetry collector does not take traces; they are dropped and counted until it does"
    ]


def test_a_collector_that_comes_back_is_taken_up_again(sending: Sending, collector: Collector) -> None:
    otlp = sending(collector.url, OTEL_BSP_SCHEDULE_DELAY="20")
    collector.status = 400
    spans_of(otlp).observe(placed(), completed(ttft_s=0.4), 2000.0)
    until(lambda: otlp.dropped["traces"] == 1)
    collector.status = 200
    spans_of(otlp).observe(placed(), completed(ttft_s=0.4), 2000.0)
    assert len(until(collector.spans, what="a span")) == 1


def test_a_collector_that_hangs_holds_neither_the_loop_nor_the_end(
    sending: Sending, collector: Collector, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.telemetry.otlp.STOP_S", 0.1)
    collector.held.clear()
    otlp = sending(collector.url, OTEL_BSP_SCHEDULE_DELAY="20", OTEL_METRIC_EXPORT_INTERVAL="20")
    for _ in range(5000):
        spans_of(otlp).observe(placed(), completed(ttft_s=0.4), 2000.0)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while turns < 50:
            await asyncio.sleep(0.001)
            turns += 1

    operator.loop.run_until_complete(asyncio.wait_for(turn(), HANG_S))
    assert turns == 50
    assert spans_of(otlp).dropped > 0
    assert len(spans_of(otlp).waiting) <= 2048
    otlp.stop()
    assert otlp._thread.is_alive()  # it was waited for, but not for ever; as a daemon it ends with the process


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, (True, True)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, (True, False)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, (False, True)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "True"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
    ],
)
def test_nothing_is_sent_unless_the_environment_asks_for_it(environ: dict[str, str], wanted: tuple[bool, bool] | None) -> None:
    settings = OtlpSettings.of(environ)
    assert (None if settings is None else (settings.traces, settings.metrics)) == wanted


def test_a_number_that_is_none_is_ignored() -> None:
    settings = OtlpSettings.of(
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_METRIC_EXPORT_INTERVAL": "often", "OTEL_BSP_SCHEDULE_DELAY": "-3"}
    )
    assert settings is not None
    assert (settings.metrics_every_s, settings.spans_every_s) == (60.0, 5.0)


def test_opentelemetry_is_imported_only_when_it_is_asked_for() -> None:
    code = (
        "import sys, gateway.telemetry.otlp, gateway.telemetry.points, gateway.telemetry.spans, gateway.telemetry.exposition;"
        "sys.exit(any(name.split('.')[0] == 'opentelemetry' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_running_gateway_tells_its_collector_what_it_served(collector: Collector, place: Place) -> None:
    engine = place.engine()
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "20"}
    gateway = place.gateway(place.config({"premium": POOL | {"instances": [engine.url]}}), env=environ)
    headers = {"traceparent": TRACEPARENT.decode(), "x-slo-use-case": "chatbot"}
    secret = "swordfish-seventeen"
    body = chat(True, messages=[{"role": "user", "content": secret}])
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200
    [span] = until(collector.spans, what="a span")
    assert span.trace_id.hex() == TRACEPARENT.split(b"-")[1].decode()
    assert attributes(span)["slo_gateway.request_id"] == answer.headers["x-request-id"]
    gateway.stop()
    [ttft] = collector.points()["slo_gateway.ttft"].histogram.data_points
    assert ttft.count == 1
    assert not any(secret.encode() in request.SerializeToString() for request in (*collector.traces, *collector.metrics))


def test_an_engine_gets_the_gateways_span_as_its_parent(
    collector: Collector, place: Place, scripted: Callable[[Script], ScriptedEngine]
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(whole()))
        await writer.drain()

    engine = scripted(answer)
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "20"}
    gateway = place.gateway(place.config({"premium": POOL | {"instances": [engine.url]}}), env=environ)
    headers = {"traceparent": TRACEPARENT.decode()}
    assert httpx.post(f"{gateway.url}/v1/chat/completions", json=chat(), headers=headers).status_code == 200
    [span] = until(collector.spans, what="a span")
    [request] = [request for request in engine.requests if b"traceparent" in request]
    sent = next(line for line in request.split(b"\r\n") if line.startswith(b"traceparent: "))
    assert sent == b"traceparent: 00-%b-%b-01" % (span.trace_id.hex().encode(), span.span_id.hex().encode())
