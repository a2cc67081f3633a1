"""The classifier as it runs: one file of weights, numpy alone, some hundred microseconds a request.

Every sentence that was looked at becomes a vector: the mean of its words' vectors (words.py), what its pairs of words add, and where it
stands. Heads that were trained from different seeds each attend to the sentence that matters most; the best of all sentences, their mean
and the request's structure decide with it. training/fit.py makes the weights; the heads' answers are averaged in one last matrix.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.classify.features import BIGRAMS, Features, bigrams
from gateway.classify.words import Table, Words

Floats = NDArray[np.floating[Any]]

# Kinds of request; the two that are about a given text are a short or a long use case by the length of the prompt (verdict.py).
KINDS = ("chatbot", "code_completion", "code_generation", "translation", "content_generation", "summary", "document")
SMOOTHING = 0.3  # added to a sentence's weight, so that one rare word does not stand for a sentence

SHIPPED_WORDS = Path(__file__).with_name("words.npz")
SHIPPED_MODEL = Path(__file__).with_name("model.npz")
FORMAT = 1


class ModelError(ValueError):
    """A file that is no model of this version."""


@dataclass(slots=True)
class Weights:
    """What training/fit.py learns, `heads` of them side by side. Shapes: d is the width of a head, h that of its structure layer."""

    projection: Floats  # (vector, heads * d)
    pairs: Floats  # (BIGRAMS + 1, heads * d); the last row is nothing
    own: Floats  # (words, heads * d): what each word adds to its projected vector
    places: Floats  # (PLACES, heads * d)
    attention: Floats  # (heads * d,)
    attention_places: Floats  # (PLACES, heads)
    mean: Floats  # (structure,)
    spread: Floats
    structure: Floats  # (structure, heads * h)
    structure_bias: Floats
    out: Floats  # (heads * (3 d + h), kinds), the average of the heads' answers
    direct: Floats  # (structure, kinds)
    bias: Floats  # (kinds,)
    heads: int = 1


@dataclass(slots=True)
class Model:
    """`temperature` makes its probabilities honest (training/calibrate.py); `notes` are what training says of it: mix of kinds, figures."""

    weights: Weights
    table: Table
    temperature: float = 1.0
    notes: dict[str, Any] = field(default_factory=dict)
    words: Words = field(init=False)
    _words: Floats = field(init=False)
    _counts: Floats = field(init=False)
    _spread: Floats = field(init=False)

    def __post_init__(self) -> None:
        table = self.table
        self.words = table.words
        self._counts = table.weights.astype(np.float32)
        # The mean of projected words is the projection of their mean: done once here instead of for each request.
        self._words = (table.dense() @ self.weights.projection + self.weights.own) * self._counts[:, None]
        self._spread = 1.0 / self.weights.spread

    def scores(self, seen: Features) -> Floats:
        """Unnormalised log probabilities of KINDS."""
        w = self.weights
        ids, starts, places = seen.ids, seen.starts, seen.places
        heads = w.heads
        counts = np.add.reduceat(self._counts[ids], starts) + SMOOTHING
        hidden = np.add.reduceat(self._words[ids], starts, axis=0)
        hidden /= counts[:, None]
        pairs = np.add.reduceat(w.pairs[bigrams(ids, starts)], starts, axis=0)
        pairs /= np.sqrt(counts)[:, None]
        hidden += pairs
        hidden += w.places[places]
        np.maximum(hidden, 0.0, out=hidden)
        by_head = hidden.reshape(len(starts), heads, -1)
        attention = (hidden * w.attention).reshape(by_head.shape).sum(2) + w.attention_places[places]
        attention -= attention.max(0)
        np.exp(attention, out=attention)
        attention /= attention.sum(0)
        attended = np.einsum("sh,shd->hd", attention, by_head)
        structure = (seen.structure - w.mean) * self._spread
        layer = np.maximum(structure @ w.structure + w.structure_bias, 0.0)
        together = np.concatenate((attended, by_head.max(0), by_head.mean(0), layer.reshape(heads, -1)), axis=1)
        scores: Floats = together.reshape(-1) @ w.out + structure @ w.direct + w.bias
        return scores

    def probabilities(self, seen: Features) -> Floats:
        """Of KINDS, adding up to 1."""
        scores = self.scores(seen) / self.temperature
        scores -= scores.max()
        np.exp(scores, out=scores)
        scores /= scores.sum()
        return scores

    def save(self, path: Path) -> None:
        """One file, the pairs in int8. The words are kept in their own."""
        w = self.weights
        arrays = {name: getattr(w, name) for name in Weights.__dataclass_fields__ if name not in ("heads", "pairs")}
        scale = float(np.abs(w.pairs).max()) / 127.0 or 1.0
        note = {"format": FORMAT, "heads": w.heads, "pair_scale": scale, "temperature": self.temperature, "kinds": KINDS, **self.notes}
        np.savez_compressed(
            path,
            pairs=np.round(w.pairs / scale).astype(np.int8),
            note=np.frombuffer(json.dumps(note).encode(), np.uint8),
            **{name: array.astype(np.float16) for name, array in arrays.items()},
        )

    @classmethod
    def load(cls, path: Path = SHIPPED_MODEL, words: Path = SHIPPED_WORDS, table: Table | None = None) -> Model:
        """As `save` wrote it. ModelError says what is wrong with a file."""
        try:
            with np.load(path) as file:
                note = json.loads(file["note"].tobytes())
                if note.pop("format") != FORMAT or tuple(note.pop("kinds")) != KINDS:
                    raise ModelError(f"{path} is a model of another version")
                names = [name for name in Weights.__dataclass_fields__ if name not in ("heads", "pairs")]
                arrays = {name: file[name].astype(np.float32) for name in names}
                pairs = file["pairs"].astype(np.float32) * np.float32(note.pop("pair_scale"))
                weights = Weights(pairs=pairs, heads=int(note.pop("heads")), **arrays)
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise ModelError(f"{path} is not a model: {error}") from None
        if len(weights.pairs) != BIGRAMS + 1:
            raise ModelError(f"{path} is a model of another version")
        return cls(weights, table or Table.load(words), float(note.pop("temperature")), note)
