"""What of a request's text is looked at: head and tail of each part that may hold the instruction, whatever the request's size.

A prompt of a megabyte costs no more than one of 40 kB: up to DECODE_BYTES the messages are decoded whole, beyond that only the first and
last LEX_BYTES of them are read, from both ends inwards. Nothing here raises, whatever the JSON holds: what cannot be read is left out.
What the text means is features.py's and model.py's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.core.flow import Endpoint
from gateway.openai.body import Body

# Zones: where in the request a text stands.
SYSTEM, FIRST, BEFORE, LAST, TOOLS = range(5)

# Most instructions are a line or three; these hold them with room to spare, and bound the work for one request.
SYSTEM_HEAD, SYSTEM_TAIL = 260, 120
FIRST_HEAD, FIRST_TAIL = 200, 160
BEFORE_HEAD = 100
LAST_HEAD, LAST_TAIL = 400, 400
TOOLS_HEAD = 200

DECODE_BYTES = 64 * 1024
LEX_BYTES = 6 * 1024
ROLES_BYTES = 24 * 1024  # of what lies between, at each end, looked through for further messages

_decode = msgspec.json.Decoder().decode
_decode_string = msgspec.json.Decoder(str).decode

_TOKEN = re.compile(rb'"((?:[^"\\]++|\\.)*+)("|\\?\Z)|[{}\[\]]', re.DOTALL)
_ROLE = re.compile(rb'"role"[ \t\n\r]*:[ \t\n\r]*"(system|developer|user|assistant|tool)"')
_NAMES = re.compile(rb'"name"[ \t\n\r]*:[ \t\n\r]*"([^"\\]{1,64})"')
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "b": " ", "f": " "}
_TEXT_KEYS = frozenset((b"content", b"text", b"input_text", b"input"))


@dataclass(slots=True)
class Message:
    """One message, or the end of it that was seen. `chars` is its size as far as it is known."""

    role: str
    head: str
    tail: str = ""
    chars: int = 0
    images: int = 0
    calls: int = 0  # tool calls


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
    longest_chars: int = 0
    last_role: str = "user"
    tool_count: int = 0


def glance(body: Body) -> Glance:
    """What the request says, bounded."""
    seen = Glance()
    if not body.prompt and "prompt" not in body.fields and body.endpoint is not Endpoint.RESPONSES:
        return seen
    messages = _messages(body)
    seen.messages = len(messages)
    fields = body.fields
    system = ""
    if body.endpoint is Endpoint.MESSAGES and "system" in fields:
        system = _whole_text(fields["system"])
    elif body.endpoint is Endpoint.RESPONSES and "instructions" in fields:
        system = _whole_text(fields["instructions"])
    if system:
        messages.insert(0, Message("system", system[:SYSTEM_HEAD], system[SYSTEM_HEAD:][-SYSTEM_TAIL:], len(system)))
    _sort_out(seen, messages)
    if "tools" in fields:
        names = _NAMES.findall(bytes(memoryview(fields["tools"])[: 8 * 1024]))
        seen.tool_count = len(names)
        if names:
            seen.pieces.append((TOOLS, b" ".join(names)[:TOOLS_HEAD].decode("utf8", "replace").replace("_", " ")))
    return seen


def _sort_out(seen: Glance, messages: list[Message]) -> None:
    """Which of the messages matter, and what of them."""
    first: Message | None = None
    last: Message | None = None
    before: Message | None = None
    previous: Message | None = None
    for message in messages:
        role = message.role
        if message.chars > seen.longest_chars:
            seen.longest_chars = message.chars
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
                _add(seen, SYSTEM, message, SYSTEM_HEAD, SYSTEM_TAIL)
            seen.system_chars += message.chars
        elif role == "tool":
            seen.tools_used += 1
        seen.last_role = role
    if last is None:
        return
    if first is not last and first is not None:
        _add(seen, FIRST, first, FIRST_HEAD, FIRST_TAIL)
        seen.first_chars = first.chars
    if before is not None and before.head:
        seen.pieces.append((BEFORE, before.head[:BEFORE_HEAD]))
    _add(seen, LAST, last, LAST_HEAD, LAST_TAIL)
    seen.last_chars = last.chars


def _add(seen: Glance, zone: int, message: Message, head: int, tail: int) -> None:
    text, end = message.head, message.tail
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
            return _from_value(_decode(prompt))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
            pass  # lone surrogates, for one: the bytes are read as far as they can be
    if prompt[0] == 34:
        text, end = _unescaped(bytes(prompt[1 : LEX_BYTES + 1])), ""
        if size > LEX_BYTES + 2:
            end = _unescaped(bytes(prompt[max(size - LEX_BYTES, LEX_BYTES + 1) : -1]), cut_before=True)
        else:
            text = _unescaped(bytes(prompt[1:-1]))
        return [Message("user", text, end, size - 2)]
    return _from_both_ends(prompt)


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
            return _unescaped(bytes(view[1:LEX_BYTES])) + "\n" + _unescaped(bytes(view[-LEX_BYTES:-1]), cut_before=True)
        return ""
    try:
        value = _decode(view)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return _unescaped(bytes(view[1:-1])) if view[0] == 34 else ""
    message = Message("system", "")
    _read_content(message, value)
    return message.head


def _from_both_ends(prompt: memoryview) -> list[Message]:
    """An array of messages too long to decode, or not decodable: from the front exactly, from the back by its closing quotes."""
    size = len(prompt)
    head_end = min(LEX_BYTES, size)
    front, open_at_cut = _lexed(bytes(prompt[:head_end]))
    if head_end == size:
        return front
    back, opened_before = _lexed_backwards(bytes(prompt[max(size - LEX_BYTES, head_end) :]))
    tail_start = max(size - LEX_BYTES, head_end)
    between_bytes = tail_start - head_end
    edges = bytes(prompt[head_end : min(head_end + ROLES_BYTES, tail_start)])
    if between_bytes > ROLES_BYTES:
        edges += bytes(prompt[max(tail_start - ROLES_BYTES, head_end + ROLES_BYTES) : tail_start])
    roles = _ROLE.findall(edges)
    if open_at_cut and opened_before and not roles and front and back:
        joined = front[-1]  # one long text begins in the head and ends in the tail
        joined.tail = back[0].head
        joined.chars += between_bytes + back[0].chars
        return front + back[1:]
    if front and open_at_cut:
        front[-1].chars += between_bytes // (len(roles) + 1)
    middle = [Message(role.decode(), "", "", between_bytes // (len(roles) + 1)) for role in roles[:512]]
    if back and opened_before:
        if middle:
            back[0].role = middle.pop().role
        elif front:
            back[0].role = front[-1].role if not open_at_cut else back[0].role
        back[0].tail, back[0].head = back[0].head, ""
        back[0].chars += between_bytes // (len(roles) + 1)
    return front + middle + back


def _lexed(data: bytes) -> tuple[list[Message], bool]:
    """Messages in the first bytes of an array, and whether the last of them is cut in the middle of a text."""
    messages: list[Message] = []
    depth, key, open_at_cut = 0, b"", False
    current: Message | None = None
    for match in _TOKEN.finditer(data):
        byte = data[match.start()]
        if byte != 34:
            if byte == 123:
                depth += 1
                if depth == 1:
                    current = Message("user", "")
                    messages.append(current)
            elif byte == 125:
                depth -= 1
            continue
        if match.group(2) != b'"':
            open_at_cut = True
        elif data[match.end() : match.end() + 8].lstrip(b" \t\n\r")[:1] == b":":
            key = match.group(1)
            continue
        if current is not None:
            _take(current, key, match.group(1))
        key = b""
    return messages, open_at_cut and bool(messages)


def _lexed_backwards(data: bytes) -> tuple[list[Message], bool]:
    """Messages in the last bytes of an array, and whether the first of them began in the middle of a text. Outside a text at the end,
    each quote that is not escaped closes or opens one, going back."""
    quotes = [at for at in _find_all(data, b'"') if not _is_escaped(data, at)]
    opened_before = len(quotes) % 2 == 1
    messages: list[Message] = []
    start = 0
    current = Message("user", "")
    if opened_before:
        text = _unescaped(data[: quotes[0]], cut_before=True)
        current.head, current.chars = text, len(text)
        messages.append(current)
        start = 1
    key = b""
    at = quotes[0] if opened_before else 0
    for index in range(start, len(quotes) - 1, 2):
        opening, closing = quotes[index], quotes[index + 1]
        if b"{" in data[at:opening] and b"}" in data[at:opening]:
            current = Message("user", "")
            messages.append(current)
        said = data[opening + 1 : closing]
        if data[closing + 1 : closing + 9].lstrip(b" \t\n\r")[:1] == b":":
            key = said
        else:
            if not messages:
                messages.append(current)
            _take(current, key, said)
            key = b""
        at = closing
    return messages, opened_before


def _take(message: Message, key: bytes, said: bytes) -> None:
    if key == b"role":
        message.role = said[:16].decode("latin-1")
    elif key in _TEXT_KEYS:
        text = _unescaped(said)
        message.head = f"{message.head}\n{text}" if message.head else text
        message.chars += len(text)
    elif key == b"url" and said[:5] in (b"data:", b"https"):
        message.images += 1


def _find_all(data: bytes, what: bytes) -> list[int]:
    found: list[int] = []
    at = data.find(what)
    while at >= 0:
        found.append(at)
        at = data.find(what, at + 1)
    return found


def _is_escaped(data: bytes, at: int) -> bool:
    slashes = 0
    while at - slashes > 0 and data[at - slashes - 1] == 92:
        slashes += 1
    return slashes % 2 == 1


def _unescaped(data: bytes, *, cut_before: bool = False) -> str:
    """The text of a JSON string's bytes, which may be cut at either end."""
    if cut_before:
        data = data.lstrip(b"\\") if data[:1] == b"\\" else data
    if b"\\" not in data:
        return data.decode("utf8", "replace")
    try:
        return _decode_string(b'"' + data + b'"')
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        return _ESCAPE.sub(_escape, data.decode("utf8", "replace"))


def _escape(match: re.Match[str]) -> str:
    if match[1]:
        code = int(match[1], 16)
        return "\ufffd" if 0xD800 <= code <= 0xDFFF else chr(code)
    return _SIMPLE.get(match[2], match[2])
