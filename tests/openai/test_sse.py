"""A stream's tokens are counted the same however it is cut, and its bytes go on as they came."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.flow import Endpoint
from gateway.openai.framing import chunk
from gateway.openai.sse import Reader, normal_usage, usage_of


def event(value: Any, name: str = "", end: bytes = b"\n\n", space: bytes = b" ") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data:" + space + json.dumps(value).encode() + end


def delta(**fields: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": fields}]}


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        (delta(role="assistant"), 0),
        (delta(role="assistant", content=""), 0),
        (delta(), 0),
        (delta(content=None), 0),
        (delta(content="a"), 1),
        (delta(role="assistant", content="a"), 1),
        (delta(reasoning="r"), 1),
        (delta(reasoning_content="r"), 1),
        (delta(refusal="no"), 1),
        (delta(tool_calls=[{"index": 0, "function": {"name": "f"}}]), 1),
        (delta(tool_calls=[]), 0),
        ({"object": "x", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}, 0),
        ({"object": "x", "choices": [{"delta": {}}, {"delta": {"content": "second"}}]}, 1),
        ({"object": "text_completion", "choices": [{"text": "a"}]}, 1),
        ({"object": "text_completion", "choices": [{"text": ""}]}, 0),
        (delta(content='"content":"x"'), 1),
    ],
)
def test_what_counts_as_a_token(value: dict[str, Any], tokens: int) -> None:
    for end in (b"\n\n", b"\r\n\r\n"):
        for space in (b" ", b""):
            reader = Reader(Endpoint.CHAT, False, 1 << 20)
            assert reader.feed(event(value, end=end, space=space)) == tokens


def test_responses_and_messages_have_their_own_events() -> None:
    responses = Reader(Endpoint.RESPONSES, True, 1 << 20)
    counted = [
        responses.feed(event({"type": kind} | more, kind))
        for kind, more in (
            ("response.created", {"response": {}}),
            ("response.output_text.delta", {"delta": "a"}),
            ("response.reasoning_text.delta", {"delta": "b"}),
            ("response.function_call_arguments.delta", {"delta": "{"}),
            ("response.output_text.delta", {"delta": ""}),
            ("response.completed", {"response": {"usage": {"input_tokens": 5, "output_tokens": 3}}}),
        )
    ]
    messages = Reader(Endpoint.MESSAGES, True, 1 << 20)
    more = [
        messages.feed(event({"type": kind} | fields, kind))
        for kind, fields in (
            ("message_start", {"message": {"usage": {"input_tokens": 9, "output_tokens": 1}}}),
            ("content_block_start", {"content_block": {"type": "text", "text": ""}}),
            ("content_block_delta", {"delta": {"type": "text_delta", "text": "a"}}),
            ("content_block_delta", {"delta": {"type": "thinking_delta", "thinking": "a"}}),
            ("ping", {}),
            ("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}),
            ("message_stop", {}),
        )
    ]
    assert counted == [0, 1, 1, 1, 0, 0]
    assert more == [0, 0, 1, 1, 0, 0, 0]
    assert responses.done
    assert messages.done
    assert (responses.usage[2], messages.usage[0], messages.usage[2]) == (3, 9, 7)


@pytest.mark.parametrize("value", [{"error": {"message": "no", "code": 500}}, {"error": "no"}, {"message": "no", "type": "x", "code": 404}])
def test_errors_in_a_stream_are_seen(value: dict[str, Any]) -> None:
    reader = Reader(Endpoint.CHAT, False, 1 << 20)
    assert reader.feed(event(value)) == 0
    assert reader.error is not None


def test_a_line_beyond_the_limit_is_no_stream() -> None:
    reader = Reader(Endpoint.CHAT, False, 1000)
    reader.feed(b"data: " + b"x" * 2000)
    assert reader.failed


USAGE = {
    "object": "x",
    "choices": [],
    "usage": {"prompt_tokens": 11, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}},
}
EVENTS = st.lists(
    st.sampled_from(
        [
            event(delta(role="assistant", content="")),
            event(delta(content="héllo 😀")),
            event(delta(content="b"), end=b"\r\n\r\n", space=b""),
            b": comment\n\n",
            b"event: ping\ndata: {}\n\n",
            event(USAGE),
            b"data: [DONE]\n\n",
            b"data: not json\n\n",
            b"\n\n",
        ]
    ),
    max_size=10,
)


@settings(max_examples=200, deadline=None)
@given(EVENTS, st.lists(st.integers(0, 3000), max_size=12), st.booleans())
def test_any_split_gives_the_same_counts_and_bytes(events: list[bytes], cuts: list[int], drops: bool) -> None:
    wire = b"".join(events)
    at = sorted({cut % (len(wire) + 1) for cut in cuts})
    whole, cut = Reader(Endpoint.CHAT, drops, 1 << 20), Reader(Endpoint.CHAT, drops, 1 << 20)
    tokens = whole.feed(wire) if wire else 0
    out = (whole.out if wire else b"") + whole.end()
    counted, passed = 0, b""
    for start, end in zip([0, *at], [*at, len(wire)], strict=True):
        if end > start:
            counted += cut.feed(wire[start:end])
            passed += cut.out
    passed += cut.end()
    assert (counted, passed, cut.usage, cut.done) == (tokens, out, whole.usage, whole.done)
    assert passed == (wire.replace(event(USAGE), b"") if drops else wire)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(st.text(max_size=12), st.sampled_from(['"', "\\", '\\"', '","x":"', "", "\n\n", '"content":"'])), min_size=1, max_size=12
    ),
    st.booleans(),
    st.booleans(),
)
def test_text_is_a_token_and_no_text_is_none_however_like_the_chunk_before(texts: list[str], spaced: bool, ascii_only: bool) -> None:
    reader = Reader(Endpoint.CHAT, False, 1 << 20)
    separators = (", ", ": ") if spaced else (",", ":")
    for text in texts:
        value = {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
        wire = b"data: " + json.dumps(value, separators=separators, ensure_ascii=ascii_only).encode() + b"\n\n"
        assert reader.feed(wire) == (text != "")
        assert reader.out is wire
        frame = reader.frame
        if frame is not None:
            both = chunk(wire) + chunk(wire)
            assert frame.tokens_in(both) in (0, 2 * (text != ""))
            assert frame.tokens_in(both[:-1]) in (0, 1 * (text != ""))
            assert frame.tokens_in(both + b"0\r\n\r\n") == frame.tokens_in(both)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_are_a_fault_of_ours(parts: list[bytes]) -> None:
    reader = Reader(Endpoint.CHAT, False, 1 << 20)
    assert sum(reader.feed(part) for part in parts if part) >= 0


def test_usage_is_read_in_every_protocols_words() -> None:
    assert usage_of(b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}') == (3, 0, 4)
    assert usage_of(b"nothing") is None
    assert normal_usage({"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 10}) == (15, 10, 2)
    assert normal_usage({"prompt_tokens": "many"}) is None
