"""An engine's event stream, read as it passes: how many tokens are in these bytes, was there an error, is it over, what was used.

Byte-transparent: what goes on is what came, whatever the split, but for the usage chunk that only the gateway had asked for. What counts
as a token: content, reasoning, refusal and tool-call deltas of any choice; never a role, an empty delta, a usage chunk or a comment.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from gateway.core.flow import Endpoint
from gateway.openai.events import Choice, Chunk, Delta, Typed, any_of, burst_of, chunk_of, plain_usage_of, some_usage_of, typed_of
from gateway.openai.frame import Frame

_DONE: Final = b"data: [DONE]\n\n"
# The keys of a chunk's text with its opening quote: a quote inside a string is escaped, so that this is a key wherever it stands.
_TEXT: Final = re.compile(rb'"(?:content|text)" ?: ?"?')
MAX_FRAMES: Final = 64  # a stream: some write the time into every event, which no frame survives
_CHUNKS: Final = frozenset((Endpoint.CHAT, Endpoint.COMPLETIONS))
_ENDINGS: Final = frozenset(("response.completed", "response.incomplete", "response.failed", "message_stop"))


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else 0


Used = tuple[int, int, int]
"""(prompt tokens, those of them that were cached, output tokens), as an engine counted them."""


def normal_usage(usage: Any) -> Used | None:
    """What was used, in any of the protocols' words; None when there is nothing."""
    if not isinstance(usage, dict):
        return None
    prompt = _number(usage.get("prompt_tokens", usage.get("input_tokens")))
    output = _number(usage.get("completion_tokens", usage.get("output_tokens")))
    details = usage.get("prompt_tokens_details", usage.get("input_tokens_details"))
    cached = _number(details.get("cached_tokens")) if isinstance(details, dict) else 0
    if "cache_read_input_tokens" in usage:  # Anthropic counts what was cached apart
        cached = _number(usage["cache_read_input_tokens"])
        prompt += cached + _number(usage.get("cache_creation_input_tokens"))
    if not prompt and not output:
        return None
    return prompt, min(cached, prompt), output


def usage_of(body: bytes) -> Used | None:
    """The usage a whole answer tells."""
    try:
        usage = plain_usage_of(body).usage
        prompt, output = usage.prompt_tokens, usage.completion_tokens
        if usage.prompt_tokens_details is None and 0 < prompt < 2**40 and 0 <= output < 2**40:
            return prompt, 0, output
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass  # another protocol's words, or none
    try:
        return normal_usage(some_usage_of(body).usage)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


class Reader:
    """One stream. `feed` every read, in order; afterwards `out` is what goes on (the very object that came, when nothing changed)."""

    __slots__ = (
        "_chunks", "_drops_usage", "_frames", "_line_limit", "_rest", "done", "error", "failed", "frame", "out", "usage",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, drops_usage: bool, line_limit: int) -> None:
        self._chunks = endpoint in _CHUNKS
        self._drops_usage = drops_usage and self._chunks
        self._line_limit = line_limit
        self._rest = b""  # an event that is not complete
        self._frames = MAX_FRAMES
        self.frame: Frame | None = None  # how the last plain token looked
        self.out = b""
        self.usage: Used | None = None
        self.error: Any = None
        self.done = False
        self.failed = False  # an event beyond the limit: this is no stream

    def feed(self, data: bytes) -> int:
        """The number of content deltas that are complete with these bytes."""
        if not self._rest and self._chunks and data[:6] == b"data: " and data[-2:] == b"\n\n" and data.find(b"\n") == len(data) - 2:
            # One whole event in one read: how nearly all come.
            self.out = data
            try:
                chunk = chunk_of(data[6:-2])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return self._other(data)
            choices = chunk.choices
            if choices and chunk.usage is None and chunk.error is None:
                deltas = _tokens_in(choices)
                if deltas and self._frames and len(choices) == 1:
                    self._recognise(data)
                return deltas
            return self._chunk(chunk, data)
        if not self._rest and self._chunks and data[:7] == b"data: {" and data[-2:] == b"\n\n":
            deltas = self._burst(data)
            if deltas >= 0:
                self.out = data
                return deltas
        return self._split(data)

    @property
    def between(self) -> bool:
        """Has every event that began ended?"""
        return not self._rest

    def _recognise(self, event: bytes) -> None:
        """Of an event that carries a token in one choice: what is around its text, if that is its only text."""
        texts = _TEXT.findall(event)
        if len(texts) != 1 or texts[0][-1] != 34:
            return
        at = event.index(texts[0]) + len(texts[0])
        end = event.find(b'"', at)
        if end > at and event[end - 1] != 92:
            self._frames -= 1
            self.frame = Frame(event[:at], event[end:])

    def _burst(self, data: bytes) -> int:
        """Several whole events of one line each, read as one list: a line's end cannot stand inside JSON, so this is exact. -1 leaves
        them to the careful way: anything but plain chunks among them."""
        last = data.endswith(_DONE)
        events = data[6 : -len(_DONE) - 2] if last else data[6:-2]
        try:
            chunks = burst_of(b"[%b]" % events.replace(b"\n\ndata: ", b","))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return -1
        deltas = 0
        for chunk in chunks:
            choices = chunk.choices
            if not choices or chunk.usage is not None or chunk.error is not None:
                return -1
            deltas += _tokens_in(choices)
        self.done = self.done or last
        return deltas

    def _split(self, data: bytes) -> int:
        rest = self._rest
        whole = rest + data if rest else data
        deltas, at = 0, 0
        kept: list[bytes] | None = None
        kept_to = 0
        # Nearly no engine ends lines with CRLF: where none is in sight, the plain search is enough.
        plain = whole.find(b"\r", 0, 65536) < 0 and b"\r" not in whole
        while True:
            if plain:
                end = whole.find(b"\n\n", at) + 2
                if end == 1:
                    break
            else:
                end = _event_end(whole, at)
                if not end:
                    break
            event = whole[at:end]
            self.out = event
            deltas += self._event(event)
            if not self.out:  # dropped
                kept = kept or []
                kept.append(whole[kept_to:at])
                kept_to = end
            at = end
        self._rest = whole[at:]
        if len(self._rest) > self._line_limit:
            self.failed = True
            self._rest = b""
        if not self._drops_usage:
            self.out = data
        elif kept is None:
            self.out = data if not rest and at == len(whole) else whole[:at]
        else:
            kept.append(whole[kept_to:at])
            self.out = b"".join(kept)
        return deltas

    def end(self) -> bytes:
        """The stream is over: what was held back of an event that never got its blank line."""
        rest, self._rest = self._rest, b""
        if not rest:
            return b""
        self.out = rest
        self._event(rest)
        return self.out if self._drops_usage else b""

    # ---- one event

    def _event(self, event: bytes) -> int:
        if event[:6] == b"data: " and event.find(b"\n") == len(event) - 2:
            payload = event[6:-2]
        else:
            payload = _payload(event)
        if not payload:
            return 0
        if payload == b"[DONE]":
            self.done = True
            return 0
        try:
            if self._chunks:
                chunk = chunk_of(payload)
                if chunk.choices and chunk.usage is None and chunk.error is None:
                    return _tokens_in(chunk.choices)
                return self._chunk(chunk, event)
            return self._typed(typed_of(payload))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._odd(payload)

    def _other(self, data: bytes) -> int:
        payload = data[6:-2].strip()
        if payload == b"[DONE]":
            self.done = True
            return 0
        return self._odd(payload)

    def _odd(self, payload: bytes) -> int:
        """JSON that is not shaped as expected: an error it may still be."""
        try:
            value = any_of(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return 0
        if isinstance(value, dict) and value.get("error"):
            self.error = value["error"]
        return 0

    def _chunk(self, chunk: Chunk, event: bytes) -> int:
        if chunk.error is not None:
            self.error = chunk.error
            return 0
        choices = chunk.choices
        if chunk.usage is not None:
            self.usage = normal_usage(chunk.usage) or self.usage
            if not choices and self._drops_usage:
                self.out = b""
                return 0
        if choices is None and chunk.usage is None and chunk.object is None:
            self._odd(_payload(event))
            value = any_of(_payload(event))
            if isinstance(value, dict) and "message" in value and "code" in value:
                self.error = value  # an error without its `error`
            return 0
        return _tokens_in(choices or [])

    def _typed(self, event: Typed) -> int:
        kind = event.type
        if kind.endswith((".delta", "_delta")):
            if kind == "message_delta":
                self._used(event.usage)
                return 0
            delta = event.delta
            if isinstance(delta, dict):
                delta = delta.get("text") or delta.get("thinking") or delta.get("partial_json")
            return 1 if delta else 0
        if kind == "content_block_start":
            block = event.content_block
            return 1 if isinstance(block, dict) and (block.get("name") or block.get("text")) else 0
        if kind == "message_start" and isinstance(event.message, dict):
            self._used(event.message.get("usage"))
        elif kind == "error":
            self.error = event.error if event.error is not None else {"message": event.message, "code": event.code}
        elif kind in _ENDINGS:
            self.done = True
            response = event.response
            if isinstance(response, dict):
                self._used(response.get("usage"))
                if kind == "response.failed":
                    self.error = response.get("error") or {"message": "the engine failed"}
        return 0

    def _used(self, usage: Any) -> None:
        """Anthropic tells the prompt's tokens first and the answer's at the end."""
        new = normal_usage(usage)
        if new is not None:
            old = self.usage or new
            self.usage = max(new[0], old[0]), max(new[1], old[1]), max(new[2], old[2])


def _tokens_in(choices: list[Choice]) -> int:
    """1 when any choice of a chunk has one."""
    for choice in choices:
        delta = choice.delta
        if delta is not None:
            if delta.content or delta.reasoning_content or _more(delta):
                return 1
        elif choice.text:
            return 1
    return 0


def _more(delta: Delta) -> bool:
    return bool(delta.reasoning or delta.refusal or delta.tool_calls or delta.function_call)


def _event_end(data: bytes, at: int) -> int:
    """Just behind the blank line that ends the event beginning at `at`; 0 when there is none yet."""
    lf = data.find(b"\n\n", at)
    crlf = data.find(b"\n\r\n", at)
    if lf < 0:
        return crlf + 3 if crlf >= 0 else 0
    return lf + 2 if crlf < 0 or lf < crlf else crlf + 3


def _payload(event: bytes) -> bytes:
    """The data of an event: its `data:` lines, joined."""
    if event.startswith(b"data:") and event.find(b"\n") >= len(event.rstrip(b"\r\n")):
        return event[5:].strip()
    lines = []
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[5:].strip())
    return b"\n".join(lines)
