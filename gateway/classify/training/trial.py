"""Trains and judges: each family by a model that never saw it, each set of rows by a model of the others, then the one that is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.classify.features import Features, features
from gateway.classify.model import KINDS, Floats, Model
from gateway.classify.training.fit import answers, fit
from gateway.classify.training.judge import Figures, best_temperature, figures, folds, judged, mix_of, shares_of
from gateway.classify.training.net import Recipe
from gateway.classify.training.rivals import rule_scores, tfidf_scores
from gateway.classify.training.rows import Labelled
from gateway.classify.verdict import Judge
from gateway.classify.words import Table
from gateway.config.catalog import Catalog
from gateway.config.settings import Costs

Progress = Callable[[str, int, int], None]  # what, how many of it are done, of how many

BY_FAMILY = "held out by family"


@dataclass(slots=True)
class Trial:
    """What to train on and how. `composed` rows are learnt from and never judged."""

    rows: list[Labelled]
    composed: list[Labelled]
    table: Table
    catalog: Catalog
    costs: Costs
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)  # of sets, 1 each when left out
    rivals: bool = True
    progress: Progress = lambda what, done, of: None
    _seen: dict[int, Features] = field(default_factory=dict)

    def seen(self, rows: Sequence[Labelled]) -> list[Features]:
        """Their features, computed once."""
        for row in rows:
            if id(row) not in self._seen:
                self._seen[id(row)] = features(row.body, self.table.words)
        return [self._seen[id(row)] for row in rows]

    def share(self, source: str) -> float:
        """How much a set counts."""
        return self.shares.get(source, 1.0)

    def model(self, rows: Sequence[Labelled], what: str) -> Model:
        """Fitted to these rows and the composed ones."""
        every = [*rows, *self.composed]
        done = 0

        def epoch() -> None:
            nonlocal done
            done += 1
            self.progress(what, done, self.recipe.epochs)

        kinds = [row.kind for row in every]
        weights = fit(self.seen(every), kinds, shares_of(every, self.share), self.table, self.recipe, self.seed, epoch)
        return Model(weights, self.table.words)

    def judged_apart(self, parts: Sequence[tuple[str, NDArray[np.bool_]]]) -> dict[str, Floats]:
        """Scores by each contender, every part judged by what was trained on the rest. Parts are (name, which rows) and cover all rows
        that are looked at; rows of no part keep zeros."""
        scores = {name: np.zeros((len(self.rows), len(KINDS)), np.float32) for name in ("rules", "TF-IDF", "learned")}
        if self.rivals:
            scores["rules"] = rule_scores(self.rows)
        else:
            del scores["rules"], scores["TF-IDF"]
        for name, part in parts:
            train = [row for row, held in zip(self.rows, part, strict=True) if not held]
            held = [row for row, is_held in zip(self.rows, part, strict=True) if is_held]
            model = self.model(train, name)
            scores["learned"][part] = answers(model, self.seen(held))
            if self.rivals:
                every = [*train, *self.composed]
                shares = shares_of(every, self.share)
                scores["TF-IDF"][part] = tfidf_scores(every, self.seen(every), shares, held, self.seen(held))
        return scores

    def report(self, fold_count: int, across: bool) -> tuple[dict[str, Any], float]:
        """Every figure, as JSON, and the temperature that makes the learned classifier's probabilities honest. By family first; then,
        when asked, each set by a model of all other sets."""
        judge = Judge(self.catalog, self.costs, "chatbot")
        kinds = np.array([row.kind for row in self.rows])
        shares = shares_of(self.rows, self.share)
        told: dict[str, Any] = {}
        fold_of = folds(self.rows, fold_count)
        scores = self.judged_apart([(f"fold {index + 1}", fold_of == index) for index in range(fold_count)])
        temperature = {name: best_temperature(score, kinds, shares) for name, score in scores.items()}
        temperature["rules"] = 1.0
        sets = sorted({row.source for row in self.rows})
        told[BY_FAMILY] = self._figures(scores, temperature, judge, np.ones(len(self.rows), bool))
        for name in sets:
            told[f"{BY_FAMILY}, {name}"] = self._figures(scores, temperature, judge, np.array([row.source == name for row in self.rows]))
        if across and len(sets) > 1:
            parts = [(f"without {name}", np.array([row.source == name for row in self.rows])) for name in sets]
            scores = self.judged_apart(parts)
            for name, part in zip(sets, (part for _, part in parts), strict=True):
                told[f"trained on the others, {name}"] = self._figures(scores, temperature, judge, part)
        return told, temperature["learned"]

    def _figures(
        self, scores: Mapping[str, Floats], temperature: Mapping[str, float], judge: Judge, part: NDArray[np.bool_]
    ) -> dict[str, Any]:
        rows = [row for row, inside in zip(self.rows, part, strict=True) if inside]
        found: dict[str, Figures] = {}
        for name, score in scores.items():
            found[name] = figures(judged(rows, score[part], temperature[name], judge), self.catalog, self.costs)
        return {name: figure.told() for name, figure in found.items()}

    def final(self, temperature: float) -> Model:
        """Fitted to everything."""
        model = self.model(self.rows, "all rows")
        every = [*self.rows, *self.composed]
        model.temperature = temperature
        model.notes = {"mix": mix_of(every, shares_of(every, self.share)), "rows": len(self.rows), "composed": len(self.composed)}
        return model
