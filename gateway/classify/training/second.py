"""Fits the head of the second opinion (classify/second.py) and judges it beside the look, alone and with it. Needs the `embeddings` extra.
Deterministic, as fit.py is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, cos, pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.classify.model import Floats
from gateway.classify.second import VECTOR, Encode, Head, directions, encoder, sentences
from gateway.classify.text import OPINION, glance
from gateway.classify.training.fit import LEAST_STEPS
from gateway.classify.training.judge import best_temperature, figures, judged, shares_of
from gateway.classify.training.net import softmax
from gateway.classify.training.next_requests import believed, made_of_families, of_one_text
from gateway.classify.training.rows import Labelled
from gateway.classify.training.second_net import BATCH, RATE, SecondNet, Seen
from gateway.classify.training.trial import Trial
from gateway.classify.verdict import Judge

AT_ONCE = 256  # sentences that the model reads at once
FITTED = "second opinion"
BOTH = "both"

Progress = Callable[[int, int], None]  # how many are done, of how many


@dataclass(slots=True)
class Read:
    """Rows as the sentence model reads them."""

    centre: Floats
    seen: list[Seen]


@dataclass(slots=True)
class SecondTrial(Trial):
    """As Trial, with the second opinion and what both say together as contenders; `head` is what is kept."""

    _read: Read | None = None
    _at: dict[int, int] = field(default_factory=dict)  # of each labelled row, by id, its place in `_read`
    _probabilities: tuple[Floats, Floats] | None = None  # the look's and the second opinion's, as judged last
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
                row = self.read().seen[int(at)]
                second[at] = head.scores(row.vectors, row.places)
        kinds, shares = np.array([row.kind for row in self.rows]), shares_of(self.rows, self.share)
        self.second_temperature = best_temperature(second, kinds, shares)
        look = softmax(scores["learned"] / best_temperature(scores["learned"], kinds, shares))
        opinion = softmax(second / self.second_temperature)
        scores[BOTH] = np.log(look + 1e-6) + np.log(opinion + 1e-6)
        self._probabilities = look, opinion
        return scores

    def report(self, fold_count: int, across: bool) -> tuple[dict[str, Any], float]:
        told, temperature = super(SecondTrial, self).report(fold_count, across)
        assert self._probabilities is not None
        look, opinion = self._probabilities
        judge = Judge(self.catalog, self.costs, "chatbot")
        for title, applications in (
            ("of one family and kind", made_of_families(self.rows)),
            ("of one system text", of_one_text(self.rows)),
        ):
            if not applications:
                continue
            contenders = {}
            for name, second in (("learned", None), (BOTH, opinion)):
                asked, answers = believed(applications, look, second)
                rows = [self.rows[index] for index in asked]
                contenders[name] = figures(judged(rows, np.log(answers + 1e-9), 1.0, judge), self.catalog, self.costs).told()
            told[f"next requests of {len(applications)} applications {title}"] = contenders
        return told, temperature

    def fitted(self, rows: Sequence[Labelled], what: str) -> Head:
        """To these rows and the composed ones."""
        known = self.read()
        every = [*rows, *self.composed]
        seen = [known.seen[self._at[id(row)]] for row in every]
        kinds = np.array([row.kind for row in every])
        shares = shares_of(every, self.share)
        chance = np.random.default_rng(self.seed)
        net = SecondNet(chance)
        epochs = self.recipe.epochs
        batch = min(BATCH, max(len(every) // LEAST_STEPS, 8))
        steps, step = epochs * ceil(len(every) / batch), 0
        for epoch in range(epochs):
            drawn = chance.choice(len(every), len(every), p=shares / shares.sum())
            for begin in range(0, len(every), batch):
                chosen = drawn[begin : begin + batch]
                net.learn([seen[i] for i in chosen], kinds[chosen], RATE * 0.5 * (1 + cos(pi * step / steps)))
                step += 1
            self.progress(f"second opinion, {what}", epoch + 1, epochs)
        return net.head(known.centre)

    def head(self) -> Head:
        """Fitted to everything."""
        head = self.fitted(self.rows, "all rows")
        head.temperature = self.second_temperature
        return head


def read(rows: Sequence[Labelled], encode: Encode, progress: Progress = lambda done, of: None) -> Read:
    """Every sentence of these rows, each once, however often it is there."""
    cut = [sentences(glance(row.body, OPINION).pieces) for row in rows]
    at = {text: index for index, text in enumerate(dict.fromkeys(text for one in cut for text in one.texts))}
    texts = list(at)
    vectors = np.empty((len(texts), VECTOR), np.float32)
    for begin in range(0, len(texts), AT_ONCE):
        vectors[begin : begin + AT_ONCE] = encode(texts[begin : begin + AT_ONCE])
        progress(min(begin + AT_ONCE, len(texts)), len(texts))
    centre = vectors.mean(0)
    vectors = directions(vectors, centre)
    return Read(centre, [Seen(vectors[[at[text] for text in one.texts]], one.places) for one in cut])
