"""/metrics is what Prometheus reads, says what was observed, and never holds the loop for long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gateway.measure.histogram import OTEL_TTFT_EDGES_S
from gateway.telemetry.exposition import render
from gateway.telemetry.instruments import METRICS
from tests.admin.conftest import Operator
from tests.measure.conftest import completed, placed

CHAT_CELL = {
    "experience_class": "conversational",
    "use_case": "chatbot",
    "pool": "premium",
    "model": "llama-8b",
    "endpoint": "chat",
}


def samples(operator: Operator) -> list[Sample]:
    text = "".join(render(operator.worker.attainment, operator.views))
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(found: list[Sample], name: str, **labels: str) -> float:
    [one] = [sample.value for sample in found if sample.name == name and labels.items() <= sample.labels.items()]
    return float(one)


def test_every_metric_is_there_with_its_help_and_type(operator: Operator) -> None:
    operator.traffic()
    text = "".join(render(operator.worker.attainment, operator.views))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert len(families) == len(METRICS)
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert family.documentation == metric.about
        assert family.type == metric.kind
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), sample


def test_attainment_can_be_computed_from_requests_total(operator: Operator) -> None:
    operator.traffic()
    found = samples(operator)
    by_result: dict[str, float] = {}
    for sample in found:
        if sample.name == "slo_gateway_requests_total" and sample.labels["use_case"] == "chatbot":
            by_result[sample.labels["result"]] = by_result.get(sample.labels["result"], 0) + sample.value
    assert by_result == {"attained": 8, "missed": 1, "refused": 1, "failed": 0, "client_gone": 1, "client_error": 0}


def test_a_histogram_is_cumulative_and_has_a_bucket_at_every_target(operator: Operator) -> None:
    operator.traffic()
    found = samples(operator)
    buckets = [s for s in found if s.name == "slo_gateway_ttft_seconds_bucket" and s.labels["use_case"] == "chatbot" and s.labels["pool"]]
    counts = [sample.value for sample in buckets]
    assert counts == sorted(counts)
    assert {"0.15", "0.1", "0.6", "+Inf"} <= {sample.labels["le"] for sample in buckets}
    assert value(found, "slo_gateway_ttft_seconds_bucket", le="0.15", **CHAT_CELL) == 8
    assert value(found, "slo_gateway_ttft_seconds_bucket", le="+Inf", **CHAT_CELL) == 9
    assert value(found, "slo_gateway_ttft_seconds_count", **CHAT_CELL) == 9
    assert value(found, "slo_gateway_ttft_seconds_sum", **CHAT_CELL) == pytest.approx(8 * 0.1 + 0.4)


def test_the_genai_names_have_the_conventions_boundaries(operator: Operator) -> None:
    operator.traffic()
    edges = {
        sample.labels["le"]
        for sample in samples(operator)
        if sample.name == "gen_ai_server_time_to_first_token_seconds_bucket" and sample.labels["gen_ai_operation_name"] == "chat"
    }
    assert edges == {str(edge) for edge in OTEL_TTFT_EDGES_S} | {"+Inf"}


def test_the_fleet_shows_itself(operator: Operator) -> None:
    found = samples(operator)
    assert (
        value(found, "slo_gateway_instance_limit", instance_id="premium/127.0.0.1:9", pool="premium", tier="premium", model="llama-8b") >= 1
    )
    assert value(found, "slo_gateway_pool_usd_per_hour", pool="premium") > value(found, "slo_gateway_pool_usd_per_hour", pool="cost") > 0
    assert value(found, "slo_gateway_info", policy=operator.worker.loaded.settings.policy, mode="enforce") == 1


def test_what_is_promised_is_told_for_what_has_been_asked(operator: Operator) -> None:
    operator.traffic()
    found = samples(operator)
    assert value(found, "slo_gateway_target_seconds", use_case="chatbot", sli="ttft") == pytest.approx(0.15)
    assert not [s for s in found if s.name == "slo_gateway_target_seconds" and s.labels["use_case"] == "translation"]


def test_counters_never_fall_when_windows_close(operator: Operator) -> None:
    attainment = operator.worker.attainment
    now_s = attainment.windows.started_at_s
    last = 0.0
    for _ in range(150):
        attainment.observe(placed(), completed(), now_s)
        now_s += 1.0
        attainment.tick(now_s)
        text = "".join(render(attainment, operator.views))
        [line] = [text for text in text.splitlines() if text.startswith("slo_gateway_requests_total") and 'result="attained"' in text]
        total = float(line.rsplit(" ", 1)[1])
        assert total == last + 1
        last = total


def test_a_hostile_label_stays_one_label(operator: Operator) -> None:
    use_case = 'x"} 1\nslo_gateway_ready 7\\'
    operator.worker.attainment.observe(placed(use_case=use_case), completed(), 0.0)
    found = samples(operator)
    assert value(found, "slo_gateway_requests_total", use_case=use_case, result="attained") == 1
    assert [sample.value for sample in found if sample.name == "slo_gateway_ready"] != [7.0]


def test_a_long_label_is_cut(operator: Operator) -> None:
    operator.worker.attainment.observe(placed(use_case="u" * 5000), completed(), 0.0)
    assert max(len(v) for sample in samples(operator) for v in sample.labels.values()) == 256


def test_it_is_made_in_pieces_of_one_cell_and_metric_each(operator: Operator) -> None:
    for number in range(50):
        operator.worker.attainment.observe(placed(use_case=f"u{number}"), completed(), 0.0)
    pieces: Iterator[str] = render(operator.worker.attainment, operator.views)
    assert max(len(piece) for piece in pieces) < 8192
