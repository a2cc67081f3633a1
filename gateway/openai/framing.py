"""HTTP/1.1 framing, strict and without sockets: a message's head, and bodies in chunks, from bytes in whatever pieces they come.

Used towards clients (requests) and engines (answers), so that both are read by one rule. What is not plainly right is an error: a
gateway that guesses where a message ends lets one client write another's request. What the messages mean is protocol.py's business.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_FIELDS: Final = rb"((?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
_REQUEST: Final = re.compile(rb"([A-Z][A-Z\-]{0,23}) ([\x21-\x7e]+) HTTP/1\.([01])\r\n" + _FIELDS)
_ANSWER: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?\r\n" + _FIELDS)
_FIELD: Final = re.compile(rb"([^:\r]+):[ \t]*([^\r]*?)[ \t]*\r\n")
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_HOST: Final = re.compile(rb"[A-Za-z0-9.\-_~%!$&'()*+;=:\[\]]*")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,15}")

# All that a chunked body may spend on extensions: nobody uses them, and they are a way to send without end.
CHUNK_EXTENSION_BYTES: Final = 256
CHUNK_LINE_BYTES: Final = 512
TRAILER_BYTES: Final = 8192


class FramingError(Exception):
    """Not HTTP as we take it. `status` is what the sender should be told; the connection cannot be used any further."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class Head(NamedTuple):
    """A request's head. Field names are in lower case; a field that came twice is joined by commas."""

    method: bytes
    target: bytes
    fields: dict[bytes, bytes]
    length: int  # of the body; -1 = chunked
    keep_alive: bool
    http_1_0: bool


class AnswerHead(NamedTuple):
    """An answer's head. `length`: -1 = chunked, -2 = until the connection closes."""

    status: int
    fields: dict[bytes, bytes]
    length: int
    keep_alive: bool
    streams: bool  # events will follow


def _split(block: bytes, once: frozenset[bytes]) -> dict[bytes, bytes]:
    pairs = _FIELD.findall(block)
    fields = {name.lower(): value for name, value in pairs}
    return fields if len(fields) == len(pairs) else _joined(block, once)


def _joined(block: bytes, once: frozenset[bytes]) -> dict[bytes, bytes]:
    """The same where a field comes more than once."""
    fields: dict[bytes, bytes] = {}
    for line in block.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon:
            continue
        name = name.lower()
        value = value.strip(b" \t")
        if name in fields:
            if name in once:
                raise FramingError(400, f"the field {name.decode()} is there twice")
            fields[name] += b", " + value
        else:
            fields[name] = value
    return fields


_ONCE: Final = frozenset((b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key", b"expect", b"content-type"))
_ONCE_IN_ANSWER: Final = frozenset((b"content-length", b"transfer-encoding"))


def request_head(data: bytes, end: int, *, max_fields: int, max_line_bytes: int) -> Head:
    """The head in `data[:end]`, where `end` is just behind its blank line. FramingError says what is wrong."""
    match = _REQUEST.fullmatch(data, 0, end)
    if match is None:
        raise FramingError(400, "the head is not valid HTTP/1.1")
    method, target, version, block = match.groups()
    if match.start(4) > max_line_bytes:
        raise FramingError(414, "the request line is too long")
    if block.count(b"\r\n") > max_fields:
        raise FramingError(431, "too many header fields")
    fields = _split(block, _ONCE)
    http_1_0 = version == b"0"
    host = fields.get(b"host")
    if host is None:
        if not http_1_0:
            raise FramingError(400, "the field host is missing")
    elif _HOST.fullmatch(host) is None:
        raise FramingError(400, "the field host is not a host")
    length = _body_length(fields, http_1_0)
    if length is None:
        length = 0
    if length and b"upgrade" in fields:
        # Whoever would switch protocols sends no body first; with one, what follows could be read in two ways.
        raise FramingError(400, "an upgrade cannot have a body")
    connection = fields.get(b"connection")
    keep_alive = not http_1_0 and (connection is None or b"close" not in connection.lower())
    return Head(method, target, fields, length, keep_alive, http_1_0)


_SAID_LENGTH: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength:[ \t]*([0-9]+)")


class Repeated:
    """A head that was taken apart before. Applications send the same one again and again, with another length of body at most."""

    __slots__ = ("_before", "_behind", "head", "length")

    def __init__(self, before: bytes, behind: bytes, head: Head) -> None:
        self._before = before
        self._behind = behind
        self.head = head
        self.length = head.length  # as the last look found it

    @staticmethod
    def of(data: bytes, end: int, head: Head) -> Repeated | None:
        """None for a head without a body (its fields were not judged as those of one), or that says its length in an unusual way."""
        found = _SAID_LENGTH.search(data, 0, end)
        if found is None or head.length <= 0:
            return None
        return Repeated(data[: found.start(1)], data[found.end(1) : end], head)

    def end_in(self, data: bytes) -> int:
        """Where this head ends at the beginning of `data`, and `length` is what it says there; 0 when it is another one."""
        if not data.startswith(self._before):
            return 0
        at = len(self._before)
        digits_end = data.find(b"\r", at, at + 16)
        digits = data[at:digits_end]
        if not digits.isdigit() or not data.startswith(self._behind, digits_end):
            return 0
        self.length = int(digits)
        return digits_end + len(self._behind)


# Streams of an engine begin with the same head, but for the second in its date.
_MAX_KNOWN_HEADS: Final = 256
_known_heads: Final[dict[bytes, AnswerHead]] = {}


def answer_head(data: bytes, end: int) -> AnswerHead:
    """The same for an engine's answer."""
    raw = data[:end]
    known = _known_heads.get(raw)
    if known is None:
        known = _answer_head(raw, end)
        if len(_known_heads) >= _MAX_KNOWN_HEADS:
            _known_heads.clear()
        if end < 2048:
            _known_heads[raw] = known
    return known


def _answer_head(data: bytes, end: int) -> AnswerHead:
    match = _ANSWER.fullmatch(data, 0, end)
    if match is None:
        raise FramingError(502, "the head is not valid HTTP/1.1")
    version, code, block = match.groups()
    fields = _split(block, _ONCE_IN_ANSWER)
    status = int(code)
    http_1_0 = version == b"0"
    length = _body_length(fields, http_1_0)
    if status in (204, 304) or status < 200:
        length = 0
    elif length is None:
        length = -2
    connection = fields.get(b"connection")
    keep_alive = length != -2 and not http_1_0 and (connection is None or b"close" not in connection.lower())
    streams = status == 200 and fields.get(b"content-type", b"").lower().startswith(b"text/event-stream")
    return AnswerHead(status, fields, length, keep_alive, streams)


def _body_length(fields: dict[bytes, bytes], http_1_0: bool) -> int | None:
    coding = fields.get(b"transfer-encoding")
    said = fields.get(b"content-length")
    if coding is None:
        if said is None:
            return None
        if _LENGTH.fullmatch(said) is None:
            raise FramingError(400, "content-length is not a number")
        return int(said)
    if said is not None:
        raise FramingError(400, "content-length and transfer-encoding exclude each other")
    if http_1_0 or coding.lower() != b"chunked":
        raise FramingError(400, "only the transfer coding chunked is understood, and only in HTTP/1.1")
    return -1


def find_head(data: bytes, max_bytes: int) -> int:
    """Where the head in `data` ends, just behind its blank line; 0 while it has not. FramingError as soon as it cannot become one."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > max_bytes:
            raise FramingError(431, "the head is too large")
        if _BARE_LF.search(data) is not None:
            raise FramingError(400, "a line of the head ends without a carriage return")
        return 0
    if end + 4 > max_bytes:
        raise FramingError(431, "the head is too large")
    return end + 4


class ChunkedBody:
    """Takes a chunked body apart. `feed` gives the bytes inside; `done` once the last chunk and its trailers are over, and `left` is
    what came behind them."""

    __slots__ = ("_extensions", "_line", "_need", "_state", "_trailers", "done", "left")

    _SIZE_LINE = 0
    _DATA = 1
    _DATA_END = 2
    _TRAILER = 3

    def __init__(self) -> None:
        self._state = self._SIZE_LINE
        self._need = 0  # bytes of the chunk still to come, or of the CRLF behind it
        self._line = b""  # an unfinished size or trailer line
        self._extensions = 0
        self._trailers = 0
        self.done = False
        self.left = b""

    def first_end(self, data: bytes) -> int:
        """Where the first chunk of `data` ends, when it begins there and is whole; else 0."""
        match = _CHUNK.match(data) if self.between else None
        if match is None:
            return 0
        end = match.end() + int(match[1], 16) + 2
        return end if end <= len(data) and end > match.end() + 2 else 0

    @property
    def between(self) -> bool:
        """Has every chunk that began ended?"""
        return self._state == self._SIZE_LINE and not self._line

    def feed(self, data: bytes) -> bytes:
        """The content in `data`. FramingError when it is not a chunked body."""
        parts: list[bytes] = []
        at, end = 0, len(data)
        if self._state == self._SIZE_LINE and not self._line:
            # Whole chunks, one after the other: a burst of a stream's events.
            next_chunk = _CHUNK.match
            while True:
                match = next_chunk(data, at)
                if match is None:
                    break
                size = int(match[1], 16)
                start = match.end()
                close = start + size
                if not size or data[close : close + 2] != b"\r\n":
                    break
                parts.append(data[start:close])
                at = close + 2
        while at < end:
            state = self._state
            if state == self._DATA:
                take = min(self._need, end - at)
                parts.append(data[at : at + take])
                at += take
                self._need -= take
                if not self._need:
                    self._state, self._need = self._DATA_END, 2
            elif state == self._DATA_END:
                if data[at] != (13 if self._need == 2 else 10):
                    raise FramingError(400, "a chunk is longer than it says")
                at += 1
                self._need -= 1
                if not self._need:
                    self._state = self._SIZE_LINE
            else:
                line_end = data.find(b"\n", at)
                if line_end < 0:
                    self._line += data[at:]
                    if len(self._line) > (TRAILER_BYTES if state == self._TRAILER else CHUNK_LINE_BYTES):
                        raise FramingError(400, "a line of a chunked body is too long")
                    return b"".join(parts)
                line = self._line + data[at : line_end + 1]
                self._line = b""
                at = line_end + 1
                if not line.endswith(b"\r\n"):
                    raise FramingError(400, "a line of a chunked body ends without a carriage return")
                if state == self._SIZE_LINE:
                    self._begin(line[:-2])
                elif line == b"\r\n":
                    self.done, self.left = True, data[at:]
                    break
                else:
                    self._trailers += len(line)
                    if self._trailers > TRAILER_BYTES or re.fullmatch(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n", line) is None:
                        raise FramingError(400, "a trailer is not a header field")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _begin(self, line: bytes) -> None:
        size, semicolon, extension = line.partition(b";")
        if semicolon:
            self._extensions += len(extension) + 1
            if self._extensions > CHUNK_EXTENSION_BYTES or b"\r" in extension or b"\x00" in extension:
                raise FramingError(400, "too many chunk extensions")
            size = size.rstrip(b" \t")
        if _SIZE.fullmatch(size) is None:
            raise FramingError(400, "the size of a chunk is not a number")
        self._need = int(size, 16)
        self._state = self._DATA if self._need else self._TRAILER


def chunk(content: bytes) -> bytes:
    """`content` as one chunk; it must not be empty."""
    return b"%x\r\n%b\r\n" % (len(content), content)


LAST_CHUNK: Final = b"0\r\n\r\n"
