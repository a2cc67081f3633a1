"""Fits a model to labelled requests. Deterministic: the same rows, recipe and seed give the same weights on the same machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, cos, pi

import numpy as np

from gateway.classify.features import Features
from gateway.classify.model import KINDS, Floats, Model, Weights
from gateway.classify.training.net import Net, Recipe, Seen, batch_of
from gateway.classify.words import Table

# However few rows there are, an epoch has this many steps.
LEAST_STEPS = 16

Progress = Callable[[], None]


def fit(
    rows: Sequence[Features],
    kinds: Sequence[int],
    shares: Floats,
    table: Table,
    recipe: Recipe,
    seed: int = 0,
    progress: Progress = lambda: None,
) -> Weights:
    """`kinds` are indices of KINDS, `shares` how often each row is drawn, relative to the others. `progress` is called once an epoch."""
    counts = table.weights.astype(np.float32)
    vectors = table.dense() * counts[:, None]
    seen = [Seen.of(row, vectors, counts) for row in rows]
    structure = np.stack([row.structure for row in seen])
    chances = shares / shares.sum()
    wanted = np.full((len(rows), len(KINDS)), recipe.doubt / len(KINDS), np.float32)
    wanted[np.arange(len(rows)), kinds] += 1.0 - recipe.doubt
    batch = min(recipe.batch, max(len(rows) // LEAST_STEPS, 8))
    chance = np.random.default_rng(seed)
    net = Net(counts, vectors.shape[1], structure, recipe, chance)
    steps, step = recipe.epochs * ceil(len(rows) / batch), 0
    for _ in range(recipe.epochs):
        drawn = chance.choice(len(rows), len(rows), p=chances)
        for begin in range(0, len(rows), batch):
            chosen = drawn[begin : begin + batch]
            rate = recipe.rate * 0.5 * (1 + cos(pi * step / steps))
            net.learn(batch_of([seen[i] for i in chosen], chance, recipe), wanted[chosen], rate)
            step += 1
        progress()
    return net.weights(vectors)


def answers(model: Model, rows: Sequence[Features]) -> Floats:
    """Scores of each row (rows x kinds), before the temperature."""
    return np.stack([model.scores(row) for row in rows])
