"""Fits and judges the head of the second opinion (classify/second.py), by what learns the look's heads: training/net.py, with sentences'
vectors for words' and without structure. Needs the `embeddings` extra. Deterministic, as fit.py is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, cos, pi

import numpy as np
from numpy.typing import NDArray

from gateway.classify.features import Features
from gateway.classify.model import KINDS, Floats
from gateway.classify.second import VECTOR, Encode, Head, Sentences, directions, encoder, sentences
from gateway.classify.text import glance
from gateway.classify.training.judge import best_temperature, shares_of
from gateway.classify.training.net import Net, Seen, batch_of, softmax, together
from gateway.classify.training.rows import Labelled
from gateway.classify.training.trial import Trial

AT_ONCE = 256  # sentences that the model reads at once
FITTED = "second opinion"
BOTH = "both"

Progress = Callable[[int, int], None]  # how many are done, of how many


@dataclass(slots=True)
class Read:
    """Rows as the sentence model reads them: each sentence once, however often it is there."""

    centre: Floats
    vectors: Floats
    rows: list[tuple[NDArray[np.int64], Sentences]]  # of each, which vectors it has

    def of(self, row: int) -> Floats:
        """A row's directions."""
        return self.vectors[self.rows[row][0]]


@dataclass(slots=True)
class SecondTrial(Trial):
    """As Trial, with the second opinion and what both say together as contenders; `head` is what is kept."""

    _read: Read | None = None
    _at: dict[int, int] = field(default_factory=dict)  # of each labelled row, by id, its place in `_read`
    second_temperature: float = 1.0

    def read(self) -> Read:
        """All rows, read once."""
        if self._read is None:
            every = [*self.rows, *self.composed]
            self._at = {id(row): at for at, row in enumerate(every)}
            self._read = read(every, encoder(), lambda done, of: self.progress("reading", done, of))
        return self._read

    def judged_apart(self, parts: Sequence[tuple[str, NDArray[np.bool_]]]) -> dict[str, Floats]:
        scores = super(SecondTrial, self).judged_apart(parts)
        second = scores[FITTED] = np.zeros_like(scores["learned"])
        for name, part in parts:
            head = self.fitted([row for row, held in zip(self.rows, part, strict=True) if not held], name)
            for at in np.flatnonzero(part):
                second[at] = head.scores(self.read().of(int(at)), self.read().rows[int(at)][1].places)
        kinds, shares = np.array([row.kind for row in self.rows]), shares_of(self.rows, self.share)
        self.second_temperature = best_temperature(second, kinds, shares)
        temperatures = ((scores["learned"], best_temperature(scores["learned"], kinds, shares)), (second, self.second_temperature))
        scores[BOTH] = sum((np.log(softmax(one / t) + 1e-6) for one, t in temperatures), np.zeros_like(second))
        return scores

    def fitted(self, rows: Sequence[Labelled], what: str) -> Head:
        """To these rows and the composed ones."""
        known = self.read()
        every = [*rows, *self.composed]
        recipe = replace(self.recipe, lost_pairs=1.0, own_pace=0.0, lost_structure=1.0)  # neither words nor structure
        seen = [_seen(known, self._at[id(row)]) for row in every]
        shares = shares_of(every, self.share)
        wanted = np.full((len(every), len(KINDS)), recipe.doubt / len(KINDS), np.float32)
        wanted[np.arange(len(every)), [row.kind for row in every]] += 1.0 - recipe.doubt
        nets = []
        for head in range(self.heads):
            chance = np.random.default_rng([self.seed, head])
            net = Net(np.ones(1, np.float32), VECTOR, np.zeros((len(every), 1), np.float32), recipe, chance)
            steps, step = recipe.epochs * ceil(len(every) / recipe.batch), 0
            for epoch in range(recipe.epochs):
                drawn = chance.choice(len(every), len(every), p=shares / shares.sum())
                for begin in range(0, len(every), recipe.batch):
                    chosen = drawn[begin : begin + recipe.batch]
                    rate = recipe.rate * 0.5 * (1 + cos(pi * step / steps))
                    net.learn(batch_of([seen[i] for i in chosen], chance, recipe), wanted[chosen], rate)
                    step += 1
                self.progress(f"second opinion, {what}", head * recipe.epochs + epoch + 1, self.heads * recipe.epochs)
            nets.append(net)
        return _head(nets, known.centre)

    def head(self) -> Head:
        """Fitted to everything."""
        head = self.fitted(self.rows, "all rows")
        head.temperature = self.second_temperature
        return head


def read(rows: Sequence[Labelled], encode: Encode, progress: Progress = lambda done, of: None) -> Read:
    """Every sentence of these rows."""
    cut = [sentences(glance(row.body).pieces) for row in rows]
    at = {text: index for index, text in enumerate(dict.fromkeys(text for one in cut for text in one.texts))}
    texts = list(at)
    vectors = np.empty((len(texts), VECTOR), np.float32)
    for begin in range(0, len(texts), AT_ONCE):
        vectors[begin : begin + AT_ONCE] = encode(texts[begin : begin + AT_ONCE])
        progress(min(begin + AT_ONCE, len(texts)), len(texts))
    centre = vectors.mean(0)
    return Read(centre, directions(vectors, centre), [(np.array([at[text] for text in one.texts]), one) for one in cut])


def _seen(known: Read, at: int) -> Seen:
    """As net.py learns it: every sentence is one word, of which only the vector and the place are looked at."""
    count = len(known.rows[at][0])
    row = Features(np.zeros(count, np.int64), np.arange(count), known.rows[at][1].places, np.zeros(1, np.float32))
    return Seen(row, known.of(at), np.ones(count, np.float32))


def _head(nets: Sequence[Net], centre: Floats) -> Head:
    """Without what is the same for every request: the structure's layer, of no structure."""
    w = together(nets)
    width = len(w.attention) // w.heads
    blocks = w.out.reshape(w.heads, -1, len(KINDS))
    constant = np.maximum(w.structure_bias, 0.0).reshape(w.heads, -1)
    return Head(
        centre=centre,
        projection=w.projection,
        places=w.places,
        attention=w.attention,
        attention_places=w.attention_places,
        out=blocks[:, : 3 * width].reshape(-1, len(KINDS)),
        bias=w.bias + np.einsum("hl,hlk->k", constant, blocks[:, 3 * width :]),
    )
