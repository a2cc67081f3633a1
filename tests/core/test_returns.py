"""What a refused caller is told, and whether it is true when it comes back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.config.gpus import shipped_gpus
from gateway.core.flow import Action, Refuse, RefuseReason
from gateway.core.returns import AGES_S, SPREAD_RATIO, Returns
from gateway.predict.predictor import LearningPredictor
from gateway.simulate.fleets import fleet
from gateway.simulate.knee import shipped_catalog
from gateway.simulate.run import Simulation, policy_named
from gateway.simulate.workload import Job, Workload, jobs
from tests.core.conftest import core_with, instance, request, tag

CATALOG = shipped_catalog()


def watched(fits_from_s: float, until_s: float) -> Returns:
    """Somebody is refused every second from 0 on, and one like it would be let in `fits_from_s` later and from then on."""
    returns = Returns(0.0)
    core = core_with(instance())
    begun: dict[str, float] = {}
    now_s = 0.0
    while now_s < until_s:
        ticket = core.ticket(request(f"at {now_s}", arrived_at_s=now_s), tag(), now_s)
        begun[ticket.request.request_id] = now_s
        returns.refused(ticket, now_s)
        now_s += 1.0
        returns.look(now_s, lambda req, _, at_s=now_s: at_s - begun[req.request_id] >= fits_from_s)
    return returns


def least(returns: Returns, predicted_s: float = 0.2) -> float:
    return min(returns.after_s(predicted_s) for _ in range(20))


def test_without_experience_the_average_is_told() -> None:
    assert least(Returns(0.0), 0.2) == pytest.approx(0.2)


@pytest.mark.parametrize(("fits_from_s", "told_s"), [(0.5, 1.0), (3.0, 4.0), (10.0, 16.0)])
def test_the_first_age_at_which_most_would_have_been_let_in_is_told(fits_from_s: float, told_s: float) -> None:
    assert least(watched(fits_from_s, 40.0)) == told_s


def test_while_a_jam_lasts_what_is_told_grows_with_it() -> None:
    told = [least(watched(1e9, until_s)) for until_s in (2.0, 5.0, 20.0, 70.0, 200.0)]
    assert told == [4.0, 8.0, 32.0, 120.0, 120.0]


def test_a_longer_average_is_not_cut_short_by_experience() -> None:
    assert least(watched(0.5, 40.0), 7.0) == 7.0


def test_what_was_learnt_in_a_jam_is_forgotten_after_it() -> None:
    returns = watched(1e9, 70.0)
    for second in range(70, 900):
        returns.look(float(second), lambda *_: True)
    assert least(returns) <= AGES_S[0]


def test_those_refused_together_are_not_asked_back_together() -> None:
    returns = watched(3.0, 40.0)
    told = [returns.after_s(0.2) for _ in range(8)]
    assert len(set(told)) == 8
    assert max(told) <= min(told) * (1 + SPREAD_RATIO)


def test_what_is_kept_of_the_refused_is_bounded() -> None:
    returns, core = Returns(0.0), core_with(instance())
    for _ in range(10_000):
        returns.refused(core.ticket(request(), tag(), 10.0), 10.0)
    assert len(returns._watched) <= 64


class Returning(Simulation):
    """Who is refused comes back once, after `obedience` times what it was told."""

    obedience = 1.0

    def __init__(self, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, **more)  # type: ignore[arg-type]
        self.back: set[str] = set()

    def _do(self, actions: list[Action], now_s: float) -> None:
        for action in actions:
            if isinstance(action, Refuse) and action.reason is RefuseReason.CANNOT_MEET_SLO:
                job: Job = action.ticket.handle.job
                if job.job_id not in self.back:
                    again = replace(job, job_id=f"{job.job_id} again")
                    self.back.add(again.job_id)
                    self._open += 1
                    self._at(now_s + action.retry_after_s * self.obedience, lambda at_s, job=again: self._returns(job, at_s))
        super()._do(actions, now_s)

    def _returns(self, job: Job, now_s: float) -> None:
        self._open -= 1
        self._arrival(replace(job, at_s=now_s), now_s)


def let_in(text: str, rate: float, obedience: float, mix: dict[str, float] | None = None) -> float:
    """Of those who were refused and came back, the share that was not refused again."""
    made = fleet(text, CATALOG, shipped_gpus())
    taken = came = 0
    for seed in (1, 2, 3):
        sent = jobs(Workload(mix=mix), CATALOG, rate, 90.0, seed)
        predictor = LearningPredictor(made.facts)
        run = Returning(made, sent, CATALOG, policy_named("best_value"), lambda machines, p=predictor: p, span_s=90.0, seed=seed)
        run.obedience = obedience
        again = [record for record in run.run().records if record.job.job_id in run.back]
        came += len(again)
        taken += sum(record.refuse_reason is None for record in again)
    assert came > 60
    return taken / came


@pytest.mark.parametrize(
    ("text", "rate", "mix"),
    [("2xL40S:w8", 6.0, {"chatbot": 1.0, "code_completion": 1.0}), ("1xH100", 20.0, {"chatbot": 1.0})],
    ids=["two cards at twice what they can", "one card in overload"],
)
def test_who_comes_back_when_told_is_let_in_and_who_does_not_wait_is_not(text: str, rate: float, mix: dict[str, float] | None) -> None:
    obeyed, hurried = (let_in(text, rate, obedience, mix) for obedience in (1.0, 0.05))
    assert obeyed >= 0.5
    assert obeyed >= hurried + 0.2
