"""What engines write, as far as anybody here looks: chunks of a chat, events of the other protocols, usage. Shapes and their decoders.

They are apart from their reading (sse.py) because that can be compiled, and these must not be: they are made from their annotations.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Delta(msgspec.Struct, gc=False):
    content: str | list[Any] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: msgspec.Raw | None = None


class Choice(msgspec.Struct, gc=False):
    delta: Delta | None = None
    text: str | None = None


class Chunk(msgspec.Struct, gc=False):
    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None
    object: Any = None


class Typed(msgspec.Struct, gc=False):
    """An event of /v1/responses or /v1/messages."""

    type: str = ""
    delta: Any = None
    response: Any = None
    message: Any = None
    usage: Any = None
    error: Any = None
    content_block: Any = None
    code: Any = None


class Usage(msgspec.Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: msgspec.Raw | None = None


class WithPlainUsage(msgspec.Struct, gc=False):
    usage: Usage


class WithUsage(msgspec.Struct, gc=False):
    usage: Any = None


burst_of = msgspec.json.Decoder(list[Chunk]).decode
chunk_of = msgspec.json.Decoder(Chunk).decode
typed_of = msgspec.json.Decoder(Typed).decode
any_of = msgspec.json.Decoder().decode
plain_usage_of = msgspec.json.Decoder(WithPlainUsage).decode
some_usage_of = msgspec.json.Decoder(WithUsage).decode
