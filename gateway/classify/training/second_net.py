"""The head of the second opinion while it learns: forwards and backwards in numpy, Adam, and noise against learning by heart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gateway.classify.model import KINDS, Floats
from gateway.classify.second import PLACES, VECTOR, Head
from gateway.classify.text import SYSTEM
from gateway.classify.training.adam import Adam

Ints = NDArray[np.int64]

# What is left out each time a row is seen, as shares: single sentences in half of the rows, all of the system text, and what the answer is
# made of. `DOUBT` is of the label.
LOST_SENTENCES, LOST_SYSTEM, LOST_HIDDEN, DOUBT = 0.15, 0.25, 0.3, 0.02
RATE, DECAY = 3e-3, 1e-2
WIDTH, BATCH = 64, 128
SYSTEM_PARTS = (SYSTEM * 2, SYSTEM * 2 + 1)


@dataclass(slots=True)
class Seen:
    """A row: directions of its sentences (second.directions), and their places."""

    vectors: Floats
    places: Ints

    def with_losses(self, chance: Generator) -> Seen:
        """As much of it as is learnt from this time."""
        kept = np.ones(len(self.places), bool)
        if chance.random() < LOST_SYSTEM:
            kept &= ~np.isin(self.places[:, 0], SYSTEM_PARTS)
        if chance.random() < 0.5:
            kept &= chance.random(len(kept)) >= LOST_SENTENCES
        return Seen(self.vectors[kept], self.places[kept]) if kept.any() else self


class SecondNet:
    """One head; the same rows and chance give the same."""

    def __init__(self, chance: Generator) -> None:
        def start(rows: int, columns: int, size: float) -> Floats:
            return (chance.standard_normal((rows, columns)) * size).astype(np.float32)

        self.chance = chance
        self.p: dict[str, Floats] = {
            "projection": start(VECTOR, WIDTH, 0.25),
            "places": start(sum(PLACES), WIDTH, 0.1),
            "attention": start(WIDTH, 1, 0.1),
            "attention_places": np.zeros((sum(PLACES), 1), np.float32),
            "out": start(3 * WIDTH, len(KINDS), (3 * WIDTH) ** -0.5),
            "bias": np.zeros(len(KINDS), np.float32),
        }
        self._adam = Adam(self.p)

    def learn(self, rows: Sequence[Seen], kinds: Ints, rate: float) -> None:
        """One step."""
        p, d = self.p, WIDTH
        seen = [row.with_losses(self.chance) for row in rows]
        sizes = np.array([len(row.places) for row in seen])
        first = np.cumsum(sizes) - sizes
        request = np.repeat(np.arange(len(seen)), sizes)
        vectors, places = np.concatenate([row.vectors for row in seen]), np.concatenate([row.places for row in seen])
        stands = np.zeros((len(places), sum(PLACES)), np.float32)
        np.put_along_axis(stands, places, 1.0, axis=1)
        hidden = np.maximum(vectors @ p["projection"] + stands @ p["places"], 0.0)
        weights = hidden @ p["attention"] + stands @ p["attention_places"]
        weights = np.exp(weights - np.maximum.reduceat(weights, first, axis=0)[request])
        weights /= np.add.reduceat(weights, first, axis=0)[request]
        best = np.maximum.reduceat(hidden, first, axis=0)
        counts = sizes[:, None].astype(np.float32)
        together = np.concatenate(
            (np.add.reduceat(hidden * weights, first, axis=0), best, np.add.reduceat(hidden, first, axis=0) / counts), axis=1
        )
        kept = (self.chance.random(together.shape, np.float32) >= LOST_HIDDEN).astype(np.float32) / np.float32(1.0 - LOST_HIDDEN)
        dropped = together * kept
        answer = dropped @ p["out"] + p["bias"]
        answer = np.exp(answer - answer.max(1, keepdims=True))
        answer /= answer.sum(1, keepdims=True)
        wanted = np.full(answer.shape, DOUBT / len(KINDS), np.float32)
        wanted[np.arange(len(kinds)), kinds] += 1.0 - DOUBT

        g_answer = (answer - wanted) / len(wanted)
        g_attended, g_best, g_mean = np.split((g_answer @ p["out"].T) * kept, (d, 2 * d), axis=1)
        at_best = hidden == best[request]
        g_hidden = g_attended[request] * weights + (g_mean / counts)[request]
        g_hidden += np.where(at_best, g_best[request], 0.0) / np.maximum(np.add.reduceat(at_best, first, axis=0), 1)[request]
        g_weights = (hidden * g_attended[request]).sum(1, keepdims=True)
        g_scores = weights * (g_weights - np.add.reduceat(weights * g_weights, first, axis=0)[request])
        g_hidden += g_scores @ p["attention"].T
        g_pre = g_hidden * (hidden > 0)
        self._adam.step(
            {
                "projection": vectors.T @ g_pre,
                "places": stands.T @ g_pre,
                "attention": hidden.T @ g_scores,
                "attention_places": stands.T @ g_scores,
                "out": dropped.T @ g_answer,
                "bias": g_answer.sum(0),
            },
            rate,
            DECAY,
        )

    def head(self, centre: Floats) -> Head:
        """As it answers."""
        p = self.p
        return Head(centre, p["projection"], p["places"], p["attention"][:, 0], p["attention_places"][:, 0], p["out"], p["bias"])
