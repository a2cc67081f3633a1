"""A small linear model follows what it is shown, whatever its size."""

from __future__ import annotations

from random import Random

import pytest

from gateway.predict.regression import Regression


@pytest.mark.parametrize("size", [3, 4, 6])
def test_a_model_learns_the_weights_behind_its_samples(size: int) -> None:
    chance = Random(size)
    true = [chance.uniform(0.5, 2.0) for _ in range(size)]
    model = Regression([1.0] * size, [1.0] * size)
    for _ in range(300):
        features = [1.0, *(chance.choice((0.0, chance.uniform(0.1, 3.0))) for _ in range(size - 1))]
        model.learn(features, sum(weight * feature for weight, feature in zip(true, features, strict=True)))
    assert model.weights == pytest.approx(true, rel=0.02)


def test_what_was_saved_does_not_change_with_what_is_learnt_next() -> None:
    model = Regression([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])
    saved = model.state()
    before = repr(saved)
    model.learn([1.0, 2.0, 0.0, 1.0], 7.0)
    assert repr(saved) == before != repr(model.state())
