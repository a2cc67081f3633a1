"""How good answers are: accuracy, what the mistakes cost, and whether probabilities mean what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.classify.model import KINDS, Floats
from gateway.classify.training.net import softmax
from gateway.classify.training.rows import Labelled
from gateway.classify.verdict import Judge, cost
from gateway.config.catalog import Catalog
from gateway.config.settings import Costs

SURE = 0.8
BINS = 10


@dataclass(slots=True)
class Answer:
    """What was said of one row."""

    row: Labelled
    use_case: str
    probability: float


@dataclass(slots=True)
class Figures:
    """Of a set of answers. `calibration_error`: the mean distance between probability and accuracy, over ten bins of equal width."""

    rows: int
    accuracy: float
    macro_f1: float
    class_accuracy: float
    cost: float
    calibration_error: float
    sure_ratio: float  # share of answers with a probability of SURE or more
    sure_accuracy: float  # among those
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)
    bins: list[tuple[float, float, int]] = field(default_factory=list)  # mean probability, accuracy, answers

    def told(self) -> dict[str, Any]:
        """For JSON."""
        rounded = {name: round(getattr(self, name), 4) for name in FIGURES}
        bins = [[round(probability, 4), round(accuracy, 4), count] for probability, accuracy, count in self.bins]
        return {"rows": self.rows, **rounded, "confusion": self.confusion, "calibration": bins}


FIGURES = ("accuracy", "macro_f1", "class_accuracy", "cost", "calibration_error", "sure_ratio", "sure_accuracy")


def figures(answers: Sequence[Answer], catalog: Catalog, costs: Costs) -> Figures:
    """All of it. Rows count alike."""
    class_of = {name: use_case.experience_class for name, use_case in catalog.use_cases.items()}
    right = np.array([answer.use_case == answer.row.use_case for answer in answers])
    same_class = np.array([class_of[answer.use_case] == class_of[answer.row.use_case] for answer in answers])
    probability = np.array([answer.probability for answer in answers])
    confusion: dict[str, dict[str, int]] = {}
    for answer in answers:
        row = confusion.setdefault(answer.row.use_case, {})
        row[answer.use_case] = row.get(answer.use_case, 0) + 1
    bins = []
    which = np.minimum((probability * BINS).astype(int), BINS - 1)
    for index in range(BINS):
        inside = which == index
        if inside.any():
            bins.append((float(probability[inside].mean()), float(right[inside].mean()), int(inside.sum())))
    sure = probability >= SURE
    return Figures(
        rows=len(answers),
        accuracy=float(right.mean()),
        macro_f1=_macro_f1(confusion),
        class_accuracy=float(same_class.mean()),
        cost=float(np.mean([cost(answer.row.use_case, answer.use_case, catalog, costs) for answer in answers])),
        calibration_error=sum(abs(said - was) * count for said, was, count in bins) / len(answers),
        sure_ratio=float(sure.mean()),
        sure_accuracy=float(right[sure].mean()) if sure.any() else 0.0,
        confusion=confusion,
        bins=bins,
    )


def _macro_f1(confusion: dict[str, dict[str, int]]) -> float:
    scores = []
    for label, row in confusion.items():
        hits = row.get(label, 0)
        said = sum(other.get(label, 0) for other in confusion.values())
        scores.append(2 * hits / (sum(row.values()) + said))
    return float(np.mean(scores))


def judged(rows: Sequence[Labelled], scores: Floats, temperature: float, judge: Judge) -> list[Answer]:
    """Scores (rows x KINDS) as verdicts."""
    probabilities = softmax(scores / temperature)
    verdicts = [judge.judge(p, row.prompt_tokens) for p, row in zip(probabilities.tolist(), rows, strict=True)]
    return [Answer(row, verdict.use_case, verdict.probability) for row, verdict in zip(rows, verdicts, strict=True)]


def best_temperature(scores: Floats, kinds: NDArray[np.int64], shares: Floats) -> float:
    """The one under which the right kinds are likeliest."""
    tried = np.geomspace(0.25, 4.0, 81)
    picked = np.arange(len(kinds))
    losses = [-(shares * np.log(softmax(scores / t)[picked, kinds] + 1e-9)).sum() for t in tried]
    return float(tried[int(np.argmin(losses))])


def folds(rows: Sequence[Labelled], count: int) -> NDArray[np.int64]:
    """A fold for each row; a family is never in two. Families are dealt out largest first, to the fold with the fewest rows."""
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row.family] = sizes.get(row.family, 0) + 1
    filled = [0] * count
    fold_of: dict[str, int] = {}
    for family in sorted(sizes, key=lambda name: (-sizes[name], sha256(name.encode()).digest())):
        fold = min(range(count), key=lambda index: (filled[index], index))
        fold_of[family] = fold
        filled[fold] += sizes[family]
    return np.array([fold_of[row.family] for row in rows])


def shares_of(rows: Sequence[Labelled], share_of_set: Callable[[str], float]) -> Floats:
    """How often each row is drawn: sets by their share, and in a set every kind alike."""
    counts: dict[tuple[str, int], int] = {}
    for row in rows:
        counts[row.source, row.kind] = counts.get((row.source, row.kind), 0) + 1
    kinds_of: dict[str, int] = {}
    for source, _ in counts:
        kinds_of[source] = kinds_of.get(source, 0) + 1
    shares = [share_of_set(row.source) / counts[row.source, row.kind] / kinds_of[row.source] for row in rows]
    return np.array(shares, np.float32)


def mix_of(rows: Sequence[Labelled], shares: Floats) -> dict[str, float]:
    """The mix of kinds that was trained on."""
    total = dict.fromkeys(KINDS, 0.0)
    for row, share in zip(rows, shares.tolist(), strict=True):
        total[KINDS[row.kind]] += share
    everything = sum(total.values())
    return {kind: round(value / everything, 4) for kind, value in total.items()}
