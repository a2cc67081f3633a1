"""How closely instances are listened to: everything while they are new or have surprised, a sample of what is as it always was."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from gateway.core.flow import Outcome, Placement, Result
from gateway.core.instance import Instance
from gateway.predict.hearing import CALM_SAMPLES, FIRST_EVERY, ODD_RATIO, learn_pace
from gateway.predict.latency import Load
from gateway.predict.lengths import BATCH_ANSWERS, Lengths
from gateway.predict.predictor import LearningPredictor
from gateway.simulate.machine import MachineFacts
from tests.predict.conftest import Bench, spec_of, ticket_of

Made = Callable[..., Bench]
TOLD = {"L40S|m|w8": (13.8, 0.004, 0.295, 110.0)}


def heard(made: Bench) -> int:
    return sum(load.ttft_drift.samples for load in made.predictor.latencies.loads.values())


def test_an_engine_that_has_long_been_as_expected_is_listened_to_by_sample(bench: Made) -> None:
    made = bench()
    made.run(100)
    assert heard(made) == sum(1 for seen in made.seen if seen.ttft_s)  # nothing is left out of what is new
    made.run(700)
    before = heard(made)
    later = made.run(300)
    assert heard(made) - before < len(later) / 3


def test_an_engine_that_changes_is_listened_to_closely_within_seconds(bench: Made) -> None:
    made = bench(facts=MachineFacts(7.7, 0.004, 0.076, 24), rate_per_s=1.2)
    made.run(900)
    load, machine = made.predictor.latencies.loads["pool/0"], made.machines["pool/0"]
    assert not load.watched
    machine.change(machine.facts.slower(0.5), made.now_s)
    changed_at_s = made.now_s
    while not load.watched or load.first_every > 1:
        made.run(1)
        assert made.now_s < changed_at_s + 5.0


class Known:
    """One instance whose predictor is calm, by hand: `answer` sends a request that takes so many times what is expected."""

    def __init__(self) -> None:
        self.predictor = LearningPredictor(TOLD)
        self.instance = Instance(spec_of("pool/0"))
        self.now_s = 1.0
        for _ in range(300):
            self.answer(1.0)

    @property
    def load(self) -> Load:
        load = self.instance.load
        assert isinstance(load, Load)
        return load

    def answer(self, ratio: float) -> bool:
        """Was it listened to?"""
        placement = Placement(ticket_of(1_000), "pool/0", "pool", "balanced", "m", self.now_s)
        self.predictor.started(placement, self.instance, self.now_s)
        before = self.load.ttft_drift.samples
        expected_s = placement.features.expected_first_at_s - self.now_s
        placement.first_token_at_s = self.now_s + expected_s * ratio
        self.predictor.first_token(placement, self.instance, placement.first_token_at_s)
        was_heard = self.load.ttft_drift.samples > before
        self.now_s += max(expected_s * ratio, 1.0)
        self.predictor.finished(placement, self.instance, Outcome(Result.COMPLETED, output_tokens=1), self.now_s)
        return was_heard


def test_of_known_answers_one_in_many_is_listened_to() -> None:
    known = Known()
    turns = [known.answer(1.0) for _ in range(4 * FIRST_EVERY)]
    assert sum(turns) == 4


def test_an_odd_answer_has_the_next_one_listened_to_whenever_its_turn_would_be() -> None:
    known = Known()
    while not known.answer(1.0):
        pass
    assert not known.answer(ODD_RATIO * 1.1)  # it is not its turn, and what is odd must not be all that is learnt from
    assert known.answer(1.0)
    assert not known.answer(1.0)  # it was chance


def test_answers_that_stay_odd_are_all_listened_to_until_they_are_expected() -> None:
    known = Known()
    while not known.answer(1.0):
        pass
    known.answer(2 * ODD_RATIO)
    turns = [known.answer(2 * ODD_RATIO) for _ in range(4)]
    while known.load.first_every == 1:
        turns.append(known.answer(1.0))
        assert len(turns) < 10 * CALM_SAMPLES
    assert all(turns)
    assert len(turns) > CALM_SAMPLES


@pytest.mark.parametrize("slower", [2.0, 0.5])
def test_a_change_that_first_tokens_and_the_pace_both_show_is_believed_once(slower: float) -> None:
    known = Known()
    load = known.load
    for drift in (load.step_drift, load.ttft_drift):
        drift.calm, drift.steady = CALM_SAMPLES, drift.value
    before = load.ttft_drift.value
    load.ttft_drift.value *= slower  # first tokens were quicker to show it
    sequences, seconds = 4.0, load.key.step.predict([1.0, 4.0, 4.0, 0.0]) * load.step_drift.value
    for _ in range(6):
        learn_pace(load, [1.0, sequences, 4.0, 0.0], seconds * slower)
    assert load.step_drift.value == pytest.approx(slower, rel=0.1)
    assert load.ttft_drift.value == pytest.approx(before * slower, rel=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_counted_is_what_runs_there_whatever_the_order(seed: int) -> None:
    chance, predictor = Random(seed), LearningPredictor(TOLD)
    instance, now_s = Instance(spec_of("pool/0")), 0.0
    running: list[Placement] = []

    def check(load: Load) -> None:
        read = [p.features for p in running if p.features.first_steps >= 0.0]
        waiting = [p.features for p in running if p.features.first_steps < 0.0]
        assert load.decoding == sum(note.sequences for note in read)
        assert load.shown == sum(note.seen for note in read)
        assert [p for p in running if p.features in waiting] == list(load.pending)
        assert load.pending_k == pytest.approx(sum(note.new_k for note in waiting), abs=1e-9)
        tokens = sum(note.context_tokens + note.sequences * (load.steps - note.first_steps) for note in read)
        assert load.context_k == pytest.approx(tokens / 1000, abs=1e-6)

    for _ in range(300):
        now_s += chance.expovariate(20.0)
        what = chance.random()
        if what < 0.4 or not running:
            ticket = ticket_of(chance.randrange(1, 4_000))
            ticket.request.stream, ticket.request.n = chance.random() < 0.7, chance.choice((1, 1, 3))
            placement = Placement(ticket, "pool/0", "pool", "balanced", "m", now_s)
            instance.residents[placement] = None
            running.append(placement)
            predictor.started(placement, instance, now_s)
        elif what < 0.7:
            placement = chance.choice(running)
            if placement.ticket.request.stream and not placement.first_token_at_s:
                placement.first_token_at_s = placement.last_token_at_s = now_s
                placement.output_tokens = 1
                predictor.first_token(placement, instance, now_s)
        elif what < 0.8:
            for placement in running:
                if placement.first_token_at_s:
                    placement.output_tokens += chance.randrange(20)
                    placement.last_token_at_s = now_s
            predictor.passing(instance, now_s)
        else:
            placement = running.pop(chance.randrange(len(running)))
            del instance.residents[placement]
            ended = chance.choice((Result.COMPLETED, Result.FAILED, Result.CLIENT_GONE))
            predictor.finished(placement, instance, Outcome(ended, output_tokens=chance.randrange(50)), now_s)
        check(instance.load)
    while running:
        placement = running.pop()
        del instance.residents[placement]
        predictor.finished(placement, instance, Outcome(Result.FAILED), now_s)
    check(instance.load)
    assert (instance.load.pending_k, instance.load.context_k, instance.load.probe) == (0.0, 0.0, None)


def test_lengths_counted_a_batch_at_a_time_say_what_each_of_them_says() -> None:
    chance, alone, batched = Random(4), Lengths(), Lengths()
    told = 0
    for _ in range(40 * BATCH_ANSWERS):
        tokens = max(round(2 ** chance.gauss(7.0, 1.0)), 1)
        batched.learn("t", 1, "chatbot", tokens, False)
        line = alone._lines.get(("t", 1, "chatbot"))
        if line is not None:
            line.batch = 1
        alone.learn("t", 1, "chatbot", tokens, False)
        told += 1
    assert batched.expected("t", 1, "chatbot", 256, None) == pytest.approx(alone.expected("t", 1, "chatbot", 256, None), rel=0.03)
    assert told - batched._lines[("t", 1, "chatbot")].sketches[2].seen < BATCH_ANSWERS
