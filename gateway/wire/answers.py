"""What goes out in front of an answer: status line and header fields, as bytes, made with as little work as a request may cost.

Bodies of errors are worded by openai/errors.py; which fields there are, and what they mean, is in docs/headers.md.
"""

from __future__ import annotations

import http
from typing import TYPE_CHECKING, Final

from gateway.core.flow import Endpoint, Tag
from gateway.openai import errors

if TYPE_CHECKING:
    from gateway.openai.errors import ApiError

_STATUS_LINES: Final[dict[int, bytes]] = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus
}

EVENT_STREAM: Final = b"text/event-stream; charset=utf-8"
JSON: Final = b"application/json"
WAIT_COMMENT: Final = b": wait\n"  # no blank line behind it: it would end an event, and clients choke on empty ones
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

# Combinations of (use case, class, why) are few; a `why` that varies without end must not fill memory.
_MAX_TAGS: Final = 2000
_tags: Final[dict[tuple[str, str, str], bytes]] = {}


def status_line(status: int) -> bytes:
    """Any status, known to the registry or not."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


_SHORT_DURATIONS: Final = [b"%.1f" % (tenths / 10.0) for tenths in range(100)]


def duration(seconds: float) -> bytes:
    """In milliseconds, as server-timing has it."""
    tenths = int(seconds * 10000.0 + 0.5)
    return _SHORT_DURATIONS[tenths] if 0 <= tenths < 100 else b"%.1f" % (seconds * 1000.0)


def tag_fields(tag: Tag) -> bytes:
    """What the request was taken for."""
    key = (tag.use_case, tag.experience_class, tag.why)
    found = _tags.get(key)
    if found is None:
        if len(_tags) >= _MAX_TAGS:
            _tags.clear()
        why = "".join(c if " " <= c <= "~" else "?" for c in tag.why)[:200]
        text = f"x-slo-use-case: {tag.use_case}\r\nx-slo-class: {tag.experience_class}\r\nx-slo-why: {why}\r\n"
        found = _tags[key] = text.encode()
    return found


# The same, with where it ran.
_placed: Final[dict[tuple[str, str, str, str, str], bytes]] = {}


def placed_fields(tag: Tag, pool: str, degraded_from: str) -> bytes:
    """What the request was taken for, and where it ran."""
    key = (tag.use_case, tag.experience_class, tag.why, pool, degraded_from)
    found = _placed.get(key)
    if found is None:
        if len(_placed) >= _MAX_TAGS:
            _placed.clear()
        found = b"%bx-slo-pool: %b\r\n" % (tag_fields(tag), pool.encode())
        if degraded_from:
            found += b"x-slo-degraded-from: %b\r\n" % degraded_from.encode()
        _placed[key] = found
    return found


def error_answer(
    error: ApiError,
    endpoint: Endpoint | None,
    default_fields: bytes,
    request_id: bytes,
    tag: Tag | None,
    close: bool,
) -> bytes:
    """A whole answer that is an error."""
    body = errors.render(error, endpoint)
    fields = b"".join(b"%b: %b\r\n" % field for field in error.headers)
    if tag is not None:
        fields += tag_fields(tag)
    if request_id:
        fields += b"x-request-id: %b\r\n" % request_id
    if close:
        fields += b"connection: close\r\n"
    return b"%b%b%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status_line(error.status),
        default_fields,
        fields,
        len(body),
        body,
    )
