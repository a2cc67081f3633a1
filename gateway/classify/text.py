"""What of a request's text is looked at: head and tail of each part that may hold the instruction, whatever the request's size.

A prompt of a megabyte costs no more than one of 40 kB: up to DECODE_BYTES the messages are decoded whole, beyond that only the first and
last LEX_BYTES of them are read, from both ends inwards. Nothing here raises, whatever the JSON holds: what cannot be read is left out.
What the text means is features.py's and model.py's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from gateway.classify.ends import LEX_BYTES, Message, from_both_ends, unescaped
from gateway.core.flow import Endpoint
from gateway.openai.body import Body

# Zones: where in the request a text stands.
SYSTEM, FIRST, BEFORE, LAST, TOOLS = range(5)


class Cut(NamedTuple):
    """How many letters of each part are looked at: of its head, and of its tail."""

    system: tuple[int, int]
    first: tuple[int, int]
    before: int
    last: tuple[int, int]
    tools: int


# Most instructions are a line. On rows of writers never trained on, half as much again is no better, and costs a fifth more; a fifth less
# is worse on questions that people wrote.
LOOK = Cut((80, 40), (80, 54), 40, (108, 108), 96)
# A sentence model (second.py) has the time, and makes something of the context.
OPINION = Cut((120, 60), (120, 80), 60, (160, 160), 140)

_MESSAGES, _RESPONSES = Endpoint.MESSAGES, Endpoint.RESPONSES  # looked up in an enum each costs as much as a call
DECODE_BYTES = 64 * 1024

_decode = msgspec.json.Decoder().decode


class _Said(msgspec.Struct, gc=False):
    """A message as nearly all are."""

    role: str
    content: str
    tool_calls: msgspec.Raw | None = None


_said = msgspec.json.Decoder(list[_Said]).decode

_NAMES = re.compile(rb'"name"[ \t\n\r]*:[ \t\n\r]*"([^"\\]{1,64})"')


@dataclass(slots=True)
class Glance:
    """What was seen. `pieces` are (zone, text); a part too long is two pieces, its head and its tail."""

    pieces: list[tuple[int, str]] = field(default_factory=list)
    messages: int = 0
    users: int = 0
    assistants: int = 0
    tools_used: int = 0  # tool messages and calls
    images: int = 0
    last_chars: int = 0
    system_chars: int = 0
    first_chars: int = 0
    last_role: str = "user"
    tool_count: int = 0


def glance(body: Body, cut: Cut = LOOK) -> Glance:
    """What the request says, bounded."""
    seen = Glance()
    if not body.prompt and "prompt" not in body.fields and body.endpoint is not _RESPONSES:
        return seen
    messages = _messages(body)
    seen.messages = len(messages)
    fields = body.fields
    system = ""
    if body.endpoint is _MESSAGES and "system" in fields:
        system = _whole_text(fields["system"])
    elif body.endpoint is _RESPONSES and "instructions" in fields:
        system = _whole_text(fields["instructions"])
    if system:
        messages.insert(0, Message("system", system, "", len(system)))
    _sort_out(seen, messages, cut)
    if "tools" in fields:
        names = _NAMES.findall(bytes(memoryview(fields["tools"])[: 8 * 1024]))
        seen.tool_count = len(names)
        if names:
            seen.pieces.append((TOOLS, b" ".join(names)[: cut.tools].decode("utf8", "replace").replace("_", " ")))
    return seen


def _sort_out(seen: Glance, messages: list[Message], cut: Cut) -> None:
    """Which of the messages matter, and what of them."""
    first: Message | None = None
    last: Message | None = None
    before: Message | None = None
    previous: Message | None = None
    for message in messages:
        role = message.role
        seen.images += message.images
        seen.tools_used += message.calls
        if role == "user":
            seen.users += 1
            if first is None:
                first = message
            last, before = message, previous
        elif role == "assistant":
            seen.assistants += 1
            previous = message
        elif role in ("system", "developer"):
            if not seen.system_chars:
                _add(seen, SYSTEM, message, cut.system)
            seen.system_chars += message.chars
        elif role == "tool":
            seen.tools_used += 1
        seen.last_role = role
    if last is None:
        return
    if first is not last and first is not None:
        _add(seen, FIRST, first, cut.first)
        seen.first_chars = first.chars
    if before is not None and before.head:
        seen.pieces.append((BEFORE, before.head[: cut.before]))
    _add(seen, LAST, last, cut.last)
    seen.last_chars = last.chars


def _add(seen: Glance, zone: int, message: Message, cut: tuple[int, int]) -> None:
    text, end = message.head, message.tail
    head, tail = cut
    if not text.isascii() and len(text[:head].encode("utf8", "replace")) > 2 * min(head, len(text)):
        head, tail = head * 2 // 3, tail * 2 // 3  # scripts of three bytes a letter: each of their letters says more
    if not end and len(text) > head + tail:
        text, end = text[:head], text[-tail:]
    if text:
        seen.pieces.append((zone, text[: head + tail] if not end else text[:head]))
    if end:
        seen.pieces.append((zone, end[-tail:]))


def _messages(body: Body) -> list[Message]:
    """The request's messages; a bare prompt is one of a user."""
    prompt = body.prompt
    size = len(prompt)
    if size == 0:
        return []
    if size <= DECODE_BYTES:
        try:
            said = _said(prompt)
            if not [one for one in said if one.tool_calls is not None]:
                return [Message(one.role, one.content, "", len(one.content)) for one in said]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
            pass
        try:
            return _from_value(_decode(prompt))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
            pass  # lone surrogates, for one: the bytes are read as far as they can be
    if prompt[0] == 34:
        text, end = unescaped(bytes(prompt[1 : LEX_BYTES + 1])), ""
        if size > LEX_BYTES + 2:
            end = unescaped(bytes(prompt[max(size - LEX_BYTES, LEX_BYTES + 1) : -1]), cut_before=True)
        else:
            text = unescaped(bytes(prompt[1:-1]))
        return [Message("user", text, end, size - 2)]
    return from_both_ends(prompt)


def _from_value(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [Message("user", value, "", len(value))]
    if not isinstance(value, list):
        return []
    messages: list[Message] = []
    loose: list[str] = []
    for item in value:
        if isinstance(item, dict):
            role = item.get("role")
            kind = item.get("type")
            if not isinstance(role, str):
                role = "tool" if isinstance(kind, str) and kind.startswith("function_call") else "user"
            message = Message(role, "")
            _read_content(message, item.get("content"))
            calls = item.get("tool_calls")
            if isinstance(calls, list):
                message.calls = len(calls)
            messages.append(message)
        elif isinstance(item, str):
            loose.append(item)  # a batch of prompts
    if loose and not messages:
        text = "\n".join(loose[:16])
        messages.append(Message("user", text, "", len(text)))
    return messages


def _read_content(message: Message, content: Any) -> None:
    if isinstance(content, str):
        message.head, message.chars = content, len(content)
    elif isinstance(content, list):
        texts: list[str] = []
        for part in content:
            if isinstance(part, str):
                texts.append(part)
            elif isinstance(part, dict):
                text = part.get("text")
                if isinstance(text, str):
                    texts.append(text)
                elif part.get("type") in ("image_url", "image", "input_image", "input_audio", "file", "input_file", "document"):
                    message.images += 1
                elif part.get("type") in ("tool_use", "tool_result"):
                    message.calls += 1
        text = texts[0] if len(texts) == 1 else "\n".join(texts)
        message.head, message.chars = text, len(text)


def _whole_text(raw: msgspec.Raw) -> str:
    """The text of one field: a string, or parts."""
    view = memoryview(raw)
    if len(view) > DECODE_BYTES:
        if view[0] == 34:
            return unescaped(bytes(view[1:LEX_BYTES])) + "\n" + unescaped(bytes(view[-LEX_BYTES:-1]), cut_before=True)
        return ""
    try:
        value = _decode(view)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return unescaped(bytes(view[1:-1])) if view[0] == 34 else ""
    message = Message("system", "")
    _read_content(message, value)
    return message.head
