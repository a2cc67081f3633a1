"""A request's body: read once, for the fields that decide; sent on as the bytes that came, edited in place where they must be.

The top level is taken apart exactly (every key with its place), what lies deeper only where something of ours asks for it. Whether the
rest is right is the engine's to say. What the fields mean for class and tenant is classify/'s business.
"""

from __future__ import annotations

import re
from typing import Any, Final, Protocol, cast
from zlib import crc32

import msgspec

from gateway.core.flow import Endpoint
from gateway.openai.apart import taken_apart
from gateway.openai.chat import MAX_INT, MAX_TAG_CHARS
from gateway.openai.errors import ApiError, Kind


class Limits(Protocol):
    """The part of config's Limits that is kept here."""

    @property
    def json_depth(self) -> int: ...
    @property
    def model_chars(self) -> int: ...
    @property
    def choices(self) -> int: ...


_fields_of: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_value_of: Final = msgspec.json.Decoder().decode
_string_of: Final = msgspec.json.Decoder(str).decode
_encode: Final = msgspec.json.Encoder().encode

_KEY: Final = re.compile(rb'[ \t\n\r]*[{,][ \t\n\r]*"((?:[^"\\]|\\.)*)"[ \t\n\r]*:[ \t\n\r]*', re.DOTALL)
_END: Final = re.compile(rb"[ \t\n\r]*\}[ \t\n\r]*")
_EMPTY: Final = re.compile(rb"[ \t\n\r]*\{[ \t\n\r]*\}[ \t\n\r]*")

BLOCK_BYTES: Final = 1024
MAX_BLOCKS: Final = 16
APP_BYTES: Final = 640

# Where the prompt is, by endpoint.
_PROMPT: Final = {
    Endpoint.CHAT: "messages",
    Endpoint.COMPLETIONS: "prompt",
    Endpoint.RESPONSES: "input",
    Endpoint.EMBEDDINGS: "input",
    Endpoint.MESSAGES: "messages",
}
_LISTS: Final = frozenset((Endpoint.CHAT, Endpoint.MESSAGES))


# Larger bodies are walked key by key: beside their size it costs nothing.
_QUICK_BYTES: Final = 65536
_NOTHING: Final = memoryview(b"")


class Body:
    """What was read. `raw` are the bytes as they came; `text_bytes` is the size of the prompt in them, JSON framing included."""

    __slots__ = (
        "_fields",
        "_places",
        "app",
        "endpoint",
        "has_suffix",
        "include_usage",
        "max_output_tokens",
        "model",
        "n",
        "plain",
        "prefix_hashes",
        "prompt",
        "raw",
        "service_tier",
        "slo_class",
        "slo_use_case",
        "stream",
        "text_bytes",
    )

    def __init__(self, raw: bytes, endpoint: Endpoint) -> None:
        self.raw = raw
        self.endpoint = endpoint
        self._fields: dict[str, msgspec.Raw] | None = None
        self._places: dict[str, tuple[int, int]] | None = None  # key -> (start, end) of its value in `raw`
        self.plain = True  # says nothing of its use case or class
        self.model = ""
        self.stream = False
        self.include_usage: bool | None = None  # None = unsaid, and this endpoint has it on request
        self.max_output_tokens: int | None = None
        self.n = 1
        self.service_tier: str | None = None
        self.slo_use_case: str | None = None  # metadata's
        self.slo_class: str | None = None
        self.has_suffix = False
        self.prompt: memoryview = _NOTHING
        self.text_bytes = 0
        self.app = 0
        self.prefix_hashes: tuple[int, ...] = ()

    @property
    def fields(self) -> dict[str, msgspec.Raw]:
        """Every key of the top level, its value unread."""
        if self._fields is None:
            self._fields = _fields_of(self.raw)
        return self._fields

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """Where each value is."""
        if self._places is None:
            self._places = _places_of(self.raw, self.fields)
        return self._places

    def for_engine(self, model: str | None, include_usage: bool | None) -> list[bytes | memoryview]:
        """The body to send: with another model's name, and with usage asked for, where these are given."""
        edits: list[tuple[int, int, bytes]] = []
        if model is not None and model != self.model:
            edits.append((*self.places["model"], _encode(model)))
        if include_usage and self.stream and self.endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS):
            place = self.places.get("stream_options") if b'"stream_options"' in self.raw or b"\\" in self.raw else None
            if place is None:
                at = self.raw.index(b"{") + 1
                edits.append((at, at, b'"stream_options":{"include_usage":true},'))
            else:
                said = _value_of(self.fields["stream_options"])
                options = dict(said) if isinstance(said, dict) else {}
                options["include_usage"] = True
                edits.append((*place, _encode(options)))
        if not edits:
            return [self.raw]
        edits.sort()
        view = memoryview(self.raw)
        parts: list[bytes | memoryview] = []
        at = 0
        for start, end, new in edits:
            if start > at:
                parts.append(view[at:start])
            parts.append(new)
            at = end
        parts.append(view[at:])
        return parts


def _places_of(raw: bytes, fields: dict[str, msgspec.Raw]) -> dict[str, tuple[int, int]]:
    """Where each value is. A body in which a key is there twice cannot be walked by the values that were kept, and is refused:
    another reader might keep the other one."""
    places: dict[str, tuple[int, int]] = {}
    at = 0
    match_key = _KEY.match
    for name, value in fields.items():
        match = match_key(raw, at)
        if match is None or (match.group(1) != name.encode() and not _is_written(match.group(1), name)):
            raise ApiError(Kind.DUPLICATE_KEY)
        start = match.end()
        at = start + len(memoryview(value))
        places[name] = (start, at)
    if _END.fullmatch(raw, at) is None and not (not fields and _EMPTY.fullmatch(raw)):
        raise ApiError(Kind.DUPLICATE_KEY)
    return places


def _is_written(key: bytes, name: str) -> bool:
    """A key may be written with escapes; then it has to be read to be compared."""
    return b"\\" in key and _string_of(b'"%b"' % key) == name


def _wrong(param: str, expected: str) -> ApiError:
    return ApiError(Kind.INVALID_VALUE, f"'{param}' has to be {expected}.", param=param)


def _flag(fields: dict[str, msgspec.Raw], name: str) -> bool | None:
    value = fields.get(name)
    if value is None:
        return None
    said = bytes(value)
    if said == b"true":
        return True
    if said == b"false":
        return False
    if said == b"null":
        return None
    raise _wrong(name, "true or false")


def _integer(fields: dict[str, msgspec.Raw], name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    said = bytes(value)
    if said == b"null":
        return None
    if not said.isdigit() or len(said) > 10 or int(said) > MAX_INT:
        raise _wrong(name, f"an integer from 0 to {MAX_INT}")
    return int(said)


def _text(fields: dict[str, msgspec.Raw], name: str, most: int) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if len(memoryview(value)) > most * 6 + 2:
        raise _wrong(name, f"a string of at most {most} characters")
    if bytes(value) == b"null":
        return None
    try:
        said = _string_of(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _wrong(name, "a string") from None
    if len(said) > most:
        raise _wrong(name, f"a string of at most {most} characters")
    return said


def read(raw: bytes, endpoint: Endpoint, limits: Limits) -> Body:
    """A request body. ApiError 400 says which field is wrong; it never repeats what was in it."""
    if endpoint is Endpoint.CHAT and len(raw) <= _QUICK_BYTES:
        body = _quick(raw, limits)
        if body is not None:
            return body
    body = Body(raw, endpoint)
    try:
        fields = body.fields
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ApiError(Kind.INVALID_JSON, _where(raw, error)) from None
    _ = body.places
    model = _text(fields, "model", limits.model_chars)
    if not model:
        raise ApiError(Kind.MISSING, "You must provide a model parameter.", param="model")
    body.model = model
    prompt_name = _PROMPT[endpoint]
    prompt = fields.get(prompt_name)
    if prompt is None:
        if endpoint is not Endpoint.RESPONSES:
            raise ApiError(Kind.MISSING, f"Missing required parameter: '{prompt_name}'.", param=prompt_name)
    else:
        view = body.prompt = memoryview(prompt)
        if endpoint in _LISTS and view[0] != 91:
            raise _wrong(prompt_name, "an array")
        body.text_bytes = len(view)
        _recognise(body, view)
    if endpoint is not Endpoint.EMBEDDINGS:
        _read_generation(body, fields, endpoint, limits)
    else:
        body.max_output_tokens, body.include_usage = 1, True
    if "metadata" in fields:
        _read_metadata(body, fields["metadata"], limits)
    body.service_tier = _text(fields, "service_tier", MAX_TAG_CHARS)
    body.plain = body.service_tier is None and body.slo_use_case is None and body.slo_class is None
    return body


def _quick(raw: bytes, limits: Limits) -> Body | None:
    """A chat in which nothing is out of the ordinary; None leaves it to the exact reading, which finds out what is."""
    found = taken_apart(raw)
    if found is None:
        return None
    around, view, messages = found
    if len(around.model) > limits.model_chars or around.n > limits.choices:
        return None
    body = Body(raw, Endpoint.CHAT)
    body.model = around.model
    body.stream = around.stream
    body.max_output_tokens = around.max_output_tokens
    body.n = around.n
    if around.service_tier is not None:
        body.service_tier, body.plain = around.service_tier, False
    body.prompt = view
    body.text_bytes = len(messages) + around.tools_bytes
    body.app = _app_of(messages[:APP_BYTES]) or around.app
    if len(messages) >= 2 * BLOCK_BYTES:
        body.prefix_hashes = _prefix_hashes(messages)
    return body


def _read_generation(body: Body, fields: dict[str, msgspec.Raw], endpoint: Endpoint, limits: Limits) -> None:
    body.stream = _flag(fields, "stream") or False
    if endpoint is Endpoint.CHAT:
        most = _integer(fields, "max_completion_tokens")
        body.max_output_tokens = most if most is not None else _integer(fields, "max_tokens")
    elif endpoint is Endpoint.RESPONSES:
        body.max_output_tokens = _integer(fields, "max_output_tokens")
    else:
        body.max_output_tokens = _integer(fields, "max_tokens")
    if endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS):
        n = _integer(fields, "n")
        if endpoint is Endpoint.COMPLETIONS:
            n = max(n or 1, _integer(fields, "best_of") or 1) if "best_of" in fields else n
            suffix = fields.get("suffix")
            body.has_suffix = suffix is not None and bytes(suffix) not in (b"null", b'""')
        if n is not None:
            if not 1 <= n <= limits.choices:
                raise _wrong("n", f"from 1 to {limits.choices}")
            body.n = n
        if "stream_options" in fields:
            body.include_usage = _include_usage(fields["stream_options"], limits)
    else:
        body.include_usage = True  # these protocols always tell
        if endpoint is Endpoint.MESSAGES and "system" in fields:
            body.text_bytes += len(memoryview(fields["system"]))
        elif endpoint is Endpoint.RESPONSES and "instructions" in fields:
            body.text_bytes += len(memoryview(fields["instructions"]))
    if "tools" in fields:
        body.text_bytes += len(memoryview(fields["tools"]))


def _object(value: msgspec.Raw, name: str, limits: Limits) -> dict[str, msgspec.Raw]:
    """A small object of the body, its keys once each."""
    raw = bytes(value)
    if raw == b"null":
        return {}
    _bound_depth(raw, limits.json_depth, name)
    try:
        fields = _fields_of(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _wrong(name, "an object") from None
    _places_of(raw, fields)
    return fields


def _bound_depth(raw: bytes, most: int, name: str) -> None:
    depth = 0
    for byte in raw[:65536] if raw.count(b"[") + raw.count(b"{") > most else b"":
        if byte in b"[{":
            depth += 1
            if depth > most:
                raise _wrong(name, f"nested at most {most} levels deep")
        elif byte in b"]}":
            depth -= 1


def _include_usage(value: msgspec.Raw, limits: Limits) -> bool | None:
    return _flag(_object(value, "stream_options", limits), "include_usage")


def _read_metadata(body: Body, value: msgspec.Raw, limits: Limits) -> None:
    view = memoryview(value)
    if len(view) > 65536 or b"slo_" not in bytes(view):
        return
    fields = _object(value, "metadata", limits)
    body.slo_use_case = _text(fields, "slo_use_case", MAX_TAG_CHARS)
    body.slo_class = _text(fields, "slo_class", MAX_TAG_CHARS)


def _recognise(body: Body, prompt: memoryview) -> None:
    """Whose traffic is this like (the application repeats its first message), and which blocks of the prompt may an engine still hold?"""
    fields = body.fields
    app = _app_of(bytes(prompt[:APP_BYTES]))
    if app:
        body.app = app
    elif "system" in fields:
        body.app = crc32(memoryview(fields["system"])[:APP_BYTES]) | 1
    elif "instructions" in fields:
        body.app = crc32(memoryview(fields["instructions"])[:APP_BYTES]) | 1
    else:
        body.app = crc32(body.model.encode()) | 1
    if len(prompt) >= 2 * BLOCK_BYTES:
        body.prefix_hashes = _prefix_hashes(bytes(prompt[: MAX_BLOCKS * BLOCK_BYTES]))


def _app_of(start: bytes) -> int:
    """The fingerprint of the system text that messages begin with, the user's words left out; 0 when they begin with none."""
    first = start[:200]
    if b'"system"' not in first and b'"developer"' not in first:
        return 0
    user = start.find(b'"user"')
    return crc32(start[:user] if user > 0 else start) | 1


def _prefix_hashes(prompt: bytes) -> tuple[int, ...]:
    """Chained, and keyed by the process (Python's own hash is seeded): nobody can tell a text by them."""
    chained = 0
    hashes: list[int] = []
    at, end = 0, min(len(prompt) // BLOCK_BYTES, MAX_BLOCKS) * BLOCK_BYTES
    while at < end:
        # Shifted, so that the order of blocks counts; smaller by three bits, which keeps it a machine's number.
        chained = (chained >> 1) ^ (hash(prompt[at : at + BLOCK_BYTES]) >> 3)
        hashes.append(chained)
        at += BLOCK_BYTES
    return tuple(hashes)


def _where(raw: bytes, error: Exception) -> str:
    """What is wrong with it, and where; nothing of what it says."""
    text = str(error)
    match = re.search(r"byte (\d+)", text)
    if not raw.strip():
        return "The request body is empty; a JSON object is needed."
    if isinstance(error, RecursionError):
        return "The request body is nested too deeply."
    if isinstance(error, msgspec.ValidationError):
        return "The request body is not a JSON object."
    return f"The request body is not valid JSON (at byte {match[1]})." if match else "The request body is not valid JSON."


def with_service_tier(answer: bytes, tier: str) -> bytes:
    """A whole answer, with the tier that was served in it. Anything that is not a JSON object stays as it is."""
    try:
        fields = _fields_of(answer)
        places = _places_of(answer, fields)
    except (msgspec.DecodeError, RecursionError, ApiError):
        return answer
    if not fields:
        return answer
    new = _encode(tier)
    if "service_tier" in places:
        start, end = places["service_tier"]
        return answer[:start] + new + answer[end:]
    at = answer.index(b"{") + 1
    return answer[:at] + b'"service_tier":' + new + b"," + answer[at:]


def value_of(raw: Any) -> Any:
    """A field's value in full; for classification, where a bounded part is not enough."""
    return cast(Any, _value_of(raw))
