"""A chat's body taken apart at its messages: what stands around them is repeated by an application to the byte, and is read only once.

Chats in which anything is out of the ordinary (a key twice, one written with escapes, a value that decides nothing here) are left to
body.py, which reads every key exactly.
"""

from __future__ import annotations

from typing import Any

import msgspec

MAX_TAG_CHARS = 64
MAX_INT = 2**31 - 1

_MAX_KNOWN = 4096
_MAX_KNOWN_BYTES = 2048


class Chat(msgspec.Struct, gc=False):
    """The fields of a chat that are read."""

    model: str
    messages: msgspec.Raw
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    tools: msgspec.Raw | None = None
    service_tier: str | None = None
    metadata: msgspec.Raw | None = None
    stream_options: msgspec.Raw | None = None


class _Messages(msgspec.Struct, gc=False):
    messages: msgspec.Raw


_messages_of = msgspec.json.Decoder(_Messages).decode
_chat_of = msgspec.json.Decoder(Chat).decode
_KEYS = tuple(f'"{name}"'.encode() for name in Chat.__struct_fields__)
_known: dict[bytes, Chat | None] = {}
_unknown: Any = object()


def taken_apart(raw: bytes) -> tuple[Chat, memoryview, bytes] | None:
    """What is said around the messages, and the messages, as a view into `raw` and as bytes. None when it takes the exact reading."""
    try:
        view = memoryview(_messages_of(raw).messages)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    messages = bytes(view)
    start = raw.find(b"[", raw.find(b'"messages"'))
    if not raw.startswith(messages, start):
        return None
    around = raw[:start] + raw[start + len(messages) :]
    said = _known.get(around, _unknown)
    if said is _unknown:
        said = _ordinary(around)
        if len(around) <= _MAX_KNOWN_BYTES:
            if len(_known) >= _MAX_KNOWN:
                _known.clear()
            _known[around] = said
    return None if said is None else (said, view, messages)


def _ordinary(around: bytes) -> Chat | None:
    """What is said in a body whose messages were taken out, if nothing in it is out of the ordinary."""
    at = around.find(b'"messages"') + 10
    colon = around.find(b":", at)
    if colon < 0 or around[at:colon].strip():
        return None
    try:
        said = _chat_of(b"%b[]%b" % (around[: colon + 1], around[colon + 1 :]))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if b"\\" in around or any(around.count(key) > 1 for key in _KEYS):
        return None  # a key may be written with escapes, or be there twice: the exact reading says so
    n, most = said.n, said.max_completion_tokens if said.max_completion_tokens is not None else said.max_tokens
    if not said.model or said.stream_options is not None or said.metadata is not None:
        return None
    if (n is not None and n < 1) or (most is not None and not 0 <= most <= MAX_INT):
        return None
    if said.service_tier is not None and len(said.service_tier) > MAX_TAG_CHARS:
        return None
    return said
