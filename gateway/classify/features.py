"""What is computed of a request: the words of what text.py picked, cut into lines and sentences, and the request's structure as figures.

`stream` and `temperature` are left out on purpose: they say how somebody configured a client, not what is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from math import log2
from operator import add, itemgetter
from struct import Struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.classify.text import LAST, TOOLS, Glance, glance
from gateway.classify.words import BREAK, CODE, COLON, COLON_STOP, DIGIT, FENCE, FOREIGN, NEWLINE, QUESTION, QUOTE, Words
from gateway.core.flow import Endpoint
from gateway.openai.body import Body

# To look one up in its enum costs as much as a call.
_COMPLETIONS, _RESPONSES, _MESSAGES, _EMBEDDINGS = Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.EMBEDDINGS
ZONES = TOOLS + 1
PLACES = ZONES * 2 * 4 * 4 * 5
OPENINGS = 8192  # a power of two
MOST_WORDS = 8192  # pieces are cut to some thousand characters, none of which is more than a word
EDGE_WORDS = 48  # of the last message's head and tail, looked at on their own

# What stands before, between or behind the parts of a fill-in-the-middle prompt, whichever model's.
_FIM_MARKER = re.compile(r"[<\[](?:\|?fim_|\uff5cfim|PRE>|MID>|SUFFIX\]|MIDDLE\])").search
# Prompt bytes and characters of the last message are told by how far they are above each of these powers of two, 0..1.
_TOTAL_OCTAVES = np.arange(5.0, 16.0, dtype=np.float32)
_LAST_OCTAVES = np.arange(4.0, 14.0, dtype=np.float32)
STRUCTURE = (
    "completions", "responses", "anthropic", "embeddings", "suffix", "fill_in_the_middle", "tools", "tool_count", "response_format", "stop",
    "images", "messages", "users", "turns", "many_turns", "assistants", "tools_used", "agent_loop", "system_length", "system",
    "last_share", "long_first", "not_user_last", "single_text",
    "code_share", "code_head", "code_tail", "newlines", "digits", "foreign", "fence", "question_tail", "question_head", "colon_end",
    "code_end", "quotes",
    *(f"total_{int(octave)}" for octave in _TOTAL_OCTAVES), *(f"last_{int(octave)}" for octave in _LAST_OCTAVES),
)  # fmt: skip


FIGURES = len(STRUCTURE) - len(_TOTAL_OCTAVES) - len(_LAST_OCTAVES)  # those before the sizes


class Features(NamedTuple):
    """`rows`: of each sentence the row of each of its words in a model's table, then that of its opening. `lengths`: how many words each
    sentence has. `places`: where it stands, below PLACES. `structure`: one figure for each name in STRUCTURE, and a 1 for the bias."""

    rows: NDArray[np.int64]
    lengths: list[int]
    places: list[int]
    structure: NDArray[np.float32]


def features(body: Body, words: Words) -> Features:
    """All of a request that a model sees. (Plain lists as far as they go: for so few figures each call of numpy costs what it saves.)"""
    seen = glance(body)
    bounds: list[int] = []  # where each piece ends
    zones: list[int] = []
    ids, ends = words.rows_of([text for _, text in seen.pieces])
    before = 0
    for (zone, _), end in zip(seen.pieces, ends, strict=False):  # without a piece there is an end all the same
        if end > before:
            bounds.append(end)
            zones.append(zone)
            before = end
    if not ids:
        ids, bounds, zones = [0], [1], [LAST]
    marks = bytes(itemgetter(0, *ids)(words.marks)[1:])  # of a single one it would make no tuple
    lengths, places = _sentences(marks, bounds, zones)
    rows = _with_openings(ids, lengths, words.rows)
    array = np.frombuffer(packed(len(rows), "q")(*rows), np.int64)
    return Features(array, lengths, places, _structure(body, seen, marks, bounds, zones))


@lru_cache(1024)
def packed(count: int, figure: str) -> Callable[..., bytes]:
    """Makes bytes of so many figures (`figure` as the struct module writes them), from which an array is made in half the time that one
    takes of a list."""
    return Struct(f"{count}{figure}").pack


def _sentences(marks: bytes, bounds: list[int], zones: list[int]) -> tuple[list[int], list[int]]:
    """How many words each sentence has, and where in its part it stands: zone, head or tail, from the start, from the end, length."""
    lengths: list[int] = []
    stands: list[int] = []
    begin, before = 0, -1
    for index, end in enumerate(bounds):
        zone = zones[index]
        cut = list(map(len, _SENTENCES(marks, begin, end)))
        lengths += cut
        stands += _stands(zone, zone == before, index + 1 < len(zones) and zones[index + 1] == zone, len(cut))
        begin, before = end, zone
    return lengths, list(map(add, stands, map(_LENGTH.__getitem__, lengths)))


def _with_openings(ids: list[int], lengths: list[int], words: int) -> list[int]:
    """The opening of a sentence is its first two words, since what is asked for stands there ("what does", "put this"). Openings have
    their rows behind those of the `words`; each is put behind its sentence."""
    rows: list[int] = []
    begin = 0
    for length in lengths:
        opening = ids[begin] * 31_337 + (ids[begin + 1] * 7_919 if length > 1 else 0)
        rows += ids[begin : begin + length]
        rows.append(words + (opening & (OPENINGS - 1)))
        begin += length
    return rows


_SENTENCES = re.compile(rb"[^\x%02x-\x%02x]+[\x%02x-\x%02x]*|[\x%02x-\x%02x]+" % ((BREAK, COLON_STOP) * 3)).findall
_LENGTH = [min(length.bit_length() - 1, 4) for length in range(MOST_WORDS + 1)]


@lru_cache(4096)
def _stands(zone: int, is_tail: bool, is_cut: bool, count: int) -> tuple[int, ...]:
    """Places of the sentences of a piece, but for their length. They are counted from the start of their part, and back from its end; the
    far edge of a part that was cut counts as far away."""
    part = (zone * 2 + is_tail) * 80
    return tuple(part + (3 if is_tail else min(at, 3)) * 20 + (3 if is_cut else min(count - 1 - at, 3)) * 5 for at in range(count))


def _structure(body: Body, seen: Glance, marks: bytes, bounds: list[int], zones: list[int]) -> NDArray[np.float32]:
    """`marks` are what each word is (words.py)."""
    fields = body.fields
    endpoint = body.endpoint
    begin, end = 0, 0
    for index, zone in enumerate(zones):
        if zone == LAST:
            if end == 0:
                begin = bounds[index - 1] if index else 0
            end = bounds[index]
    has_fim_marker = False
    for zone, text in seen.pieces:
        if zone == LAST and ("<" in text or "[" in text) and _FIM_MARKER(text):
            has_fim_marker = True
    last = marks[begin:end]
    head, tail = last[:EDGE_WORDS], last[-EDGE_WORDS:]
    ending = last[-8:]
    count = end - begin + 5.0
    edge = min(end - begin, EDGE_WORDS) + 5.0
    fences = last.count(FENCE)
    figures = _figures(
        endpoint is _COMPLETIONS,
        endpoint is _RESPONSES,
        endpoint is _MESSAGES,
        endpoint is _EMBEDDINGS,
        body.has_suffix or "suffix" in fields,
        has_fim_marker,
        "tools" in fields,
        log2(seen.tool_count + 1.0),
        "response_format" in fields or "text" in fields,
        "stop" in fields,
        seen.images > 0,
        log2(seen.messages + 1.0),
        log2(seen.users + 1.0),
        seen.users > 1,
        seen.users > 3,
        log2(seen.assistants + 1.0),
        log2(seen.tools_used + 1.0),
        seen.tools_used > 0,
        log2(seen.system_chars + 1.0) / 6.0,
        seen.system_chars > 0,
        seen.last_chars / (body.text_bytes + 20.0),
        seen.first_chars > 1000,
        seen.last_role != "user",
        seen.messages <= 1,
        (last.count(CODE) + fences) / count,
        (head.count(CODE) + head.count(FENCE)) / edge,
        (tail.count(CODE) + tail.count(FENCE)) / edge,
        last.count(NEWLINE) / count,
        last.count(DIGIT) / count,
        last.count(FOREIGN) / count,
        fences > 0,
        QUESTION in ending,
        QUESTION in head,
        COLON_STOP in ending[-2:] or COLON in ending[-2:],
        CODE in ending[-1:] or FENCE in ending[-1:],
        last.count(QUOTE) / count,
    )
    return np.frombuffer(figures + _size_row(_TOTALS, body.text_bytes) + _size_row(_LASTS, seen.last_chars) + _ONE, np.float32)


_figures = Struct(f"{FIGURES}f").pack
_ONE = np.float32(1.0).tobytes()


def _size_rows(octaves: NDArray[np.float32]) -> list[bytes]:
    """A row for each eighth of an octave: how far a size is above each of the octaves, 0..1."""
    sizes = np.arange(SIZE_STEPS, dtype=np.float32)[:, None] / 8.0
    return [row.tobytes() for row in np.clip((sizes - octaves) * 0.5 + 0.5, 0.0, 1.0).astype(np.float32)]


def _size_row(rows: list[bytes], size: int) -> bytes:
    return rows[min(int(log2(size + 2.0) * 8.0), SIZE_STEPS - 1)]


SIZE_STEPS = 256
_TOTALS, _LASTS = _size_rows(_TOTAL_OCTAVES), _size_rows(_LAST_OCTAVES)
