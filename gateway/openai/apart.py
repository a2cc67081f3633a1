"""A chat's body taken apart at its messages: what stands around them is repeated by an application to the byte, and is read only once.

Chats in which anything is out of the ordinary (a key twice, one written with escapes, a value that decides nothing here) are left to
body.py, which reads every key exactly.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

import msgspec

from gateway.openai.chat import KEYS, MAX_INT, MAX_TAG_CHARS, Chat, chat_of, messages_of

_MAX_KNOWN: Final = 4096
_MAX_KNOWN_BYTES: Final = 2048


class Around:
    """What is said around the messages. `max_output_tokens` and `service_tier` are None where nothing is said of them."""

    __slots__ = ("app", "max_output_tokens", "model", "n", "service_tier", "stream", "tools_bytes")

    def __init__(self, said: Chat) -> None:
        self.model: str = said.model
        self.stream: bool = said.stream is True
        most = said.max_completion_tokens
        self.max_output_tokens: int | None = most if most is not None else said.max_tokens
        self.n: int = said.n if said.n is not None else 1
        self.service_tier: str | None = said.service_tier
        self.tools_bytes: int = len(memoryview(said.tools)) if said.tools is not None else 0
        self.app: int = crc32(said.model.encode()) | 1  # whose traffic it is, where the messages don't tell


_known: Final[dict[bytes, Around | None]] = {}


def taken_apart(raw: bytes) -> tuple[Around, memoryview, bytes] | None:
    """What is said around the messages, and the messages, as a view into `raw` and as bytes. None when it takes the exact reading."""
    try:
        view = memoryview(messages_of(raw).messages)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    messages = bytes(view)
    start = raw.find(b"[", raw.find(b'"messages"'))
    if not raw.startswith(messages, start):
        return None
    around = raw[:start] + raw[start + len(messages) :]
    said = _known.get(around)
    if said is None:
        if around in _known:
            return None
        said = _ordinary(around)
        if len(around) <= _MAX_KNOWN_BYTES:
            if len(_known) >= _MAX_KNOWN:
                _known.clear()
            _known[around] = said
        if said is None:
            return None
    return said, view, messages


def _ordinary(around: bytes) -> Around | None:
    """What is said in a body whose messages were taken out, if nothing in it is out of the ordinary."""
    at = around.find(b'"messages"') + 10
    colon = around.find(b":", at)
    if colon < 0 or around[at:colon].strip():
        return None
    try:
        around.decode()  # keys that nobody here asks for are not read below, but whoever reads them all would stumble
        said = chat_of(b"%b[]%b" % (around[: colon + 1], around[colon + 1 :]))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if b"\\" in around or any(around.count(key) > 1 for key in KEYS):
        return None  # a key may be written with escapes, or be there twice: the exact reading says so
    n, most = said.n, said.max_completion_tokens if said.max_completion_tokens is not None else said.max_tokens
    if not said.model or said.stream_options is not None or said.metadata is not None:
        return None
    if (n is not None and n < 1) or (most is not None and not 0 <= most <= MAX_INT):
        return None
    if said.service_tier is not None and len(said.service_tier) > MAX_TAG_CHARS:
        return None
    return Around(said)
