"""The classifier while it learns: forwards and backwards in numpy, Adam, and noise against learning by heart.

What is learnt here is what model.py computes with; the words' vectors stay as they are, so that words never trained on keep their place
among those that were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gateway.classify.features import OPENINGS, PLACES, Features
from gateway.classify.model import KINDS, SMOOTHING, Floats, Weights, in_steps
from gateway.classify.training.adam import Adam

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to learn. Shares are 0..1."""

    width: int = 63  # with its weight a word is 64 bytes, as much as is read at once
    structure_width: int = 32
    epochs: int = 16
    batch: int = 128
    rate: float = 3e-3
    decay: float = 1e-2
    opening_decay: float = 0.1
    own_decay: float = 0.01
    own_pace: float = 3.0  # of the words' own part, against the rest
    lost_words: float = 0.15  # words left out of a request, each time it is seen
    lost_sentences: float = 0.15
    lost_system: float = 0.25  # requests whose system text is left out
    lost_openings: float = 0.3
    lost_structure: float = 0.15
    lost_hidden: float = 0.3
    doubt: float = 0.02  # of the label


@dataclass(slots=True)
class Batch:
    """Requests laid end to end. `sentence` of each word, `request` of each sentence."""

    ids: Ints
    openings: Ints  # of each sentence
    starts: Ints
    sentence: Ints
    means: Floats  # of the words' vectors, for each sentence
    weight: Floats
    places: Ints
    first: Ints  # first sentence of each request
    request: Ints
    structure: Floats


@dataclass(slots=True)
class Seen:
    """A row with what does not change while training: each sentence's mean vector and the weight of its words."""

    words: Ints
    starts: Ints
    openings: Ints
    places: Ints
    structure: Floats
    means: Floats
    weight: Floats

    @classmethod
    def of(cls, row: Features, vectors: Floats, counts: Floats) -> Seen:
        """`vectors` have their weights, `counts`, multiplied in."""
        lengths = np.array(row.lengths, np.int64)
        starts = np.cumsum(lengths) - lengths
        last = np.cumsum(lengths + 1) - 1  # the opening of each sentence
        words = np.delete(row.rows, last)
        weight = np.add.reduceat(counts[words], starts) + np.float32(SMOOTHING)
        means = np.add.reduceat(vectors[words], starts, axis=0) / weight[:, None]
        return cls(words, starts, row.rows[last] - len(counts), np.array(row.places), row.structure[:-1], means, weight)


def batch_of(rows: Sequence[Seen], chance: Generator, recipe: Recipe) -> Batch:
    """Lay requests end to end; some of their sentences are lost."""
    picked = [_with_losses(seen, chance, recipe) for seen in rows]
    counts = [len(seen.starts) for seen in picked]
    lengths = np.array([len(seen.words) for seen in picked])
    ends = np.cumsum(lengths)
    starts = np.concatenate([seen.starts + at for seen, at in zip(picked, ends - lengths, strict=True)])
    ids = np.concatenate([seen.words for seen in picked])
    return Batch(
        ids=ids,
        openings=np.concatenate([seen.openings for seen in picked]),
        starts=starts,
        sentence=np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(ids)))),
        means=np.concatenate([seen.means for seen in picked]),
        weight=np.concatenate([seen.weight for seen in picked]),
        places=np.concatenate([seen.places for seen in picked]),
        first=np.concatenate(([0], np.cumsum(counts)[:-1])),
        request=np.repeat(np.arange(len(rows)), counts),
        structure=np.stack([seen.structure for seen in rows]),
    )


def _with_losses(seen: Seen, chance: Generator, recipe: Recipe) -> Seen:
    count = len(seen.starts)
    kept = np.ones(count, bool)
    if chance.random() < recipe.lost_system:
        kept &= seen.places >= 160  # the two zones of the system text are the first
    if chance.random() < 0.5:
        kept &= chance.random(count) >= recipe.lost_sentences
    if kept.all() or not kept.any():
        return seen
    lengths = np.diff(np.append(seen.starts, len(seen.words)))
    words = seen.words[np.repeat(kept, lengths)]
    starts = np.concatenate(([0], np.cumsum(lengths[kept])[:-1]))
    return Seen(words, starts, seen.openings[kept], seen.places[kept], seen.structure, seen.means[kept], seen.weight[kept])


def place_parts(places: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """What a place is made of: zone and end of the part, from the start, from the end, length."""
    return places // 80, places // 20 % 4, places // 5 % 4, places % 5


PART_SIZES = (10, 4, 4, 5)
PART_OFFSETS = (0, 10, 14, 18)


class Rows:
    """A table of which a step touches few rows: Adam for those alone. The last row is nothing and stays so."""

    def __init__(self, rows: int, width: int) -> None:
        self.value = np.zeros((rows + 1, width), np.float32)
        self._m = np.zeros_like(self.value)
        self._v = np.zeros_like(self.value)

    def step(self, which: Ints, gradient: Floats, rate: float, decay: float, steps: int) -> None:
        """`gradient` of each use of a row in `which`."""
        order = np.argsort(which, kind="stable")
        ordered = which[order]
        begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        rows = ordered[begins]
        summed = np.add.reduceat(gradient[order], begins, axis=0)
        if rows[-1] == len(self.value) - 1:
            rows, summed = rows[:-1], summed[:-1]
        m = self._m[rows] = 0.9 * self._m[rows] + 0.1 * summed
        v = self._v[rows] = 0.999 * self._v[rows] + 0.001 * summed * summed
        change = (m / (1 - 0.9**steps)) / (np.sqrt(v / (1 - 0.999**steps)) + 1e-8)
        self.value[rows] -= rate * (change + decay * self.value[rows])


class Net:
    """What learns. `counts` are the words' weights, `vector` the size of their vectors."""

    def __init__(self, counts: Floats, vector: int, structure: Floats, recipe: Recipe, chance: Generator) -> None:
        self.counts, self.recipe, self.chance = counts, recipe, chance
        d, h, s, kinds = recipe.width, recipe.structure_width, structure.shape[1], len(KINDS)
        self.mean, self.spread = structure.mean(0), structure.std(0) + 0.1

        def start(rows: int, columns: int, size: float) -> Floats:
            return (chance.standard_normal((rows, columns)) * size).astype(np.float32)

        self.p: dict[str, Floats] = {
            "projection": start(vector, d, 0.25),
            "place": start(23, d, 0.1),
            "attention": start(d, 1, 0.1),
            "attention_place": np.zeros((23, 1), np.float32),
            "structure": start(s, h, s**-0.5),
            "structure_bias": np.zeros(h, np.float32),
            "out": start(3 * d + h, kinds, (3 * d + h) ** -0.5),
            "direct": np.zeros((s, kinds), np.float32),
            "bias": np.zeros(kinds, np.float32),
        }
        self.openings = Rows(OPENINGS, d)
        self.own = Rows(len(counts), d)
        self._adam = Adam(self.p)

    def learn(self, batch: Batch, wanted: Floats, rate: float) -> float:
        """One step towards `wanted` (requests x kinds, each adding up to 1). The loss before it."""
        p, r, chance = self.p, self.recipe, self.chance
        counts = self.counts[batch.ids] * (chance.random(len(batch.ids), np.float32) >= r.lost_words)
        opened = np.where(chance.random(len(batch.openings), np.float32) < r.lost_openings, OPENINGS, batch.openings)
        x = (batch.structure - self.mean) / self.spread
        x = x * (chance.random(x.shape) >= r.lost_structure)
        x = x.astype(np.float32)
        means, weight = batch.means, batch.weight
        parts = place_parts(batch.places)
        added = np.add.reduceat(self.own.value[batch.ids] * counts[:, None], batch.starts, axis=0) + self.openings.value[opened]
        pre = means @ p["projection"] + added / weight[:, None]
        scores = 1.0 - SMOOTHING / weight[:, None]  # the more a sentence says, the likelier it is what matters
        for part, offset in zip(parts, PART_OFFSETS, strict=True):
            pre += p["place"][offset + part]
            scores += p["attention_place"][offset + part]
        hidden = np.maximum(pre, 0.0)
        scores += hidden @ p["attention"]
        first, request = batch.first, batch.request
        weights = np.exp(scores - np.maximum.reduceat(scores, first, axis=0)[request])
        weights /= np.add.reduceat(weights, first, axis=0)[request]
        attended = np.add.reduceat(hidden * weights, first, axis=0)
        best = np.maximum.reduceat(hidden, first, axis=0)
        sizes = np.diff(np.append(first, len(hidden)))[:, None].astype(np.float32)
        mean = np.add.reduceat(hidden, first, axis=0) / sizes
        layer = np.maximum(x @ p["structure"] + p["structure_bias"], 0.0)
        together = np.concatenate((attended, mean, best, layer), axis=1)
        kept = (chance.random(together.shape) >= r.lost_hidden).astype(np.float32) / (1.0 - r.lost_hidden)
        dropped = together * kept
        answer = softmax(dropped @ p["out"] + x @ p["direct"] + p["bias"])
        loss = float(-(wanted * np.log(answer + 1e-9)).sum(1).mean())

        d = r.width
        g_answer = (answer - wanted) / len(wanted)
        g_together = (g_answer @ p["out"].T) * kept
        g_attended, g_mean, g_best, g_layer = np.split(g_together, (d, 2 * d, 3 * d), axis=1)
        g_layer = g_layer * (layer > 0)
        g_hidden = g_attended[request] * weights + (g_mean / sizes)[request]
        at_best = hidden == best[request]
        g_hidden += np.where(at_best, g_best[request], 0.0) / np.maximum(np.add.reduceat(at_best, first, axis=0), 1)[request]
        g_weights = (hidden * g_attended[request]).sum(1, keepdims=True)
        g_scores = weights * (g_weights - np.add.reduceat(weights * g_weights, first, axis=0)[request])
        g_hidden += g_scores @ p["attention"].T
        g_pre = g_hidden * (pre > 0)
        g_place, g_attention_place = np.zeros_like(p["place"]), np.zeros_like(p["attention_place"])
        for part, offset, size in zip(parts, PART_OFFSETS, PART_SIZES, strict=True):
            one_hot = (part[None, :] == np.arange(size)[:, None]).astype(np.float32)
            g_place[offset : offset + size] = one_hot @ g_pre
            g_attention_place[offset : offset + size] = one_hot @ g_scores
        gradients = {
            "projection": means.T @ g_pre,
            "place": g_place,
            "attention": hidden.T @ g_scores,
            "attention_place": g_attention_place,
            "structure": x.T @ g_layer,
            "structure_bias": g_layer.sum(0),
            "out": dropped.T @ g_answer,
            "direct": x.T @ g_answer,
            "bias": g_answer.sum(0),
        }
        g_added = g_pre / weight[:, None]
        self._step(gradients, opened, g_added, batch.ids, g_added[batch.sentence] * counts[:, None], rate)
        return loss

    def _step(self, gradients: dict[str, Floats], openings: Ints, g_openings: Floats, words: Ints, g_words: Floats, rate: float) -> None:
        """Adam with decoupled decay."""
        self._adam.step(gradients, rate, self.recipe.decay)
        self.openings.step(openings, g_openings, rate, self.recipe.opening_decay, self._adam.steps)
        self.own.step(words, g_words, rate * self.recipe.own_pace, self.recipe.own_decay, self._adam.steps)

    def places(self) -> tuple[Floats, Floats]:
        """What each place adds to a sentence (PLACES x width), and to the attention to it (PLACES x 1)."""
        parts = place_parts(np.arange(PLACES))
        places = sum(self.p["place"][offset + part] for part, offset in zip(parts, PART_OFFSETS, strict=True))
        attention = sum(self.p["attention_place"][offset + part] for part, offset in zip(parts, PART_OFFSETS, strict=True))
        return np.asarray(places), np.asarray(attention)

    def weights(self, vectors: Floats) -> Weights:
        """As model.py computes with them. `vectors` have their weights multiplied in."""
        p = self.p
        words = vectors @ p["projection"] + self.own.value[:-1] * self.counts[:, None]
        weight = np.append(self.counts, np.zeros(OPENINGS, np.float32))
        sums, step = in_steps(np.column_stack((np.concatenate((words, self.openings.value[:-1])), weight)))
        places, attention_places = self.places()
        return Weights(
            sums=sums, step=step, places=places, attention=p["attention"][:, 0], attention_places=attention_places, mean=self.mean,
            spread=self.spread, structure=p["structure"], structure_bias=p["structure_bias"], out=p["out"], direct=p["direct"],
            bias=p["bias"],
        )  # fmt: skip


def softmax(scores: Floats) -> Floats:
    """Along the last axis."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))
