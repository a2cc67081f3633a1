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
from typing import TYPE_CHECKING

from gateway.measure.attainment import Attainment, CellKey
from gateway.measure.tally import Tally
from gateway.telemetry.exemplars import ByHistogram
from gateway.telemetry.instruments import METRICS
from gateway.telemetry.points import Snapshot, in_parts, readable, resource, scope, sdk_metrics
from gateway.telemetry.readings import Reading
from gateway.telemetry.sources import Sources
from gateway.telemetry.spans import Spans

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

log = logging.getLogger("slo_gateway")

STEP_S = 0.0005  # of the loop's time at once
SWITCH_S = 0.0005  # Python's default of 5 ms would let the thread hold every stream up that long, again and again
STOP_S = 3.0  # what a collector gets at the end


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


class Otlp:
    """`start` in the loop, `stop` at the end. `spans` may be None when there are none to send; it is observed by others."""

    def __init__(
        self, settings: OtlpSettings, spans: Spans | None, attainment: Attainment, sources: Sources, instance_id: str = ""
    ) -> None:
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
        self.resource = resource(instance_id)

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

    def exemplars(self) -> ByHistogram:
        """Requests whose spans a collector was, or will be, told of."""
        return self._spans.exemplars.by_histogram() if self._spans is not None else {}

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
        yield Snapshot(time.time(), cells, readings, self.exemplars())

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

        ours, sent = scope(), True
        for part, points in in_parts(sdk_metrics(snapshot, self._sources.started_unix_s())):
            data = MetricsData([ResourceMetrics(self.resource, [ScopeMetrics(ours, part, "")], "")])
            try:
                sent = sent and self._metrics.export(data).name == "SUCCESS"  # after one failure the rest is only counted
            except Exception:
                log.exception("metrics could not be exported")
                sent = False
            self._told("metrics", sent, points)

    def _told(self, signal: str, sent: bool, count: int) -> None:
        if not sent:
            self.dropped[signal] += count
        if sent and signal in self._unwell:
            self._unwell.discard(signal)
            log.info("the OpenTelemetry collector takes %s again", signal)
        elif not sent and signal not in self._unwell:
            self._unwell.add(signal)
            log.warning("the OpenTelemetry collector does not take %s; they are dropped and counted until it does", signal)
