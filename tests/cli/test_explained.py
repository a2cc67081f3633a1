"""`slo-gateway explain` tells what the core did as a person would: why it started there, why it waited, why it was refused."""

from __future__ import annotations

import os
from dataclasses import replace
from random import Random

import pytest
from rich.console import Console

from gateway import policies
from gateway.cli.explain import show
from gateway.core.decide import Core
from gateway.core.flow import FailReason, Outcome, Refuse, RefuseReason, Result, Start, Ticket
from gateway.core.trail import tell
from gateway.predict.predictor import LearningPredictor
from tests.core.conftest import completed, instance, request, settings, tag

FACTS = {"H100|m|": (7.7, 0.004, 0.076, 24.0)}


def core(*limits: int) -> Core:
    made = Core(settings(), policies.load("best_value")(Random(0)), LearningPredictor(FACTS))
    made.instances_changed([instance(f"premium/{name}", limit=limit) for name, limit in zip("abc", limits, strict=False)], 10.0)
    return made


def said(ticket: Ticket | None, columns: int = 110) -> str:
    assert ticket is not None
    console = Console(width=columns, record=True, file=open(os.devnull, "w"), highlight=False)  # noqa: SIM115
    show(console, tell(ticket))
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= columns
    return "\n".join(line.rstrip() for line in lines)


def test_a_start_names_what_it_was_chosen_from_and_whether_the_promise_was_kept() -> None:
    made = core(4, 4)
    [start] = made.arrived(request("r"), tag(), 10.0)
    made.finished(start.placement, completed(), 11.0)
    text = said(made.trails.of("r"))
    assert f"sent to {start.placement.instance_id}, out of:" in text
    assert f"> {start.placement.instance_id}" in text
    assert "4.50" in text
    assert "promise kept" in text


def test_a_broken_promise_says_by_how_much() -> None:
    made = core(4)
    [start] = made.arrived(request("r"), tag(), 10.0)
    made.finished(start.placement, Outcome(Result.COMPLETED, output_tokens=50, ttft_s=0.42, tpot_s=0.031, e2e_s=1.0), 11.0)
    assert "promise missed: first token 120 ms too late, time a token 1.0 ms too long" in said(made.trails.of("r"))


def test_who_waits_is_told_why_and_how_long_it_could() -> None:
    made = core(1)
    made.arrived(request(), tag(), 10.0)
    made.arrived(request("r"), tag(4, 30.0), 10.0)
    text = said(made.trails.of("r"))
    assert "every instance that its class may use is full; a slot is expected in" in text
    assert "it can wait 19." in text or "it can wait 30." in text or "it can wait 29." in text
    assert "so it waits in line" in text


def test_who_comes_behind_others_is_told_how_many() -> None:
    made = core(1)
    for name in ("busy", "first", "r"):
        made.arrived(request(name), tag(4, 30.0), 10.0)
    assert "1 waits before it" in said(made.trails.of("r"))


def test_a_refusal_shows_what_each_open_instance_would_have_missed() -> None:
    made = core(4)
    for _ in range(3):
        made.arrived(request(prompt_tokens=9_000), tag(4, 30.0), 10.0)
    made.arrived(request("r", prompt_tokens=6_000), tag(0, 0.25), 10.0)
    text = said(made.trails.of("r"))
    assert "none of the open instances would do (below)" in text
    assert "TTFT" in text
    assert "refused: no instance could have kept the promise; it was told to come back in" in text


@pytest.mark.parametrize("late", [False, True])
def test_an_instance_kept_for_a_class_worth_more_says_what_it_asked(late: bool) -> None:
    made = core(64, 64, 64)
    classes = tuple(replace(class_, worth=40.0 if class_.rank == 0 else 1.0) for class_ in made.settings.classes)
    made.settings_changed(replace(made.settings, classes=classes), 10.0)
    for number in range(40):  # most of them stream on the one that is kept; when their tokens are late, there is not room for all
        [start] = made.arrived(request(f"i{number}", arrived_at_s=10.0 + number), tag(0, 0.2), 10.0 + number)
        made.first_token(start.placement, 10.05 + number)
        made.finished(start.placement, replace(completed(), tpot_s=0.05 if late else 0.01, e2e_s=0.9), 10.9 + number)
    made.arrived(request("r", prompt_tokens=8_000, arrived_at_s=51.0), tag(4, 5.0), 51.0)
    ticket = made.trails.of("r")
    [one] = [one for one in tell(ticket)["steps"][0]["candidates"] if one["kept"]]  # type: ignore[arg-type]
    kept, text = one["kept"], " ".join(said(ticket).split())
    assert not one["chosen"]
    assert kept["turned_away"] > 0.1
    assert f"who comes while its prompt is read counts for {kept['turned_away']:.2f} more" in text
    assert (kept["asks_per_s"] > kept["residents_per_s"]) is late
    assert (f"{one['instance_id']} is kept for a class that is worth more: a second of its time counts for" in text) is late


def test_a_looser_class_is_told_with_what_its_own_would_have_meant() -> None:
    made = core(1)
    made.arrived(request(), tag(0), 10.0)
    made.arrived(request("r", may_degrade=True), tag(0), 10.0)
    text = said(made.trails.of("r"))
    assert "It asked for instant and accepted a looser class." in text
    assert "so it goes on as " in text
    assert "it can wait 1" in text  # of its own class's 150 ms, not of the looser one's seconds


def test_a_second_try_is_told_with_the_first() -> None:
    made = core(4, 4)
    [start] = made.arrived(request("r"), tag(), 10.0)
    made.failed(start.placement, FailReason.CLOSED_EARLY, 10.1, True)
    text = said(made.trails.of("r"))
    assert f"failed at {start.placement.instance_id}: it went away before the first token" in text
    assert text.count("sent to ") == 2


def test_what_others_were_asked_later_is_in_nobody_elses_story() -> None:
    made = core(2, 2)
    begun = [made.arrived(request(prompt_tokens=10), tag(0, 0.3), 10.0)[0] for _ in range(4)]
    [refused] = made.arrived(request(), tag(0, 0.02), 10.0)
    assert isinstance(refused, Refuse)
    assert refused.reason is RefuseReason.CANNOT_MEET_SLO
    for start in begun[:3]:
        assert isinstance(start, Start)
        made.finished(start.placement, completed(), 10.4)
    made.arrived(request("r", arrived_at_s=10.5), tag(), 10.5)
    before = tell(made.trails.of("r"))  # type: ignore[arg-type]
    for second in range(11, 20):
        made.tick(float(second))
    assert tell(made.trails.of("r")) == before  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", [80, 110])
def test_it_fits_the_terminal(columns: int) -> None:
    made = core(4, 4)
    made.arrived(request("r"), tag(), 10.0)
    assert "…" not in said(made.trails.of("r"), columns)
