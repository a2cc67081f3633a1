"""What one kind of instance is like: a model of its steps and one of its first tokens, begun at shipped facts, corrected by hearing.py.

Instances of one kind share these; how far each differs from its kind is kept with its load.
"""

from __future__ import annotations

from typing import Any

from gateway.predict.regression import RatioQuantiles, Regression

# Step times in milliseconds: a + b * sequences + c * context_tokens / 1000 + d * prefill_tokens / 1000. With b and c both 0 there is no
# batch: what is sent there neither shares one nor waits for what was sent before.
StepFacts = tuple[float, float, float, float]

UNKNOWN_GPU: StepFacts = (15.0, 0.01, 0.2, 120.0)  # between an A100 and an L40S


class KeyModel:
    """What is known of one kind of instance."""

    __slots__ = ("batches", "first", "first_ratio", "step", "version")

    def __init__(self, facts: StepFacts) -> None:
        a, b, c, d = (max(fact, 1e-4) / 1000 for fact in facts)
        self.batches = facts[1] > 0.0 or facts[2] > 0.0
        if self.batches:
            self.step = Regression([a, b, c, d], [a, 4 * b + a / 50, c, d])
            # The first token costs its prompt, a step and on average half a step's wait, and a step more per further chunk.
            self.first = Regression([0.002, d, 0.0, d, 1.0, 1.0], [0.01, d, d / 20, d, 0.5, 0.7])
        else:
            self.step = Regression([a, 0.0, 0.0, 0.0], [4 * a, 0.0, 0.0, 0.0])
            self.first = Regression([0.3, d, 0.0, 0.0, 0.0, 0.0], [0.5, d, d / 20, 0.0, 0.0, 0.0])
        self.first_ratio = RatioQuantiles()
        self.version = 0  # of what is known, so that nobody takes it up twice

    def state(self) -> dict[str, Any]:
        return {"step": self.step.state(), "first": self.first.state(), "first_ratio": self.first_ratio.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.step.restore(state["step"])
        self.first.restore(state["first"])
        self.first_ratio.restore(state["first_ratio"])
        self.version += 1

    def fork(self, step_ratio: float, first_ratio: float) -> KeyModel:
        """A model of its own for an instance that has become another engine than its kind: same shape, new doubt."""
        fork = KeyModel(UNKNOWN_GPU)
        fork.batches = self.batches
        fork.step, fork.first = self.step.scaled(step_ratio), self.first.scaled(1.0)
        weights, spread, ratio = fork.first.weights, fork.first.spread, first_ratio
        for index in range(4):  # the step enters the first token's model as a feature and is scaled already
            weights[index] *= ratio
            spread[index] *= max(ratio, 1.0)
        return fork
