"""Messages of an array that is too long to decode, or that cannot be decoded: read from both ends inwards, as far as is worth it.

From the front quotes and brackets are followed exactly; from the back, since outside a text at the end, each quote that is not escaped
closes or opens one. Nothing here raises: what cannot be read is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

LEX_BYTES = 6 * 1024
ROLES_BYTES = 24 * 1024  # of what lies between, at each end, looked through for further messages

_decode_string = msgspec.json.Decoder(str).decode

_TOKEN = re.compile(rb'"((?:[^"\\]++|\\.)*+)("|\\?\Z)|[{}\[\]]', re.DOTALL)
_ROLE = re.compile(rb'"role"[ \t\n\r]*:[ \t\n\r]*"(system|developer|user|assistant|tool)"')
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


def from_both_ends(prompt: memoryview) -> list[Message]:
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
        text = unescaped(data[: quotes[0]], cut_before=True)
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
        text = unescaped(said)
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


def unescaped(data: bytes, *, cut_before: bool = False) -> str:
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
