"""What becomes of an application's next requests when its first ones get second opinions: the memory that serves (classify/apps.py) is told
of rows one after the other, as if one application had sent them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.classify.apps import App
from gateway.classify.model import Floats
from gateway.classify.text import glance
from gateway.classify.training.rows import Labelled

LEAST_REQUESTS, MOST_REQUESTS = 3, 6
NAMING_CHARS = 120
"""of a system text that only one application has"""

Application = list[int]  # rows, in the order of their requests


def made_of_families(rows: Sequence[Labelled]) -> list[Application]:
    """Rows of one family that ask for one kind of thing, as most applications do."""
    alike: dict[tuple[str, str, int], Application] = {}
    for index, row in enumerate(rows):
        alike.setdefault((row.source, row.family, row.kind), []).append(index)
    parts = (every[begin : begin + MOST_REQUESTS] for every in alike.values() for begin in range(0, len(every), MOST_REQUESTS))
    return [part for part in parts if len(part) >= LEAST_REQUESTS]


def of_one_text(rows: Sequence[Labelled]) -> list[Application]:
    """Rows with the same system text, whatever they ask for."""
    alike: dict[tuple[str, int], Application] = {}
    for index, row in enumerate(rows):
        if glance(row.body).system_chars >= NAMING_CHARS:
            alike.setdefault((row.source, row.body.app), []).append(index)
    return [every for every in alike.values() if len(every) > 1]


def believed(applications: Sequence[Application], look: Floats, second: Floats | None) -> tuple[list[int], Floats]:
    """Every request but the first of each application, as (rows, probabilities of their kinds). `look` and `second` are probabilities
    (rows x kinds); an opinion is there before the next request. Without `second` the look is alone."""
    asked: list[int] = []
    answers: list[Sequence[float]] = []
    for application in applications:
        app = App()
        for order, index in enumerate(application):
            answer = app.look(look[index].tolist(), named=True)
            if order:
                asked.append(index)
                answers.append(answer)
            if second is not None and app.wants_opinion():
                app.is_advised(second[index].tolist())
    return asked, np.array(answers)
