"""The classifier as it runs: one file of weights, numpy alone, some hundred microseconds a request.

Every sentence that was looked at becomes a vector: the mean of its words' vectors (words.py), what its first two words add, and where it
stands. The model attends to the sentence that matters most; the best of all sentences, their mean and the request's structure decide with
it. training/fit.py makes the weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import accumulate
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.classify import arrays
from gateway.classify.features import OPENINGS, Features, packed
from gateway.classify.words import Words

Floats = NDArray[np.floating[Any]]

# Kinds of request; the two that are about a given text are a short or a long use case by the length of the prompt (verdict.py).
KINDS = ("chatbot", "code_completion", "code_generation", "translation", "content_generation", "summary", "document")
MOST_CELLS = 32_768  # sentences times words: up to so many it takes less time to add up words by a product
SMOOTHING = 0.3  # added to a sentence's weight, so that one rare word does not stand for a sentence

SHIPPED_WORDS = Path(__file__).with_name("words.npz")
SHIPPED_MODEL = Path(__file__).with_name("model.npz")
FORMAT = 2


class ModelError(ValueError):
    """A file that is no model of this version."""


@dataclass(slots=True)
class Weights:
    """What training learns. Shapes: d is the width of a sentence's vector, h that of the structure layer."""

    sums: NDArray[np.int8]  # (words + OPENINGS, d + 1): what each adds to its sentence, and in the last column to its weight, in steps
    step: Floats  # (1,): what one of them is worth
    places: Floats  # (PLACES, d)
    attention: Floats  # (d,)
    attention_places: Floats  # (PLACES, 1)
    mean: Floats  # (structure,)
    spread: Floats
    structure: Floats  # (structure, h)
    structure_bias: Floats
    out: Floats  # (3 d + h, kinds): of the sentence attended to, the mean, the best, and the structure
    direct: Floats  # (structure, kinds)
    bias: Floats  # (kinds,)


def in_steps(rows: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Rows in a byte a figure, and what one step is worth: a quarter of the memory, and quicker to read. The few figures far from the
    others are cut."""
    step = np.array([np.quantile(np.abs(rows).max(1), 0.999) / 127.0], np.float32)
    return np.clip(np.round(rows / step), -127, 127).astype(np.int8), step


@dataclass(slots=True)
class Model:
    """`temperature` makes its probabilities honest (training/judge.py); `notes` are what training says of it: mix of kinds, figures."""

    weights: Weights
    words: Words
    temperature: float = 1.0
    notes: dict[str, Any] = field(default_factory=dict)
    _sums: NDArray[np.int8] = field(init=False)
    _smoothing: Floats = field(init=False)
    _places: Floats = field(init=False)
    _attention: Floats = field(init=False)
    _structure: Floats = field(init=False)
    _least: Floats = field(init=False)
    _out: Floats = field(init=False)
    # What a request is decided by, written over by the next one's, and its parts: a model is one thread's.
    _together: Floats = field(init=False)
    _sentences: Floats = field(init=False)  # (3, d + 1): the sentence attended to, the mean, the best
    _attended_and_mean: Floats = field(init=False)
    _best: Floats = field(init=False)
    _layer: Floats = field(init=False)

    def __post_init__(self) -> None:
        # Whatever can be done once is done here instead of for each request, so that each step there is one call: calls are what it costs.
        # (What was loaded from a file lies there in halves and is not copied; computed is with floats.)
        w, kinds = self.weights, len(KINDS)
        self._sums = w.sums
        self._smoothing = np.float32(SMOOTHING) / w.step.astype(np.float32)
        # The last column of a sentence's vector is what speaks for attention to it: its place, never below nothing, and its weight.
        speaks = w.attention_places.astype(np.float32)
        self._places = np.concatenate((w.places, speaks - speaks.min()), axis=1, dtype=np.float32)
        self._attention = np.append(w.attention.astype(np.float32), np.float32(1.0))
        both = np.concatenate((w.structure, w.direct), axis=1, dtype=np.float32)
        mean, spread = w.mean.astype(np.float32), w.spread.astype(np.float32)
        bias = np.concatenate((w.structure_bias, w.bias), dtype=np.float32) - (mean / spread) @ both
        prior = self.notes.get("prior", {})  # of a site whose mix is another than was trained on (training/site.py)
        bias[-kinds:] += self.temperature * np.log([prior.get(kind, 1.0) for kind in KINDS])
        self._structure = np.concatenate((both / spread[:, None], bias[None]), dtype=np.float32)
        self._least = np.append(np.zeros(len(bias) - kinds, np.float32), np.full(kinds, -np.inf, np.float32))
        d, out = len(w.attention), w.out.astype(np.float32)
        parts = [out[begin : begin + d] for begin in (0, d, 2 * d)]
        nothing = np.zeros((1, kinds), np.float32)
        self._out = np.concatenate((*(row for part in parts for row in (part, nothing)), out[3 * d :], np.eye(kinds, dtype=np.float32)))
        self._together = np.zeros(len(self._out), np.float32)
        self._sentences = self._together[: 3 * (d + 1)].reshape(3, d + 1)
        self._attended_and_mean, self._best = self._sentences[:2], self._sentences[2]
        self._layer = self._together[3 * (d + 1) :]

    def scores(self, seen: Features) -> Floats:
        """Unnormalised log probabilities of KINDS."""
        rows = self._sums.take(seen.rows, axis=0).astype(np.float32)
        lengths = seen.lengths
        count = len(lengths)
        if count * len(rows) <= MOST_CELLS:
            # As a product with ones where a sentence has its rows: between those of one sentence and of the next lie as many noughts as
            # there are rows. (All summands are whole numbers: the order in which they are added changes nothing.)
            cells = bytes(4 * len(rows)).join([_ONES[: 4 * length + 4] for length in lengths])
            sentences = np.ndarray((count, len(rows)), np.float32, cells).dot(rows)
        else:
            sentences = np.add.reduceat(rows, list(accumulate([length + 1 for length in lengths[:-1]], initial=0)), axis=0)
        sentences /= sentences[:, -1:] + self._smoothing
        sentences += self._places.take(seen.places, axis=0)
        np.maximum(sentences, _NOTHING, out=sentences)
        if count == 1:
            self._sentences[:] = sentences
        else:
            attention = sentences.dot(self._attention).tolist()
            most = max(attention)
            odds = [exp(one - most) for one in attention]
            total = sum(odds)
            odds = [one / total for one in odds]
            weighed = packed(2 * count, "f")(*odds, *[1.0 / count] * count)
            np.ndarray((2, count), np.float32, weighed).dot(sentences, self._attended_and_mean)
            np.maximum.reduce(sentences, axis=0, out=self._best)
        layer = self._layer
        seen.structure.dot(self._structure, layer)
        np.maximum(layer, self._least, out=layer)
        scores: Floats = self._together.dot(self._out)
        return scores

    def probabilities(self, seen: Features) -> list[float]:
        """Of KINDS, adding up to 1. (Plain floats: seven figures are too few for numpy.)"""
        scores = self.scores(seen).tolist()
        most, temperature = max(scores), self.temperature
        odds = [exp((score - most) / temperature) for score in scores]
        total = sum(odds)
        return [odd / total for odd in odds]

    def save(self, path: Path) -> None:
        """One file. The words are kept in their own."""
        w = self.weights
        note = {"format": FORMAT, "temperature": self.temperature, "kinds": KINDS, **self.notes}
        found: dict[str, Any] = {"note": np.frombuffer(json.dumps(note).encode(), np.uint8)}
        for name in ARRAYS:
            value = getattr(w, name)
            found[name] = value if value.dtype == np.int8 else value.astype(np.float16)
        arrays.save(path, found)

    @classmethod
    def load(cls, path: Path = SHIPPED_MODEL, words: Words | None = None) -> Model:
        """As `save` wrote it, with the shipped words when none are given. The shipped model stays where it is on disk; another, whose file
        may be written over, is read. ModelError says what is wrong with a file."""
        try:
            file = arrays.mapped(path) if path == SHIPPED_MODEL else arrays.read(path)
            note = json.loads(file["note"].tobytes())
            if note.pop("format") != FORMAT or tuple(note.pop("kinds")) != KINDS:
                raise ModelError(f"{path} is a model of another version")
            weights = Weights(**{name: file[name] for name in ARRAYS})
        except ModelError:
            raise
        except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
            raise ModelError(f"{path} is not a model: {error}") from None
        words = words or Words.load(SHIPPED_WORDS)
        if len(weights.sums) != words.rows + OPENINGS:
            raise ModelError(f"{path} is a model of another version")
        return cls(weights, words, float(note.pop("temperature")), note)


ARRAYS = tuple(Weights.__dataclass_fields__)
_NOTHING = np.float32(0.0)

_ONES = np.ones(MOST_CELLS, np.float32).tobytes()
