"""What applications write in a chat, as far as anybody here looks: its fields, and their decoders.

They are apart from their reading (apart.py) because that can be compiled, and these must not be: they are made from their annotations.
"""

from __future__ import annotations

import msgspec

MAX_TAG_CHARS = 64
MAX_INT = 2**31 - 1


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


class Messages(msgspec.Struct, gc=False):
    messages: msgspec.Raw


messages_of = msgspec.json.Decoder(Messages).decode
chat_of = msgspec.json.Decoder(Chat).decode
KEYS = tuple(f'"{name}"'.encode() for name in Chat.__struct_fields__)
