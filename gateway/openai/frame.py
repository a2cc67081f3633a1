"""A stream's plain token as it stands on the wire, chunk framing included: known by the bytes around its text, without taking it apart.

An engine repeats everything but the text (and so the chunk's size) to the byte, event after event. What does not look exactly like that
is sse.py's and framing.py's to read; where a frame is recognised, they would have said the same.
"""

from __future__ import annotations

from typing import Final

_MOST_DIGITS: Final = 8
# Size lines that were seen, with what they say: a stream's events are of a few hundred sizes.
_sizes: Final[dict[bytes, int]] = {}
_MAX_SIZES: Final = 4096


class Frame:
    """How one stream's tokens look: `before` and `behind` the text, both within the event."""

    __slots__ = ("_before", "_before_bytes", "_behind", "_behind_bytes", "end")

    def __init__(self, before: bytes, behind: bytes) -> None:
        self._before = b"\r\n" + before
        self._behind = behind + b"\r\n"
        self._before_bytes = len(before) + 2
        self._behind_bytes = len(behind) + 2
        self.end = 0  # how far the last look got

    def tokens_in(self, data: bytes) -> int:
        """How many whole chunks `data` begins with that are one plain token each; `end` is then where they end."""
        before, behind, find = self._before, self._behind, data.find
        tokens, at, size = 0, 0, len(data)
        while True:
            line_end = find(b"\r", at, at + 9)
            line = data[at:line_end]
            length = _sizes.get(line) or _size_of(line)
            end = line_end + 4 + length
            text_at = line_end + self._before_bytes
            text_end = end - self._behind_bytes
            # Exactly one more string of at least a character. Where its text has a quote, sse.py looks.
            if (
                end > size
                or text_at >= text_end
                or data[line_end:text_at] != before
                or data[text_end:end] != behind
                or find(b'"', text_at) != text_end
            ):
                break
            tokens += 1
            at = end
            if at == size:
                break
        self.end = at
        return tokens


def _size_of(line: bytes) -> int:
    """What a size line says; 0, which is no token's, when it says nothing plain."""
    if not 0 < len(line) <= _MOST_DIGITS or line.translate(None, b"0123456789abcdefABCDEF"):
        return 0
    size = int(line, 16)
    if len(_sizes) < _MAX_SIZES:
        _sizes[line] = size
    return size
