"""Every metric of the gateway, one row each: name, kind, unit, labels, and what it is of. To add one, add a row.

/metrics (exposition.py), OTLP (otlp.py) and docs/metrics.md are all made from these rows, so that they cannot differ. Here is what is
counted for each request; what is read when somebody asks is in readings.py. Names are written
as in Prometheus; in OTLP the unit is a field of its own and the prefix ends in a dot (`slo_gateway.ttft`, unit `s`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.core.flow import Endpoint, FailReason, RefuseReason
from gateway.measure.attainment import CellKey
from gateway.measure.histogram import OTEL_DURATION_EDGES_S, OTEL_TPOT_EDGES_S, OTEL_TTFT_EDGES_S, Histogram
from gateway.measure.tally import Tally
from gateway.telemetry.readings import READINGS, SLIS, Reading

CELL_LABELS = CellKey._fields
RESULTS = ("attained", "missed", "refused", "failed", "client_gone", "client_error")
TOKEN_TYPES = ("input", "cached", "output")
PROVIDER = "slo_gateway"  # gen_ai.provider.name has no value for one's own servers; a custom one is allowed

# The GenAI operation an endpoint is; /v1/responses and /v1/messages are chat by another protocol.
OPERATIONS = {
    Endpoint.CHAT: "chat",
    Endpoint.COMPLETIONS: "text_completion",
    Endpoint.RESPONSES: "chat",
    Endpoint.EMBEDDINGS: "embeddings",
    Endpoint.MESSAGES: "chat",
}


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
    *READINGS,
)
