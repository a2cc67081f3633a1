"""From probabilities to a verdict: long or short by the prompt's size, then the use case that is cheapest to be wrong with.

To treat a code completion as batch ruins it, the reverse only costs money: what a mistake costs depends on which way it goes. The costs
come from the configuration (`classify.costs`) and the classes' ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Final, NamedTuple

import numpy as np

from gateway.classify.explicit import Verdict
from gateway.classify.model import KINDS, Floats
from gateway.config.catalog import Catalog
from gateway.config.settings import Costs

# The kinds about a given text: (short, long) use case.
BY_LENGTH: Final = {"summary": ("summarization_short", "summarization_long"), "document": ("document_rag", "research_legal")}


class Judged(NamedTuple):
    """Which use case, and how likely it is."""

    use_case: str
    probability: float


class Judge:
    """For one catalogue. Kinds whose use case the catalogue does not have count for the fallback."""

    def __init__(self, catalog: Catalog, costs: Costs, fallback: str) -> None:
        known = catalog.use_cases
        short: list[str] = []
        long: list[str] = []
        boundaries: list[float] = []
        for kind in KINDS:
            names = BY_LENGTH.get(kind, (kind, kind))
            present = [name for name in names if name in known] or [fallback]
            short.append(present[0])
            long.append(present[-1])
            if len(present) == 2 and present[0] != present[1]:
                lengths = [catalog.profiles[known[name].profile].prompt_tokens for name in present]
                boundaries.append(sqrt(lengths[0] * lengths[1]))
        self.boundary_tokens = min(boundaries, default=float("inf"))
        self._use_cases = (tuple(short), tuple(long))
        # For each kind those that are the same use case: more than itself where the catalogue lacks one.
        self._alike = tuple([[kind for kind, other in enumerate(names) if other == name] for name in names] for names in self._use_cases)
        matrices = [cost_matrix(names, catalog, costs) for names in self._use_cases]
        self._costs = tuple(matrix.astype(np.float64) for matrix in matrices)  # as probabilities are
        self._decided = tuple(_decided(matrix) for matrix in matrices)

    def use_cases(self, prompt_tokens: int) -> tuple[str, ...]:
        """What each kind is at this length."""
        return self._use_cases[prompt_tokens >= self.boundary_tokens]

    def judge(self, probabilities: Sequence[float], prompt_tokens: int) -> Judged:
        """The use case with the least expected cost, and its probability. `probabilities` are of KINDS."""
        long = prompt_tokens >= self.boundary_tokens
        most = max(probabilities)
        best = probabilities.index(most) if most >= self._decided[long] else int(np.array(probabilities).dot(self._costs[long]).argmin())
        use_cases = self._use_cases[long]
        chosen = use_cases[best]
        alike = self._alike[long][best]
        probability = probabilities[best] if len(alike) == 1 else sum([probabilities[kind] for kind in alike])
        return Judged(chosen, probability if probability < 1.0 else 1.0)


def cost(true: str, taken: str, catalog: Catalog, costs: Costs) -> float:
    """What it costs to treat a request of use case `true` as `taken`."""
    if true == taken:
        return 0.0
    own = costs.pairs.get(true, {}).get(taken)
    if own is not None:
        return own
    ranks = catalog.classes
    further = ranks[catalog.use_cases[taken].experience_class].rank - ranks[catalog.use_cases[true].experience_class].rank
    return costs.wrong + (costs.looser * further if further > 0 else costs.tighter * -further)


def cost_matrix(use_cases: Sequence[str], catalog: Catalog, costs: Costs) -> Floats:
    """[true, taken] for use cases in this order."""
    return np.array([[cost(true, taken, catalog, costs) for taken in use_cases] for true in use_cases], np.float32)


def _decided(costs: Floats) -> float:
    """From this probability on the likeliest is the cheapest too, whatever the others are: being wrong with it costs at most (1 - p) times
    the dearest mistake, any other verdict at least p times the cheapest."""
    dearest = float(costs.max())
    cheapest = min((float(cost) for true, row in enumerate(costs) for taken, cost in enumerate(row) if true != taken), default=0.0)
    return dearest / (dearest + cheapest) if cheapest > 0 else 2.0


def verdict_of(judged: Judged, why: str) -> Verdict:
    """With its reason in a word."""
    probability = judged.probability
    return Verdict(judged.use_case, int(probability * 1000.0 + 0.5) / 1000.0, f"{why} {probability:.2f}")  # a third of what round takes
