"""A token is recognised on the wire only where the careful reading would have found exactly one as well."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.flow import Endpoint
from gateway.openai.frame import Frame
from gateway.openai.framing import ChunkedBody, chunk
from gateway.openai.sse import Reader


def event(text: str, **more: Any) -> bytes:
    value = {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@pytest.fixture
def frame() -> Frame:
    reader = Reader(Endpoint.CHAT, False, 1 << 20)
    assert reader.feed(event("hello")) == 1
    assert reader.frame is not None
    return reader.frame


def test_one_token_and_many_in_a_read_are_counted(frame: Frame) -> None:
    one, other = chunk(event("a")), chunk(event("a longer one, with \\u00e4"))
    assert frame.tokens_in(one) == 1
    assert frame.tokens_in(one + other + one) == 3
    assert frame.end == len(one + other + one)


def test_what_follows_the_tokens_is_left(frame: Frame) -> None:
    one = chunk(event("a"))
    for rest in (b"0\r\n\r\n", one[:-1], chunk(event("")), chunk(b"data: [DONE]\n\n")):
        assert frame.tokens_in(one + one + rest) == 2
        assert frame.end == len(one + one)


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"0\r\n\r\n",
        chunk(event("")),  # no text, no token
        chunk(event("a"))[:-1],
        chunk(event("a", usage={"prompt_tokens": 1})),
        chunk(event("a") + event("b")),  # two events in a chunk
        chunk(event("a")[:-2]) + chunk(b"\n\n"),  # an event in two chunks
        event("a"),
        b"\r\n" + event("a"),
        chunk(event("a")).replace(b"\r\n", b"\n", 1),
        b"+" + chunk(event("a")),
        b"0x" + chunk(event("a")),
        chunk(b"data: [DONE]\n\n"),
        chunk(event("a")).replace(b"null", b'"stop"'),
        chunk(event('say "yes"')),
    ],
)
def test_what_is_not_plainly_whole_tokens_is_left_to_the_careful_reading(frame: Frame, wire: bytes) -> None:
    assert frame.tokens_in(wire) == 0


@given(st.lists(st.text(max_size=20), min_size=1, max_size=6), st.lists(st.integers(0, 2000), max_size=4))
def test_where_it_counts_the_careful_reading_counts_the_same(texts: list[str], cuts: list[int]) -> None:
    reader = Reader(Endpoint.CHAT, False, 1 << 20)
    reader.feed(event("x"))
    frame = reader.frame
    assert frame is not None
    wire = b"".join(chunk(event(text)) for text in texts)
    for cut in (0, *cuts):
        piece = wire[cut % len(wire) :]
        tokens = frame.tokens_in(piece)
        if tokens:
            body, careful = ChunkedBody(), Reader(Endpoint.CHAT, False, 1 << 20)
            assert careful.feed(body.feed(piece[: frame.end])) == tokens
            assert body.between
            assert careful.between


@given(st.binary(max_size=80))
def test_no_bytes_are_a_fault_of_ours(data: bytes) -> None:
    assert Frame(b"", b"").tokens_in(data) >= 0
