"""What the predictor promises: close to the truth after a few hundred requests, whatever it was told at first, and never lost for long."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from gateway.core.flow import Outcome, Placement, Result
from gateway.core.instance import Instance
from gateway.predict.predictor import LearningPredictor
from gateway.simulate.machine import MachineFacts
from tests.predict.conftest import Bench, mape, spec_of, ticket_of

H100 = MachineFacts(7.7, 0.004, 0.076, 24)
Made = Callable[..., Bench]


@pytest.mark.parametrize("facts", [None, H100], ids=["L40S", "H100"])
@pytest.mark.parametrize("misjudged", [1.0, 0.5, 2.0])
def test_first_tokens_are_within_a_tenth_and_gaps_within_a_twentieth_after_500_requests(
    bench: Made, misjudged: float, facts: MachineFacts | None
) -> None:
    made = bench(misjudged=misjudged, facts=facts)
    made.run(500)
    known = len(made.gaps)
    later = made.run(400)
    assert mape((seen.ttft_predicted_s, seen.ttft_s) for seen in later) <= 0.10
    assert mape((gap.predicted_s, gap.true_s) for gap in made.gaps[known:]) <= 0.05


def test_an_engine_at_half_speed_is_noticed_within_seconds_and_its_sibling_is_not_blamed(bench: Made) -> None:
    made = bench(facts=H100, rate_per_s=1.2)
    made.run(500)
    slowed_at_s, known = made.now_s, len(made.gaps)
    machine = made.machines["pool/0"]
    machine.change(machine.facts.slower(0.5), made.now_s)
    made.run(60)

    def error(name: str, from_s: float, until_s: float) -> float:
        gaps = [gap for gap in made.gaps[known:] if gap.instance_id == name and from_s <= gap.at_s - slowed_at_s < until_s]
        return mape((gap.predicted_s, gap.true_s) for gap in gaps)

    assert error("pool/0", 0, 1) > 0.3
    assert error("pool/0", 5, 10) < 0.05
    assert error("pool/0", 10, 40) < 0.05
    assert error("pool/1", 0, 40) < 0.05
    firsts = [s for s in made.seen if s.instance_id == "pool/0" and s.ttft_s and 5 <= s.at_s - slowed_at_s < 40]
    assert mape((s.ttft_predicted_s, s.ttft_s) for s in firsts) < 0.2


def test_another_engine_behind_an_old_address_is_learnt_on_its_own(bench: Made) -> None:
    made = bench()
    made.run(400)
    machine = made.machines["pool/0"]
    machine.change(machine.facts.scaled(4.0, 3.0), made.now_s)
    made.run(300)
    latencies = made.predictor.latencies
    assert latencies.loads["pool/0"].private
    assert not latencies.loads["pool/1"].private
    assert mape((gap.predicted_s, gap.true_s) for gap in made.gaps[-80:]) < 0.05


def test_what_was_learnt_survives_a_restart(bench: Made) -> None:
    made = bench(misjudged=2.0)
    made.run(300)
    again = LearningPredictor({}, cautious=False)
    again.restore(json.loads(json.dumps(made.predictor.state())))
    for name, spec in made.specs.items():
        for tokens in (100, 4_000):
            ticket = ticket_of(tokens)
            assert again.predict_idle(ticket, Instance(spec)) == made.predictor.predict_idle(ticket, made.instances[name])
            expected = made.predictor.expected_output_tokens(ticket)
            assert again.expected_output_tokens(ticket) == pytest.approx(expected, rel=0.05), name  # it is renewed every 16th answer


def test_what_another_version_saved_is_not_read(bench: Made) -> None:
    state = bench().predictor.state() | {"version": 0}
    with pytest.raises(ValueError, match="version 0"):
        LearningPredictor({}).restore(state)


def test_a_prompt_that_begins_as_one_read_before_is_expected_sooner_there_and_only_there() -> None:
    predictor = LearningPredictor({"L40S|m|w8": (13.8, 0.004, 0.295, 110)})
    warm, cold = Instance(spec_of("pool/warm")), Instance(spec_of("pool/cold"))
    ticket = ticket_of(4_096, hashes=tuple(range(16)))
    placement = Placement(ticket, "pool/warm", "pool", "balanced", "m", 0.0)
    predictor.started(placement, warm, 0.0)
    placement.first_token_at_s = 0.5
    predictor.first_token(placement, warm, 0.5)
    predictor.finished(placement, warm, Outcome(Result.COMPLETED, output_tokens=10), 1.0)
    there_s, elsewhere_s = (ttft_s for _, ttft_s, *_ in predictor.consider(ticket, (warm, cold), 2.0))
    [(_, other_s, *_)] = predictor.consider(ticket_of(4_096, hashes=tuple(range(100, 116))), (warm,), 2.0)
    assert there_s < 0.6 * elsewhere_s
    assert other_s > 0.9 * elsewhere_s


def test_lengths_are_learnt_per_application_and_capped_by_the_caller() -> None:
    predictor = LearningPredictor({})
    spec = spec_of("pool/0")
    instance = Instance(spec)
    for app, tokens in ((1, 40), (2, 2_000)):
        for _ in range(60):
            ticket = ticket_of(100)
            ticket.request.app = app
            placement = Placement(ticket, "pool/0", "pool", "balanced", "m", 0.0)
            predictor.finished(placement, instance, Outcome(Result.COMPLETED, output_tokens=tokens), 1.0)
    expected = []
    for app, most in ((1, None), (2, None), (2, 100)):
        ticket = ticket_of(100)
        ticket.request.app, ticket.request.max_output_tokens = app, most
        expected.append(predictor.expected_output_tokens(ticket))
    assert expected[0] == pytest.approx(40, rel=0.3)
    assert expected[1] == pytest.approx(2_000, rel=0.3)
    assert expected[2] == 100
