"""What is computed of a request: the words of what text.py picked, cut into lines and sentences, and the request's structure as figures.

`stream` and `temperature` are left out on purpose: they say how somebody configured a client, not what is asked.
"""

from __future__ import annotations

from math import log2
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.classify.explicit import FIM_LOOK_BYTES, FIM_MARKERS
from gateway.classify.text import LAST, TOOLS, Glance, glance
from gateway.classify.words import CODE, COLON, DIGIT, FENCE, FOREIGN, NEWLINE, QUESTION, QUOTE, Words, split
from gateway.core.flow import Endpoint
from gateway.openai.body import Body

ZONES = TOOLS + 1
PLACES = ZONES * 2 * 4 * 4 * 5
BIGRAMS = 8192  # a power of two
EDGE_WORDS = 48  # of the last message's head and tail, looked at on their own

_FIM_HINTS = (b"fim", b"<PRE>", b"[SUFFIX]")  # one of these is in each marker
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


class Features(NamedTuple):
    """`ids`: rows of the words. `starts`: where each sentence begins in them. `places`: where each stands, below PLACES. `structure`: one
    figure for each name in STRUCTURE."""

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    places: NDArray[np.int64]
    structure: NDArray[np.float32]


def features(body: Body, words: Words) -> Features:
    """All of a request that a model sees."""
    seen = glance(body)
    look_up = words.__getitem__
    rows: list[int] = []
    bounds: list[int] = []  # where each piece ends
    zones: list[int] = []
    for zone, text in seen.pieces:
        rows.extend(map(look_up, split(text)))
        if rows and (not bounds or len(rows) > bounds[-1]):
            bounds.append(len(rows))
            zones.append(zone)
    if not rows:
        rows, bounds, zones = [0], [1], [LAST]
    ids = np.array(rows)
    return Features(ids, *_sentences(words.breaks.take(ids), bounds, zones), _structure(body, seen, words, ids, bounds, zones))


def _sentences(breaks: NDArray[np.bool_], bounds: list[int], zones: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where sentences begin, and where in its part each of them stands: zone, head or tail, from the start, from the end, length."""
    ends = breaks.copy()
    ends[1:] &= ~breaks[:-1]  # a mark and the line's end after it close one sentence, not two
    piece_bounds = np.array(bounds)
    ends[piece_bounds - 1] = True
    last = np.flatnonzero(ends)
    starts = np.empty_like(last)
    starts[0] = 0
    np.add(last[:-1], 1, out=starts[1:])
    # Sentences are counted from the start of their part, and back from its end; the far edge of a part that was cut counts as far away.
    to_end = last.searchsorted(piece_bounds).tolist()
    described: list[tuple[int, int, int]] = []
    counts: list[int] = []
    begin, previous = 0, -1
    for index, zone in enumerate(zones):
        end = to_end[index]
        is_tail = zone == previous
        is_cut = index + 1 < len(zones) and zones[index + 1] == zone
        described.append(((zone * 2 + is_tail) * 80, begin - FAR if is_tail else begin, end - 1 + FAR if is_cut else end - 1))
        counts.append(end - begin)
        begin, previous = end, zone
    of_piece = np.array(described).T.repeat(counts, axis=1)
    order = np.arange(len(last))
    places = of_piece[0]
    places += np.minimum(order - of_piece[1], 3) * 20
    places += np.minimum(of_piece[2] - order, 3) * 5
    places += _OCTAVES.take(last - starts, mode="clip")
    return starts, places


FAR = 1 << 20
_OCTAVES = np.minimum(np.log2(np.arange(1, 65)).astype(np.int64), 4)


def _structure(body: Body, seen: Glance, words: Words, ids: NDArray[np.int64], bounds: list[int], zones: list[int]) -> NDArray[np.float32]:
    fields = body.fields
    endpoint = body.endpoint
    begin, end = 0, 0
    for index, zone in enumerate(zones):
        if zone == LAST:
            if end == 0:
                begin = bounds[index - 1] if index else 0
            end = bounds[index]
    marks = words.marks.take(ids[begin:end], axis=0)
    whole = _count(marks)
    head, tail = _count(marks[:EDGE_WORDS]), _count(marks[-EDGE_WORDS:])
    ending = marks[-8:].tolist()
    count = end - begin + 5.0
    edge = min(end - begin, EDGE_WORDS) + 5.0
    start = bytes(body.prompt[:FIM_LOOK_BYTES])
    figures = (
        endpoint is Endpoint.COMPLETIONS,
        endpoint is Endpoint.RESPONSES,
        endpoint is Endpoint.MESSAGES,
        endpoint is Endpoint.EMBEDDINGS,
        body.has_suffix or "suffix" in fields,
        any(hint in start for hint in _FIM_HINTS) and any(marker in start for marker in FIM_MARKERS),
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
        whole[CODE] / count,
        head[CODE] / edge,
        tail[CODE] / edge,
        whole[NEWLINE] / count,
        whole[DIGIT] / count,
        whole[FOREIGN] / count,
        whole[FENCE] > 0,
        any(word[QUESTION] for word in ending),
        head[QUESTION] > 0,
        any(word[COLON] for word in ending[-2:]),
        any(word[CODE] for word in ending[-1:]),
        whole[QUOTE] / count,
    )
    row: NDArray[np.float32] = np.concatenate(
        (np.array(figures, np.float32), _size_row(_TOTALS, body.text_bytes), _size_row(_LASTS, seen.last_chars))
    )
    return row


def _count(marks: NDArray[np.float32]) -> list[float]:
    """How many words have each mark. A product with ones is four times as quick as a sum along the first axis."""
    found: list[float] = (_ONES[: len(marks)] @ marks).tolist()
    return found


# Pieces are cut to some thousand characters, none of which is more than a word.
_ONES = np.ones(8192, np.float32)


def _size_rows(octaves: NDArray[np.float32]) -> NDArray[np.float32]:
    """A row for each eighth of an octave: how far a size is above each of the octaves, 0..1."""
    sizes = np.arange(SIZE_STEPS, dtype=np.float32)[:, None] / 8.0
    rows: NDArray[np.float32] = np.clip((sizes - octaves) * 0.5 + 0.5, 0.0, 1.0).astype(np.float32)
    return rows


def _size_row(rows: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    row: NDArray[np.float32] = rows[min(int(log2(size + 2.0) * 8.0), SIZE_STEPS - 1)]
    return row


SIZE_STEPS = 256
_TOTALS, _LASTS = _size_rows(_TOTAL_OCTAVES), _size_rows(_LAST_OCTAVES)


def bigrams(ids: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """A bucket for each word with the word before it; the first of a sentence has the last bucket, which holds nothing."""
    buckets = np.empty_like(ids)
    np.multiply(ids[:-1], 31_337, out=buckets[1:])
    buckets[1:] += ids[1:] * 7_919
    buckets &= BIGRAMS - 1
    buckets[starts] = BIGRAMS
    return buckets
