"""Where not all promises can be kept, a class's worth says whose count for more."""

from __future__ import annotations

from dataclasses import replace

from gateway.core.flow import ClassPolicy
from tests.core.conftest import core_with, instance, request, tag


def test_a_promise_counts_as_its_class_is_worth_and_no_more_when_it_is_loosened() -> None:
    core = core_with(instance())
    promised = tag()
    classes: tuple[ClassPolicy, ...] = tuple(
        replace(class_, worth=2.5 if class_.name == promised.experience_class else 1.0) for class_ in core.settings.classes
    )
    core.settings_changed(replace(core.settings, classes=classes), 10.0)
    assert core.ticket(request(), promised, 10.0).weight == 2.5
    other = next(class_ for class_ in classes if class_.name != promised.experience_class)
    looser = replace(promised, experience_class=other.name, rank=other.rank)
    assert core.ticket(request(), looser, 10.0).weight == 1.0
