"""A class that is worth more: others pay, where its answers stream, what a second of delay costs the whole class."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.flow import ClassPolicy, Outcome, Placement, Result, Ticket
from gateway.core.reserve import ANSWERS_EACH, MEMORY_S, Reserve
from tests.core.conftest import MODEL, core_with, instance, request, tag

THREE = [instance(f"premium/{name}") for name in "abc"]


def ticket(worth: float = 1.0, arrived_at_s: float = 10.0) -> Ticket:
    made = core_with(*THREE).ticket(request(), tag(), arrived_at_s)
    made.request.arrived_at_s, made.model, made.worth, made.stake_per_s = arrived_at_s, MODEL, worth, 0.1
    return made


def answered(reserve: Reserve, instance_id: str, *, worth: float = 4.0, took_s: float = 3.0, late: bool = False) -> None:
    of = ticket(worth)
    of.late = late
    placement = Placement(of, instance_id, "premium", "premium", MODEL, 10.0)
    reserve.learn(placement, Outcome(Result.COMPLETED, e2e_s=took_s))


def test_a_request_is_worth_what_its_class_is_and_no_more_when_it_is_loosened() -> None:
    core = core_with(instance())
    promised = tag()
    classes: tuple[ClassPolicy, ...] = tuple(
        replace(class_, worth=4.0 if class_.name == promised.experience_class else 1.0) for class_ in core.settings.classes
    )
    core.settings_changed(replace(core.settings, classes=classes), 10.0)
    assert core.ticket(request(), promised, 10.0).worth == 4.0
    other = next(class_ for class_ in classes if class_.name != promised.experience_class)
    looser = replace(promised, experience_class=other.name, rank=other.rank)
    assert core.ticket(request(), looser, 10.0).worth == 1.0


def test_others_pay_for_the_whole_class_where_it_streams_most() -> None:
    reserve, fleet = Reserve(), core_with(*THREE).fleet
    answered(reserve, "premium/a", took_s=3.0)
    answered(reserve, "premium/b", took_s=2.0)

    prices = reserve.prices_per_s(ticket(), fleet, 13.0)

    assert list(prices) == ["premium/a"]
    assert prices["premium/a"] == pytest.approx(4.0 * 0.1 * 5.0 / MEMORY_S, rel=0.05)


def test_the_class_itself_pays_no_such_price() -> None:
    reserve, fleet = Reserve(), core_with(*THREE).fleet
    answered(reserve, "premium/a")
    assert reserve.prices_per_s(ticket(worth=4.0), fleet, 13.0) == {}


def test_what_is_worth_no_more_than_others_keeps_nothing_for_itself() -> None:
    reserve, fleet = Reserve(), core_with(*THREE).fleet
    answered(reserve, "premium/a", worth=1.0)
    answered(reserve, "premium/a", late=True)
    assert reserve.prices_per_s(ticket(), fleet, 13.0) == {}


def test_two_instances_alike_are_nobodys_own() -> None:
    reserve, fleet = Reserve(), core_with(*THREE[:2]).fleet
    answered(reserve, "premium/a")
    assert reserve.prices_per_s(ticket(), fleet, 13.0) == {}


def test_a_busy_class_is_kept_a_third_of_what_is_alike_and_no_more() -> None:
    many = [instance(f"premium/{name}") for name in "abcdef"]
    reserve, fleet = Reserve(), core_with(*many).fleet
    for spec in many:
        answered(reserve, spec.instance_id, took_s=MEMORY_S * ANSWERS_EACH)
    assert len(reserve.prices_per_s(ticket(), fleet, 10.0 + MEMORY_S * ANSWERS_EACH)) == 2


def test_who_no_longer_asks_is_forgotten() -> None:
    reserve, fleet = Reserve(), core_with(*THREE).fleet
    answered(reserve, "premium/a")
    assert reserve.prices_per_s(ticket(), fleet, 13.0)
    assert reserve.prices_per_s(ticket(), fleet, 13.0 + 10 * MEMORY_S) == {}
