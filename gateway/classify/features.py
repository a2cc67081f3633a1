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
from gateway.classify.words import BREAK, CODE, COLON, DIGIT, FENCE, FOREIGN, NEWLINE, QUESTION, QUOTE, Words, split
from gateway.core.flow import Endpoint
from gateway.openai.body import Body

ZONES = TOOLS + 1
PLACES = ZONES * 2 * 4 * 4 * 5
BIGRAMS = 8192
EDGE_WORDS = 48  # of the last message's head and tail, looked at on their own

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
    bits = words.bits[ids]
    return Features(ids, *_sentences(bits, bounds, zones), _structure(body, seen, bits, bounds, zones))


def _sentences(bits: NDArray[np.int16], bounds: list[int], zones: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where sentences begin, and where in its part each of them stands: zone, head or tail, from the start, from the end, length."""
    breaks = (bits & BREAK) != 0
    ends = breaks.copy()
    ends[1:] &= ~breaks[:-1]  # a mark and the line's end after it close one sentence, not two
    ends[np.array(bounds) - 1] = True
    last = np.flatnonzero(ends)
    starts = np.empty_like(last)
    starts[0] = 0
    starts[1:] = last[:-1] + 1
    # For each piece: its first and last sentence.
    piece_ends = np.searchsorted(last, np.array(bounds) - 1) + 1
    places = np.empty_like(last)
    lengths = np.minimum(np.log2(last - starts + 1).astype(np.int64), 4)
    begin = 0
    previous = -1
    for index, zone in enumerate(zones):
        end = int(piece_ends[index])
        is_tail = zone == previous
        has_tail = index + 1 < len(zones) and zones[index + 1] == zone
        count = end - begin
        order = np.arange(count)
        from_start = np.minimum(order, 3) if not is_tail else 3
        from_end = np.minimum(order[::-1], 3) if not has_tail else 3
        places[begin:end] = ((zone * 2 + is_tail) * 16 + from_start * 4 + from_end) * 5 + lengths[begin:end]
        begin, previous = end, zone
    return starts, places


def _structure(body: Body, seen: Glance, bits: NDArray[np.int16], bounds: list[int], zones: list[int]) -> NDArray[np.float32]:
    fields = body.fields
    endpoint = body.endpoint
    last_begin, last_end = 0, 0
    for index, zone in enumerate(zones):
        if zone == LAST:
            if last_end == 0:
                last_begin = bounds[index - 1] if index else 0
            last_end = bounds[index]
    last = bits[last_begin:last_end]
    count = last_end - last_begin
    head, tail = last[:EDGE_WORDS], last[-EDGE_WORDS:]
    shares = ((last[:, None] & _SHARED) != 0).sum(0) / (count + 5.0)
    code_edges = min(count, EDGE_WORDS) + 5.0
    start = bytes(body.prompt[:FIM_LOOK_BYTES])
    total_log2 = log2(body.text_bytes + 2.0)
    last_log2 = log2(seen.last_chars + 2.0)
    figures = (
        endpoint is Endpoint.COMPLETIONS,
        endpoint is Endpoint.RESPONSES,
        endpoint is Endpoint.MESSAGES,
        endpoint is Endpoint.EMBEDDINGS,
        body.has_suffix or "suffix" in fields,
        any(marker in start for marker in FIM_MARKERS),
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
        shares[0],
        ((head & CODE) != 0).sum() / code_edges,
        ((tail & CODE) != 0).sum() / code_edges,
        shares[1],
        shares[2],
        shares[3],
        shares[4] > 0,
        bool((tail[-8:] & QUESTION).any()),
        bool((head & QUESTION).any()),
        bool((tail[-2:] & COLON).any()),
        bool((tail[-1:] & CODE).any()),
        shares[5],
    )
    return np.concatenate(
        (
            np.array(figures, np.float32),
            np.clip((total_log2 - _TOTAL_OCTAVES) * 0.5 + 0.5, 0.0, 1.0),
            np.clip((last_log2 - _LAST_OCTAVES) * 0.5 + 0.5, 0.0, 1.0),
        )
    )


_SHARED = np.array([CODE, NEWLINE, DIGIT, FOREIGN, FENCE, QUOTE], np.int16)


def bigrams(ids: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """A bucket for each word with the word before it; the first of a sentence has the last bucket, which holds nothing."""
    buckets = np.empty_like(ids)
    np.multiply(ids[:-1], 31_337, out=buckets[1:])
    buckets[1:] += ids[1:] * 7_919
    buckets %= BIGRAMS
    buckets[starts] = BIGRAMS
    return buckets
