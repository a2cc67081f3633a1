"""A class that is worth more: others pay, where its answers stream, what delays cost the whole class and who comes while they are read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.fleet import Fleet
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


def prices(reserve: Reserve, fleet: Fleet, of: Ticket, now_s: float, room_ratio: float = 0.0) -> dict[str, float]:
    kept = reserve.kept_from(of, fleet, room_ratio, now_s)
    return kept.delays_per_s if kept is not None else {}


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

    asked = prices(reserve, fleet, ticket(), 13.0)

    assert list(asked) == ["premium/a"]
    assert asked["premium/a"] == pytest.approx(4.0 * 0.1 * 5.0 / MEMORY_S, rel=0.05)


def test_the_class_itself_pays_no_such_price() -> None:
    reserve, fleet = Reserve(), core_with(*THREE).fleet
    answered(reserve, "premium/a")
    assert prices(reserve, fleet, ticket(worth=4.0), 13.0) == {}


def test_what_is_worth_no_more_than_others_keeps_nothing_for_itself() -> None:
    reserve, fleet = Reserve(), core_with(*THREE).fleet
    answered(reserve, "premium/a", worth=1.0)
    answered(reserve, "premium/a", late=True)
    assert prices(reserve, fleet, ticket(), 13.0) == {}


def test_two_instances_alike_are_nobodys_own() -> None:
    reserve, fleet = Reserve(), core_with(*THREE[:2]).fleet
    answered(reserve, "premium/a")
    assert prices(reserve, fleet, ticket(), 13.0) == {}


def test_a_busy_class_is_kept_a_third_of_what_is_alike_and_no_more() -> None:
    many = [instance(f"premium/{name}") for name in "abcdef"]
    reserve, fleet = Reserve(), core_with(*many).fleet
    for spec in many:
        answered(reserve, spec.instance_id, took_s=MEMORY_S * ANSWERS_EACH)
    assert len(prices(reserve, fleet, ticket(), 10.0 + MEMORY_S * ANSWERS_EACH)) == 2


def test_who_no_longer_asks_is_forgotten() -> None:
    reserve, fleet = Reserve(), core_with(*THREE).fleet
    answered(reserve, "premium/a")
    assert prices(reserve, fleet, ticket(), 13.0)
    assert prices(reserve, fleet, ticket(), 13.0 + 10 * MEMORY_S) == {}


def test_delays_are_forgiven_while_there_is_room_for_all() -> None:
    dear, cheap, free = (asked_with(room_ratio) for room_ratio in (0.0, 0.9, 1.0))
    assert dear > 3 * cheap > 0.0
    assert free == 0.0


def asked_with(room_ratio: float) -> float:
    reserve, fleet = Reserve(), core_with(*THREE).fleet
    answered(reserve, "premium/a")
    return prices(reserve, fleet, ticket(), 13.0, room_ratio)["premium/a"]


def test_a_prompt_that_takes_longer_to_read_than_the_class_waits_pays_for_who_comes_meanwhile() -> None:
    reserve, fleet = Reserve(), core_with(*THREE).fleet
    for _ in range(12):
        answered(reserve, "premium/a", took_s=0.1)
    kept = reserve.kept_from(ticket(), fleet, 1.0, 12.0)
    assert kept is not None
    at, elsewhere = (fleet.by_id[name] for name in ("premium/a", "premium/b"))
    first_s = tag().targets.ttft_s

    assert kept.cost(at, 0.0, 9.0, first_s, 2.5) == pytest.approx(0.0)
    assert kept.cost(at, 0.0, 9.0, first_s + 0.5, 2.5) == pytest.approx(12 * 4.0 * 0.5 / MEMORY_S, rel=0.1)
    assert kept.cost(at, 0.0, 0.2, first_s + 0.5, 2.5) == pytest.approx(12 * 4.0 * 0.2 / MEMORY_S, rel=0.1), "never for more than it takes"
    assert kept.cost(elsewhere, 0.7, 9.0, first_s + 0.5, 2.5) == 0.7
    assert reserve.kept_from(ticket(), fleet, 1.0, 12.0 + MEMORY_S / 2) is kept
    assert kept.turned_away(9.0, first_s + 0.5) == pytest.approx(12 * 4.0 * 0.5 / MEMORY_S * 0.57, rel=0.1), "fewer have come of late"


def test_who_delays_others_there_more_than_the_class_pays_for_them() -> None:
    reserve, fleet = Reserve(), core_with(*THREE).fleet
    answered(reserve, "premium/a")
    kept = reserve.kept_from(ticket(), fleet, 0.0, 13.0)
    assert kept is not None
    at = fleet.by_id["premium/a"]
    least = kept.cost(at, 0.0, 1.0, 0.01, 2.5)
    assert least == pytest.approx(2.5 * kept.delays_per_s["premium/a"])
    assert kept.cost(at, 2 * least, 1.0, 0.01, 2.5) == 2 * least
