"""Adam with decoupled decay (Loshchilov and Hutter 2019), for the small nets that are trained here: over arrays that a step touches whole.
A table of which it touches few rows is net.Rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gateway.classify.model import Floats

KEPT, TAKEN = 0.9, 0.1  # of the mean gradient
KEPT_SQUARES, TAKEN_SQUARES = 0.999, 0.001
LEAST = 1e-8


class Adam:
    """Changes the arrays it is made with, in place. Only matrices decay, not biases."""

    def __init__(self, values: Mapping[str, Floats]) -> None:
        self._values = values
        self._m = {name: np.zeros_like(value) for name, value in values.items()}
        self._v = {name: np.zeros_like(value) for name, value in values.items()}
        self.steps = 0

    def step(self, gradients: Mapping[str, Floats], rate: float, decay: float) -> None:
        """One step down; the gradients' names are the values'."""
        self.steps += 1
        first, second = 1 - KEPT**self.steps, 1 - KEPT_SQUARES**self.steps
        for name, gradient in gradients.items():
            m, v, value = self._m[name], self._v[name], self._values[name]
            m += TAKEN * (gradient - m)
            v += TAKEN_SQUARES * (gradient * gradient - v)
            if value.ndim == 2:
                value *= 1.0 - rate * decay
            value -= rate * (m / first) / (np.sqrt(v / second) + LEAST)
