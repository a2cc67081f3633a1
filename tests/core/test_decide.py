"""What the core promises: told what happened and when, it says what to do."""

from __future__ import annotations

from random import Random

import pytest

from gateway import policies
from gateway.core.decide import Core
from gateway.core.flow import CoreSettings, Degrade, FailReason, Mode, Outcome, QueueLimits, Refuse, RefuseReason, Result, Start
from gateway.core.trail import tell
from gateway.predict.predictor import LearningPredictor
from tests.core.conftest import MODEL, completed, core_with, instance, request, settings, tag


def test_a_request_goes_to_the_preferred_tier_that_has_room() -> None:
    core = core_with(instance("cost/a", "cost"), instance("premium/a", "premium"))
    [first] = core.arrived(request(), tag(0), 10.0)
    [second] = core.arrived(request(), tag(0), 10.0)
    assert (first.placement.tier, second.placement.tier) == ("premium", "cost")


def test_a_late_request_lets_the_one_that_can_still_be_saved_go_first() -> None:
    core = core_with(instance(), instance("premium/b"))
    busy = core.arrived(request(), tag(3), 10.0)[0].placement
    core.arrived(request(), tag(3), 10.0)
    core.arrived(request("late"), tag(3, ttft_s=0.21), 10.0)
    core.arrived(request("savable"), tag(3, ttft_s=0.9), 10.0)
    [start] = core.finished(busy, completed(), 10.25)
    assert start.placement.ticket.request.request_id == "savable"


def test_earliest_deadline_goes_first() -> None:
    core = core_with(instance())
    busy = core.arrived(request(), tag(3), 10.0)[0].placement
    core.arrived(request("loose"), tag(4), 10.0)
    core.arrived(request("tight"), tag(3), 10.01)
    [start] = core.finished(busy, completed(), 10.1)
    assert start.placement.ticket.request.request_id == "tight"


def test_one_tenants_flood_does_not_hold_up_another() -> None:
    core = core_with(instance())
    placement = core.arrived(request(tenant="loud"), tag(3), 10.0)[0].placement
    for number in range(20):
        core.arrived(request(f"loud{number}", tenant="loud"), tag(3), 10.0)
    for number in range(3):
        core.arrived(request(f"quiet{number}", tenant="quiet"), tag(3), 10.1)
    served = []
    for step in range(8):
        [start] = core.finished(placement, completed(), 10.2 + step / 100)
        placement = start.placement
        served.append(placement.ticket.request.tenant)
    assert served.count("quiet") == 3
    assert set(served[:3]) == {"quiet", "loud"}


def test_a_loose_class_leaves_room_on_an_instance_for_tight_ones() -> None:
    core = core_with(instance(limit=10))
    started = [action for _ in range(12) for action in core.arrived(request(), tag(4), 10.0)]
    assert len(started) == 6  # its ceiling is 0.6
    assert isinstance(core.arrived(request(), tag(0), 10.0)[0], Start)


def test_a_full_queue_is_refused_by_count_and_by_bytes() -> None:
    core = core_with(instance(), limits=QueueLimits(max_requests=2, max_bytes=1_000))
    core.arrived(request(), tag(4), 10.0)
    core.arrived(request(), tag(4), 10.0)
    core.arrived(request(), tag(4), 10.0)
    [count] = core.arrived(request(), tag(4), 10.0)
    [big] = core.arrived(request(body_bytes=2_000), tag(3), 10.0)
    assert isinstance(count, Refuse)
    assert (count.reason, big.reason) == (RefuseReason.QUEUE_FULL, RefuseReason.QUEUE_BYTES)
    assert count.retry_after_s > 0


def test_a_request_that_would_wait_too_long_is_told_so_at_once_and_what_would_be_taken() -> None:
    core = core_with(instance())
    core.arrived(request(), tag(0), 10.0)
    [refuse] = core.arrived(request(), tag(0), 10.0)
    assert isinstance(refuse, Refuse)
    assert refuse.reason is RefuseReason.CANNOT_MEET_SLO
    assert refuse.looser_class == "deferred"


def test_a_caller_that_accepts_it_gets_a_looser_class_instead() -> None:
    core = core_with(instance())
    busy = core.arrived(request(), tag(0), 10.0)[0].placement
    [degrade] = core.arrived(request("yielding", may_degrade=True), tag(0), 10.0)
    [start] = core.finished(busy, completed(), 10.5)
    assert isinstance(degrade, Degrade)
    assert start.placement.ticket.degraded_from == "instant"
    assert start.placement.ticket.tag.experience_class == "deferred"


def test_deferred_and_batch_are_never_refused_for_load() -> None:
    core = core_with(instance())
    actions = [action for number in range(40) for action in core.arrived(request(), tag(3 + number % 2), 10.0)]
    assert [type(action) for action in actions] == [Start]


def test_what_waited_longer_than_its_class_may_is_refused() -> None:
    core = core_with(instance())
    core.arrived(request(), tag(3), 10.0)
    core.arrived(request("old"), tag(3), 10.0)
    [refuse] = core.tick(60.0)
    assert (refuse.ticket.request.request_id, refuse.reason) == ("old", RefuseReason.EXPIRED)


def test_observing_places_everything_at_once_and_refuses_nothing() -> None:
    core = core_with(instance(), mode=Mode.OBSERVE)
    actions = [core.arrived(request(), tag(0), 10.0) for _ in range(30)]
    assert all(isinstance(action, Start) for [action] in actions)


def test_no_instance_is_no_capacity_and_a_fallback_model_is_tried_first() -> None:
    core = core_with(instance("b/b", model="other"))
    [refuse] = core.arrived(request(), tag(), 10.0)
    [start] = core.arrived(request(fallback_models=("missing", "other")), tag(), 10.0)
    assert refuse.reason is RefuseReason.NO_CAPACITY
    assert start.placement.model == "other"


def test_who_waits_for_a_model_that_dies_goes_on_with_its_fallback_and_new_ones_come_back_when_it_does() -> None:
    core = core_with(instance("a/1", limit=1), instance("b/1", model="other", limit=4), instance("b/2", model="other", limit=4))
    holder = core.arrived(request(), tag(3), 10.0)[0].placement
    assert core.arrived(request("waits", fallback_models=("other",)), tag(3), 10.0) == []
    assert core.arrived(request("loyal"), tag(3), 10.0) == []
    ends = {
        action.ticket.request.request_id if isinstance(action, Refuse) else action.placement.ticket.request.request_id: action
        for action in core.instance_health("a/1", False, 10.1)
    }
    assert ends["waits"].placement.model == "other"
    assert ends["loyal"].reason is RefuseReason.NO_CAPACITY
    core.failed(holder, FailReason.CUT, 10.2, False)
    core.instance_health("a/1", True, 11.0)
    [start] = core.arrived(request(fallback_models=("other",), arrived_at_s=11.0), tag(), 11.0)
    assert start.placement.model == MODEL


def test_models_do_not_wait_for_one_another() -> None:
    core = core_with(instance("a/1", limit=1), instance("b/1", model="other", limit=1))
    core.arrived(request(), tag(3), 10.0)
    assert core.arrived(request(), tag(3), 10.0) == []
    [start] = core.arrived(request(model="other"), tag(4), 10.0)
    assert start.placement.instance_id == "b/1"


def test_a_request_takes_memory_only_where_its_prompt_and_expected_answer_fit() -> None:
    core = core_with(instance("premium/a", limit=8, kv_tokens=400), instance("balanced/b", "balanced", limit=8, kv_tokens=1_000))
    where = []
    for tokens in (100, 100, 200, 100):  # and 50 each for the answer
        [start] = core.arrived(request(prompt_tokens=tokens), tag(1), 10.0)
        where.append((start.placement, start.placement.instance_id))
    assert [name for _, name in where] == ["premium/a", "premium/a", "balanced/b", "balanced/b"]
    core.finished(where[0][0], completed(), 10.1)
    [start] = core.arrived(request(prompt_tokens=200, arrived_at_s=10.1), tag(1), 10.1)
    assert start.placement.instance_id == "premium/a"


def test_an_answer_that_is_longer_than_expected_takes_the_memory_it_takes() -> None:
    core = core_with(instance(limit=8, kv_tokens=500))
    placement = core.arrived(request(), tag(3), 10.0)[0].placement
    placement.first_token_at_s, placement.output_tokens = 10.1, 300
    core.tick(11.0)
    assert core.arrived(request(arrived_at_s=11.0), tag(3), 11.0) == []
    [start] = core.finished(placement, completed(), 12.0)
    assert start.placement.started_at_s == 12.0


def test_what_is_larger_than_any_memory_is_left_to_the_largest_engine_to_judge() -> None:
    core = core_with(instance("premium/a", limit=8, kv_tokens=400), instance("balanced/b", "balanced", limit=8, kv_tokens=1_000))
    [start] = core.arrived(request(prompt_tokens=5_000), tag(3), 10.0)
    assert start.placement.instance_id == "balanced/b"


def test_a_failed_attempt_goes_to_another_instance_and_never_back() -> None:
    core = core_with(instance("premium/a", limit=2), instance("premium/b", limit=2))
    [start] = core.arrived(request(), tag(), 10.0)
    [again] = core.failed(start.placement, FailReason.CONNECT, 10.1, True)
    [over] = core.failed(again.placement, FailReason.CONNECT, 10.2, True)
    assert {start.placement.instance_id, again.placement.instance_id} == {"premium/a", "premium/b"}
    assert over.reason is RefuseReason.NO_CAPACITY
    assert all(not i.in_flight for i in core.fleet.by_id.values())


def test_who_leaves_the_queue_is_not_started_and_who_leaves_a_slot_frees_it() -> None:
    core = core_with(instance())
    holder = core.ticket(request("holder"), tag(3), 10.0)
    [start] = core.submit(holder, 10.0)
    waiter = core.ticket(request("waiter"), tag(3), 10.0)
    other = core.ticket(request("other"), tag(3), 10.0)
    core.submit(waiter, 10.0)
    core.submit(other, 10.0)
    assert core.gone(waiter, 10.1) == []
    [next_one] = core.gone(holder, 10.2)
    assert start.placement.ticket is holder
    assert next_one.placement.ticket is other


def test_a_batch_forms_within_its_window_and_never_past_what_the_promise_spares() -> None:
    core = core_with(instance("cost/a", "cost", limit=8, batch_window_s=0.2, batch_min=3))
    assert core.arrived(request(), tag(4), 10.0) == []
    assert core.arrived(request(), tag(4), 10.05) == []
    assert core.next_wake_at_s == pytest.approx(10.2)
    assert len(core.arrived(request(), tag(4), 10.1)) == 3
    tight = core.arrived(request(arrived_at_s=20.0), tag(0, ttft_s=0.1), 20.0)
    assert len(tight) == 1 or core.next_wake_at_s <= 20.0 + 0.25 * 0.1 + 1e-9


def test_what_is_held_for_a_batch_is_read_before_whoever_comes_next() -> None:
    core = Core(settings(), policies.load("best_value")(Random(0)), LearningPredictor({"H100|m|": (10.4, 0.004, 0.425, 330.0)}))
    core.instances_changed([instance("cost/a", "cost", limit=8, batch_window_s=0.2, batch_min=8)], 10.0)
    assert core.arrived(request("held", prompt_tokens=900), tag(4, ttft_s=2.0), 10.0) == []
    [first] = core.fleet.by_id["cost/a"].residents
    alone_s = first.prediction.ttft_s

    core.arrived(request("next", prompt_tokens=900), tag(4, ttft_s=2.0), 10.01)
    [_, second] = core.fleet.by_id["cost/a"].residents
    assert second.prediction.ttft_s > 1.7 * alone_s
    assert core.next_wake_at_s <= 10.01 + 0.25 * (2.0 - second.prediction.ttft_s)


def test_a_batch_waits_no_longer_than_the_tightest_of_it_can_spare() -> None:
    core = core_with(instance("cost/a", "cost", limit=8, batch_window_s=0.2, batch_min=3))
    core.arrived(request(), tag(4, ttft_s=0.4), 10.0)
    assert core.next_wake_at_s == pytest.approx(10.1)
    core.arrived(request(arrived_at_s=10.08), tag(4), 10.08)
    assert core.next_wake_at_s == pytest.approx(10.1)


def test_one_that_leaves_a_forming_batch_leaves_nothing_to_wait_for() -> None:
    core = core_with(instance("cost/a", "cost", limit=8, batch_window_s=0.2, batch_min=3))
    ticket = core.ticket(request(), tag(4))
    core.submit(ticket, 10.0)
    assert core.gone(ticket, 10.05) == []
    assert core.next_wake_at_s is None
    assert core.tick(10.3) == []


def test_a_batch_that_does_not_fill_starts_when_its_window_ends() -> None:
    core = core_with(instance("cost/a", "cost", limit=8, batch_window_s=0.2, batch_min=3))
    core.arrived(request(), tag(4), 10.0)
    assert core.tick(10.1) == []
    assert len(core.tick(10.2)) == 1


def test_an_instance_that_left_finishes_what_it_has_and_gets_nothing_new() -> None:
    core = core_with(instance("premium/a", limit=4), instance("premium/b", limit=4))
    [start] = core.arrived(request(), tag(), 10.0)
    kept = "premium/b" if start.placement.instance_id == "premium/a" else "premium/a"
    core.instances_changed([instance(kept, limit=4)], 10.1)
    placed = [core.arrived(request(), tag(0), 10.2)[0].placement.instance_id for _ in range(3)]
    core.finished(start.placement, completed(), 10.3)
    assert placed == [kept] * 3
    assert core.fleet.leaving == []


def test_an_instance_back_from_the_dead_starts_with_few_slots() -> None:
    core = core_with(instance(limit=8))
    core.instance_health("premium/a", False, 10.0)
    core.instance_health("premium/a", True, 20.0)
    started = [a for _ in range(8) for a in core.arrived(request(arrived_at_s=20.0), tag(0), 20.0) if isinstance(a, Start)]
    core.tick(60.0)
    assert len(started) == 2
    assert isinstance(core.arrived(request(arrived_at_s=60.0), tag(0), 60.0)[0], Start)


def test_other_settings_keep_everybody_in_line() -> None:
    core = core_with(instance())
    busy = core.arrived(request(), tag(3), 10.0)[0].placement
    core.arrived(request("waiting"), tag(3), 10.0)
    changed: CoreSettings = settings(tenant_weights={"t": 2.0})
    assert core.settings_changed(changed, 10.1) == []
    [start] = core.finished(busy, completed(), 10.2)
    assert start.placement.ticket.request.request_id == "waiting"


def test_a_decision_can_be_told_afterwards() -> None:
    core = core_with(instance())
    [start] = core.arrived(request("first"), tag(0), 10.0)
    core.arrived(request("second"), tag(0), 10.0)
    core.finished(start.placement, completed(), 11.0)
    first, second = (tell(core.trails.of(name)) for name in ("first", "second"))
    assert [step["what"] for step in first["steps"]] == ["started", "finished"]
    assert first["steps"][1]["got"]["result"] == "completed"
    assert [step["what"] for step in second["steps"]] == ["weighed", "refused"]
    assert second["steps"][1]["reason"] == "cannot_meet_slo"
    assert core.trails.of("unknown") is None


@pytest.mark.parametrize("policy", ["headroom", "best_value"])
def test_what_one_decision_considered_is_not_told_of_another(policy: str) -> None:
    core = Core(settings(mode=Mode.OBSERVE), policies.load(policy)(Random(0)), LearningPredictor({}))
    core.instances_changed([instance()], 0.0)
    [first] = core.arrived(request("first"), tag(0), 10.0)
    core.arrived(request("nowhere"), tag(0), 10.0)  # full: it starts all the same, and nothing was there to consider
    core.finished(first.placement, completed(), 10.1)
    core.finished(core.trails.of("nowhere").placement, completed(), 10.2)
    core.arrived(request("third", arrived_at_s=10.3), tag(0), 10.3)
    considered = {name: len(tell(core.trails.of(name))["steps"][0].get("candidates", [])) for name in ("first", "nowhere", "third")}
    assert considered["nowhere"] == 0
    assert considered["first"] >= 1 <= considered["third"]


def test_of_two_requests_under_one_id_the_later_is_told() -> None:
    core = core_with(instance(limit=2))
    core.arrived(request("same", prompt_tokens=10), tag(0), 10.0)
    core.arrived(request("same", prompt_tokens=20), tag(0), 10.0)
    assert tell(core.trails.of("same"))["prompt_tokens"] == 20


def test_the_newest_requests_are_told_of_and_of_older_ones_those_that_somebody_will_ask_about() -> None:
    core = core_with(instance(limit=100), trail_size=80)
    ends = {"well": completed(), "late": Outcome(Result.COMPLETED, output_tokens=50, ttft_s=0.9, tpot_s=0.01, e2e_s=1.0)}
    ends["failed"] = Outcome(Result.FAILED, fail_reason=FailReason.CUT)
    for name, outcome in ends.items():
        [start] = core.arrived(request(name), tag(0), 10.0)
        core.finished(start.placement, outcome, 11.0)
    core.arrived(request("running"), tag(0), 11.0)
    kept = ("late", "failed", "running")
    for n in range(10):
        [start] = core.arrived(request(f"then {n}"), tag(0), 12.0)
        core.finished(start.placement, completed(), 12.5)
    assert core.trails.of("well") is None
    assert [name for name in kept if core.trails.of(name) is None] == []
    assert [t.request.request_id for t in core.trails.newest()] == [*(f"then {n}" for n in range(9, -1, -1)), "running", "failed", "late"]


def test_what_is_remembered_has_a_bound_however_much_goes_wrong() -> None:
    core = core_with(instance(limit=1), trail_size=80)
    for n in range(300):
        core.arrived(request(f"r{n}"), tag(0), 10.0)
    assert len(list(core.trails.newest())) == 80
