"""The classifier as it runs: one file of weights, numpy alone, some hundred microseconds a request.

Every sentence that was looked at becomes a vector: the mean of its words' vectors (words.py), what its first two words add, and where it
stands. Heads that were trained from different seeds each attend to the sentence that matters most; the best of all sentences, their mean
and the request's structure decide with it. training/fit.py makes the weights; the heads' answers are averaged in one last matrix.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.classify.features import MOST_WORDS, OPENINGS, Features
from gateway.classify.words import Words

Floats = NDArray[np.floating[Any]]

# Kinds of request; the two that are about a given text are a short or a long use case by the length of the prompt (verdict.py).
KINDS = ("chatbot", "code_completion", "code_generation", "translation", "content_generation", "summary", "document")
SMOOTHING = 0.3  # added to a sentence's weight, so that one rare word does not stand for a sentence

SHIPPED_WORDS = Path(__file__).with_name("words.npz")
SHIPPED_MODEL = Path(__file__).with_name("model.npz")
FORMAT = 2
# More sentences than this and their words are added up one after the other: the matrix that does it at once would be nearly empty.
MANY_SENTENCES = 48


class ModelError(ValueError):
    """A file that is no model of this version."""


@dataclass(slots=True)
class Weights:
    """What training learns, `heads` of them side by side. Shapes: d is the width of a head, h that of its structure layer."""

    sums: NDArray[np.int8]  # (words + OPENINGS, heads * d + 1): what each adds to its sentence, and in the last column to its weight
    steps: Floats  # (words + OPENINGS,): what one step of a row of `sums` is worth
    places: Floats  # (PLACES, heads * d)
    attention: Floats  # (heads * d,)
    attention_places: Floats  # (PLACES, heads)
    mean: Floats  # (structure,)
    spread: Floats
    structure: Floats  # (structure, heads * h)
    structure_bias: Floats
    out: Floats  # (heads * (3 d + h), kinds): of what was attended to, the best, the mean, the structure; the heads' answers averaged
    direct: Floats  # (structure, kinds)
    bias: Floats  # (kinds,)
    heads: int = 1


def in_steps(rows: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Rows in a byte a figure, and what one step of each row is worth: a quarter of the memory, and quicker to read."""
    steps = (np.abs(rows).max(1) / 127.0 + 1e-8).astype(np.float32)
    return np.round(rows / steps[:, None]).astype(np.int8), steps


@dataclass(slots=True)
class Model:
    """`temperature` makes its probabilities honest (training/judge.py); `notes` are what training says of it: mix of kinds, figures."""

    weights: Weights
    words: Words
    temperature: float = 1.0
    notes: dict[str, Any] = field(default_factory=dict)
    _places: Floats = field(init=False)
    _attention: Floats = field(init=False)
    _structure: Floats = field(init=False)
    _structure_bias: Floats = field(init=False)

    def __post_init__(self) -> None:
        w = self.weights
        # What is linear is done once here instead of for each request. A place's attention stands in its last columns.
        width = len(w.attention) // w.heads
        self._places = np.concatenate((w.places, w.attention_places), axis=1)
        self._attention = np.zeros((len(w.attention), w.heads), np.float32)
        for head in range(w.heads):
            self._attention[head * width : (head + 1) * width, head] = w.attention[head * width : (head + 1) * width]
        both = np.concatenate((w.structure, w.direct), axis=1)
        self._structure = np.ascontiguousarray(both / w.spread[:, None])
        self._structure_bias = np.concatenate((w.structure_bias, w.bias)) - (w.mean / w.spread) @ both
        prior = self.notes.get("prior", {})  # of a site whose mix is another than was trained on (training/site.py)
        self._structure_bias[-len(KINDS) :] += self.temperature * np.log([prior.get(kind, 1.0) for kind in KINDS])

    def scores(self, seen: Features) -> Floats:
        """Unnormalised log probabilities of KINDS."""
        w = self.weights
        heads, kinds, size = w.heads, len(KINDS), len(w.attention)
        added = self._sums(seen.rows, seen.starts)
        stands = self._places.take(seen.places, axis=0)
        hidden = added[:, :size] / (added[:, size:] + SMOOTHING)
        hidden += stands[:, :size]
        np.maximum(hidden, _NOTHING, out=hidden)
        attention = hidden.dot(self._attention)
        attention += stands[:, size:]
        attention -= np.maximum.reduce(attention)
        np.exp(attention, out=attention)
        attention /= np.add.reduce(attention)
        attended = attention.T.dot(hidden)
        if heads > 1:  # each head's own part of what it attends to
            attended = attended.reshape(heads, heads, -1)[range(heads), range(heads)]
        structure = seen.structure.dot(self._structure)
        structure += self._structure_bias
        layer = np.maximum(structure[:-kinds], _NOTHING)
        mean = np.add.reduce(hidden)
        mean /= len(seen.starts)
        scores: Floats = np.concatenate((attended.ravel(), np.maximum.reduce(hidden), mean, layer)).dot(w.out)
        scores += structure[-kinds:]
        return scores

    def _sums(self, rows: NDArray[np.int64], starts: NDArray[np.int64]) -> Floats:
        """What the words of each sentence add up to, with its opening (sentences x columns of `sums`)."""
        w = self.weights
        count, sentences = len(rows), len(starts)
        words = count - sentences
        figures = w.sums.take(rows, axis=0).astype(np.float32)
        steps = w.steps.take(rows)
        if sentences > MANY_SENTENCES:
            figures *= steps[:, None]
            added: Floats = np.add.reduceat(figures[:words], starts, axis=0)
            added += figures[words:]
            return added
        # One product adds up all sentences: in a sentence's row stand the steps of its words and of its opening, elsewhere nothing.
        at = np.zeros(words, np.int64)
        at[starts[1:]] = count
        at = at.cumsum()
        at += _COUNTED[:words]
        which = np.zeros(count * sentences, np.float32)
        which[at] = steps[:words]
        which[words :: count + 1] = steps[words:]
        added = which.reshape(sentences, count).dot(figures)
        return added

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
        note = {"format": FORMAT, "heads": w.heads, "temperature": self.temperature, "kinds": KINDS, **self.notes}
        arrays: dict[str, Any] = {"note": np.frombuffer(json.dumps(note).encode(), np.uint8)}
        for name in ARRAYS:
            value = getattr(w, name)
            arrays[name] = value if value.dtype == np.int8 else value.astype(np.float32 if name == "steps" else np.float16)
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path = SHIPPED_MODEL, words: Words | None = None) -> Model:
        """As `save` wrote it, with the shipped words when none are given. ModelError says what is wrong with a file."""
        try:
            with np.load(path) as file:
                note = json.loads(file["note"].tobytes())
                if note.pop("format") != FORMAT or tuple(note.pop("kinds")) != KINDS:
                    raise ModelError(f"{path} is a model of another version")
                arrays = {name: file[name] if name == "sums" else file[name].astype(np.float32) for name in ARRAYS}
        except ModelError:
            raise
        except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
            raise ModelError(f"{path} is not a model: {error}") from None
        words = words or Words.load(SHIPPED_WORDS)
        weights = Weights(heads=int(note.pop("heads")), **arrays)
        if len(weights.sums) != words.rows + OPENINGS:
            raise ModelError(f"{path} is a model of another version")
        return cls(weights, words, float(note.pop("temperature")), note)


ARRAYS = tuple(name for name in Weights.__dataclass_fields__ if name != "heads")
_NOTHING = np.float32(0.0)
_COUNTED = np.arange(MOST_WORDS)
