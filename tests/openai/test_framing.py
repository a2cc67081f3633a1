"""Framing holds for any split of the bytes, and refuses what could be read in two ways."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.openai.framing import ChunkedBody, FramingError, Repeated, answer_head, chunk, find_head, request_head
from tests.openai.hostile_rows import NO_CHUNKS, NO_REQUESTS, TWO_READINGS

GOOD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"


def head_of(data: bytes):
    end = find_head(data, 16384)
    assert end
    return request_head(data, end, max_fields=100, max_line_bytes=8192)


def test_a_plain_head_is_read() -> None:
    head = head_of(GOOD + b"Content-Length: 12\r\nX-A:  b \t\r\n\r\n")
    assert (head.method, head.target, head.length, head.keep_alive) == (b"POST", b"/v1/chat/completions", 12, True)
    assert head.fields[b"x-a"] == b"b"


@pytest.mark.parametrize(
    "fields",
    TWO_READINGS,
)
def test_a_head_that_could_be_read_in_two_ways_is_refused(fields: bytes) -> None:
    with pytest.raises(FramingError) as caught:
        head_of(GOOD + fields + b"\r\n")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "head",
    NO_REQUESTS,
)
def test_what_is_not_a_request_is_refused(head: bytes) -> None:
    with pytest.raises(FramingError) as caught:
        head_of(head)
    assert caught.value.status == 400


def test_bare_line_feeds_are_refused_before_the_head_ends() -> None:
    with pytest.raises(FramingError):
        find_head(b"GET / HTTP/1.1\nHost: a\n\n", 16384)


def test_a_head_larger_than_allowed_is_431_before_it_ends() -> None:
    with pytest.raises(FramingError) as caught:
        find_head(GOOD + b"X-A: " + b"a" * 20000, 16384)
    assert caught.value.status == 431


def test_too_many_fields_are_431_and_a_long_line_is_414() -> None:
    with pytest.raises(FramingError) as fields:
        head_of(GOOD + b"A: b\r\n" * 101 + b"\r\n")
    with pytest.raises(FramingError) as line:
        head_of(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (fields.value.status, line.value.status) == (431, 414)


def test_http_1_0_may_come_without_host_and_is_not_kept_alive() -> None:
    head = head_of(b"GET / HTTP/1.0\r\n\r\n")
    assert head.http_1_0
    assert not head.keep_alive


def test_an_answer_without_length_lasts_until_the_close() -> None:
    head = answer_head(b"HTTP/1.1 200 OK\r\ncontent-type: x\r\n\r\n", 38)
    assert (head.status, head.length, head.keep_alive) == (200, -2, False)


@pytest.mark.parametrize("answer", [b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 600 X\r\n\r\n", b"HTTP/1.1 20 X\r\n\r\n", b"hello\r\n\r\n"])
def test_what_is_not_an_answer_is_refused(answer: bytes) -> None:
    with pytest.raises(FramingError):
        answer_head(answer, len(answer))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({c % (len(data) + 1) for c in cuts})
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.lists(st.integers(0, 10_000), max_size=12),
    st.binary(max_size=20),
    st.sampled_from([b"", b"A: b\r\n", b"Expires: never\r\nB: c\r\n"]),
)
def test_any_split_of_a_chunked_body_gives_the_same_bytes(contents: list[bytes], cuts: list[int], behind: bytes, trailers: bytes) -> None:
    wire = b"".join(chunk(c) for c in contents) + b"0\r\n" + trailers + b"\r\n"
    body, out, left = ChunkedBody(), b"", b""
    for piece in pieces(wire + behind, cuts):
        if body.done:
            left += piece
            continue
        out += body.feed(piece)
        if body.done:
            left += body.left
    assert body.done
    assert out == b"".join(contents)
    assert left == behind


@pytest.mark.parametrize(
    "wire",
    NO_CHUNKS,
)
def test_a_chunked_body_that_is_not_one_is_refused(wire: bytes) -> None:
    with pytest.raises(FramingError):
        ChunkedBody().feed(wire)


def test_a_few_chunk_extensions_are_skipped() -> None:
    body = ChunkedBody()
    assert body.feed(b"3;a=b\r\nabc\r\n2 ; c\r\nde\r\n0;last\r\n\r\n") == b"abcde"
    assert body.done


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_a_framing_error(data: bytes) -> None:
    with contextlib.suppress(FramingError):
        body = ChunkedBody()
        for byte in data:
            if body.done:
                break
            body.feed(bytes([byte]))
        end = find_head(data, 150)
        if end:
            request_head(data, end, max_fields=5, max_line_bytes=50)
            answer_head(data, end)
    assert len(data) <= 200


def repeated(head: bytes) -> Repeated:
    made = Repeated.of(head, len(head), request_head(head, len(head), max_fields=64, max_line_bytes=8192))
    assert made is not None
    return made


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\nAuthorization: Bearer k\r\n\r\n"


def test_a_head_that_differs_in_its_length_alone_is_known_again() -> None:
    known = repeated(HEAD % b"12")
    assert known.end_in(HEAD % b"12" + b"body") == len(HEAD % b"12")
    assert known.length == 12
    assert known.end_in(HEAD % b"4096") == len(HEAD % b"4096")
    assert known.length == 4096


@pytest.mark.parametrize(
    "other",
    [
        HEAD.replace(b": a", b": b") % b"12",
        HEAD.replace(b" k", b" l") % b"12",
        HEAD % b"",
        HEAD % b"-1",
        HEAD % b"1 2",
        HEAD % b"12, 12",
        HEAD % b"1\n2",
        HEAD % b"99999999999999999999",
        (HEAD % b"12")[:-2],
        (HEAD % b"12").replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
        b"",
    ],
)
def test_any_other_head_is_not(other: bytes) -> None:
    assert repeated(HEAD % b"12").end_in(other) == 0


def test_a_head_that_was_judged_without_a_body_is_judged_again_with_one() -> None:
    head = (HEAD % b"0").replace(b"Host", b"Upgrade: h2c\r\nHost")
    assert Repeated.of(head, len(head), request_head(head, len(head), max_fields=64, max_line_bytes=8192)) is None


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (chunk(b"abc") + chunk(b"d"), len(chunk(b"abc"))),
        (chunk(b"abc"), len(chunk(b"abc"))),
        (chunk(b"abc")[:-1], 0),  # not whole
        (b"0\r\n\r\n", 0),  # the last one is no content
        (b"3;ext\r\nabc\r\n", 0),
        (b"abc", 0),
        (b"", 0),
    ],
)
def test_the_first_chunk_is_told_only_when_it_is_whole(data: bytes, end: int) -> None:
    assert ChunkedBody().first_end(data) == end


def test_no_chunk_begins_in_the_middle_of_another() -> None:
    body = ChunkedBody()
    body.feed(b"a\r\n01234")
    assert body.first_end(chunk(b"abc")) == 0
