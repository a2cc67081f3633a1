"""The classifier as it runs: one file of weights, numpy alone, some hundred microseconds a request.

Every sentence that was looked at becomes a vector: the mean of its words' vectors (words.py), what its pairs of words add, and where it
stands. Heads that were trained from different seeds each attend to the sentence that matters most; the best of all sentences, their mean
and the request's structure decide with it. training/fit.py makes the weights; the heads' answers are averaged in one last matrix.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
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
SPARSE = ("pairs", "own")


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
    _pairs: Floats = field(init=False)
    _places: Floats = field(init=False)
    _attention: Floats = field(init=False)
    _structure: Floats = field(init=False)
    _structure_bias: Floats = field(init=False)

    def __post_init__(self) -> None:
        w, table = self.weights, self.table
        self.words = table.words
        # What is linear is done once here instead of for each request: projecting the words, scaling the structure.
        size, width = len(w.attention), len(w.attention) // w.heads
        counts = table.weights.astype(np.float32)
        # One look-up brings all of a word, or of a place: its weight stands in the last column, a place's attention in the last ones.
        self._words = np.empty((len(counts), size + 1), np.float32)
        np.multiply(table.dense() @ w.projection + w.own, counts[:, None], out=self._words[:, :size])
        self._words[:, size] = counts
        self._pairs = np.concatenate((w.pairs, np.zeros((len(w.pairs), 1), np.float32)), axis=1)
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
        ids, starts, places = seen.ids, seen.starts, seen.places
        heads, kinds = w.heads, len(KINDS)
        size = len(w.attention)
        words = self._words.take(ids, axis=0).astype(np.float32, copy=False)
        words += self._pairs.take(bigrams(ids, starts), axis=0)
        summed = np.add.reduceat(words, starts, axis=0)
        stands = self._places.take(places, axis=0)
        hidden = summed[:, :size] / (summed[:, size:] + SMOOTHING)
        hidden += stands[:, :size]
        np.maximum(hidden, 0.0, out=hidden)
        attention = hidden @ self._attention
        attention += stands[:, size:]
        attention -= attention.max(0)
        np.exp(attention, out=attention)
        attention /= attention.sum(0)
        attended = (attention.T @ hidden).reshape(heads, heads, -1)
        best, mean = hidden.max(0).reshape(heads, -1), (hidden.sum(0) / len(starts)).reshape(heads, -1)
        structure = seen.structure @ self._structure + self._structure_bias
        layer = np.maximum(structure[:-kinds], 0.0).reshape(heads, -1)
        parts = [part for head in range(heads) for part in (attended[head, head], best[head], mean[head], layer[head])]
        scores: Floats = np.concatenate(parts) @ w.out + structure[-kinds:]
        return scores

    def probabilities(self, seen: Features) -> Floats:
        """Of KINDS, adding up to 1."""
        scores = self.scores(seen) / self.temperature
        scores -= scores.max()
        np.exp(scores, out=scores)
        scores /= scores.sum()
        return scores

    def lighten(self) -> None:
        """Keep only what answers are made of, in half the memory: it can no longer be saved or trained."""
        nothing = np.empty((0, 0), np.float32)
        self.weights = replace(self.weights, projection=nothing, pairs=nothing, own=nothing, places=nothing, structure=nothing)
        self.table.forget()
        self._words, self._pairs = self._words.astype(np.float16), self._pairs.astype(np.float16)

    def save(self, path: Path) -> None:
        """One file; what words and pairs add is kept in int8, and only where it is anything. The words are kept in their own file."""
        w = self.weights
        note = {"format": FORMAT, "heads": w.heads, "temperature": self.temperature, "kinds": KINDS, **self.notes}
        arrays: dict[str, Any] = {"note": np.frombuffer(json.dumps(note).encode(), np.uint8)}
        for name in Weights.__dataclass_fields__:
            value = getattr(w, name)
            if name in SPARSE:
                rows = np.flatnonzero(np.abs(value).max(1) > 0)
                scale = np.maximum(np.abs(value[rows]).max(1), 1e-8) / 127.0
                arrays[f"{name}_rows"], arrays[f"{name}_scale"] = rows.astype(np.uint32), scale.astype(np.float16)
                arrays[name] = np.round(value[rows] / scale[:, None]).astype(np.int8)
                arrays[f"{name}_count"] = np.array(len(value))
            elif name != "heads":
                arrays[name] = value.astype(np.float16)
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path = SHIPPED_MODEL, words: Path = SHIPPED_WORDS, table: Table | None = None) -> Model:
        """As `save` wrote it. ModelError says what is wrong with a file."""
        try:
            with np.load(path) as file:
                note = json.loads(file["note"].tobytes())
                if note.pop("format") != FORMAT or tuple(note.pop("kinds")) != KINDS:
                    raise ModelError(f"{path} is a model of another version")
                arrays = {}
                for name in Weights.__dataclass_fields__:
                    if name in SPARSE:
                        value = np.zeros((int(file[f"{name}_count"]), file[name].shape[1]), np.float32)
                        value[file[f"{name}_rows"]] = file[name] * file[f"{name}_scale"].astype(np.float32)[:, None]
                        arrays[name] = value
                    elif name != "heads":
                        arrays[name] = file[name].astype(np.float32)
        except ModelError:
            raise
        except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
            raise ModelError(f"{path} is not a model: {error}") from None
        table = table or Table.load(words)
        weights = Weights(heads=int(note.pop("heads")), **arrays)
        if len(weights.pairs) != BIGRAMS + 1 or len(weights.own) != len(table.list):
            raise ModelError(f"{path} is a model of another version")
        return cls(weights, table, float(note.pop("temperature")), note)
