"""A span for the sampled and for every miss, in the caller's trace, with nothing of a prompt."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.flow import FailReason, Outcome, Placement, RefuseReason, Result, Ticket
from gateway.telemetry import spans as module
from gateway.telemetry.spans import Parent, Spans, read_traceparent
from tests.measure.conftest import START_S, completed, placed, waiting

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{SPAN}-01".encode()
UNSAMPLED = f"00-{TRACE}-{SPAN}-00".encode()
EPOCH_UNIX_S = 1_700_000_000.0


def spans_of(sample_ratio: float = 0.0, traceparent: bytes = b"") -> Spans:
    return Spans(sample_ratio, lambda: EPOCH_UNIX_S + 50.0, lambda: START_S + 50.0, lambda ticket: traceparent, Random(7))


def observed(spans: Spans, subject: Placement | Ticket, outcome: Outcome) -> Spans:
    spans.observe(subject, outcome, START_S + 6)
    return spans


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (completed(), 0),
        (completed(ttft_s=0.2), 1),
        (Outcome(Result.FAILED, fail_reason=FailReason.CUT), 1),
        (Outcome(Result.CLIENT_GONE, status=499), 0),
        (Outcome(Result.FAILED, fail_reason=FailReason.ENGINE_ERROR, status=400), 0),
    ],
)
def test_every_missed_request_has_a_span_however_rare_samples_are(outcome: Outcome, told: int) -> None:
    assert len(observed(spans_of(), placed(), outcome).waiting) == told


def test_a_refused_request_has_a_span_too() -> None:
    refused = Outcome(Result.REFUSED, refuse_reason=RefuseReason.QUEUE_FULL, status=429, queue_s=0.001)
    [span] = observed(spans_of(), waiting(), refused).waiting
    assert span.error == span.attributes["error.type"] == "queue_full"
    assert span.attributes["http.response.status_code"] == 429
    assert "slo_gateway.pool" not in span.attributes


def test_a_share_of_the_others_is_sampled() -> None:
    spans = spans_of(sample_ratio=0.1)
    for _ in range(2000):
        observed(spans, placed(), completed())
    assert 150 <= len(spans.waiting) <= 250
    assert len({span.trace_id for span in spans.waiting}) == len(spans.waiting)


def test_a_callers_sampled_trace_is_continued() -> None:
    [span] = observed(spans_of(traceparent=SAMPLED), placed(), completed()).waiting
    assert f"{span.trace_id:032x}" == TRACE
    assert f"{span.parent_id:016x}" == SPAN
    assert span.span_id not in (0, span.parent_id)


def test_a_caller_that_does_not_sample_is_heard_but_a_miss_is_told_all_the_same() -> None:
    assert not observed(spans_of(traceparent=UNSAMPLED), placed(), completed()).waiting
    [span] = observed(spans_of(traceparent=UNSAMPLED), placed(), completed(ttft_s=9.0)).waiting
    assert f"{span.trace_id:032x}" == TRACE


def test_the_engine_is_told_the_span_that_will_be_written() -> None:
    spans = spans_of(traceparent=SAMPLED)
    placement = placed()
    onward = spans.onward(SAMPLED, placement.ticket.request.request_id)
    [span] = observed(spans, placement, completed()).waiting
    assert read_traceparent(onward) == Parent(span.trace_id, span.span_id, True)


@pytest.mark.parametrize("sent", [UNSAMPLED, b"", b"nonsense"])
def test_without_a_span_of_ours_the_header_goes_on_as_it_came(sent: bytes) -> None:
    assert spans_of().onward(sent, "r1") == sent


@given(st.binary(max_size=80))
def test_no_header_is_too_strange_to_read(sent: bytes) -> None:
    parent = read_traceparent(sent)
    assert parent is None or (parent.trace_id > 0 and parent.span_id > 0)


@pytest.mark.parametrize(
    ("sent", "right"),
    [
        (SAMPLED, True),
        (SAMPLED.replace(b"00-4b", b"cc-4b") + b"-what-is-to-come", True),
        (SAMPLED + b"-more", False),
        (SAMPLED.replace(b"00-4b", b"ff-4b"), False),
        (SAMPLED.upper(), False),
        (b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01", False),
        (b"00-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-01", False),
        (SAMPLED[:-1], False),
        (SAMPLED + b"\n", False),
    ],
)
def test_a_traceparent_is_read_as_the_recommendation_says(sent: bytes, right: bool) -> None:
    assert (read_traceparent(sent) is not None) == right


def test_a_span_lasts_from_the_last_byte_read_to_the_last_byte_sent() -> None:
    [span] = observed(spans_of(1.0), placed(arrived_at_s=START_S + 1), completed(ttft_s=0.1, e2e_s=4.0)).waiting
    assert span.start_unix_s == EPOCH_UNIX_S + 1
    assert span.end_unix_s == EPOCH_UNIX_S + 5
    assert span.events == (("started", EPOCH_UNIX_S + 1.01), ("first token", EPOCH_UNIX_S + 1.1))


def test_it_is_told_in_the_genai_words() -> None:
    [span] = observed(spans_of(1.0), placed(), completed(cached_tokens=128)).waiting
    assert span.name == "chat llama-8b"
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "slo_gateway",
        "gen_ai.request.model": "llama-8b",
        "gen_ai.request.max_tokens": 256,
        "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": 500,
        "gen_ai.usage.cache_read.input_tokens": 128,
        "gen_ai.usage.output_tokens": 200,
        "slo_gateway.use_case": "chatbot",
        "slo_gateway.experience_class": "conversational",
        "slo_gateway.pool": "premium",
        "slo_gateway.attained": True,
    }
    assert expected.items() <= span.attributes.items()


def test_the_genai_words_are_the_conventions() -> None:
    from opentelemetry.semconv._incubating.attributes import error_attributes, gen_ai_attributes, http_attributes

    known = {
        value for name in (gen_ai_attributes, http_attributes, error_attributes) for value in vars(name).values() if isinstance(value, str)
    }
    [span] = observed(spans_of(1.0), placed(n=2), completed(ttft_s=9.0, cached_tokens=1)).waiting
    [failed] = observed(spans_of(), placed(), Outcome(Result.FAILED, fail_reason=FailReason.CUT)).waiting
    used = {name for one in (span, failed) for name in one.attributes if not name.startswith("slo_gateway.")}
    assert used <= known


def test_what_waits_is_bounded_and_what_is_given_up_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    spans = spans_of(1.0)
    for _ in range(15):
        observed(spans, placed(), completed())
    assert (len(spans.waiting), spans.dropped) == (10, 5)
