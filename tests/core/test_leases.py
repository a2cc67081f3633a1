"""An instance that is shared with other workers: the core uses its leased slots, no more, and takes nothing away from what runs."""

from __future__ import annotations

import pytest

from gateway.core.flow import UNSHARED, Lease, Refuse, Start
from tests.core.conftest import completed, core_with, instance, request, tag

A = "premium/a"


def started(actions: list[object]) -> list[Start]:
    return [action for action in actions if isinstance(action, Start)]


def test_no_more_than_the_leased_slots_are_used() -> None:
    core = core_with(instance(limit=8))
    core.leased([Lease(A, 3)], 10.0)
    assert len(started([action for _ in range(8) for action in core.arrived(request(), tag(3), 10.0)])) == 3


def test_who_waits_is_served_as_soon_as_the_lease_grows() -> None:
    core = core_with(instance(limit=8))
    core.leased([Lease(A, 0)], 10.0)
    for _ in range(4):
        assert not started(core.arrived(request(), tag(3), 10.0))
    assert len(started(core.leased([Lease(A, 3)], 10.1))) == 3


def test_a_shrunken_lease_lets_what_runs_finish_and_starts_nothing_in_its_place() -> None:
    core = core_with(instance(limit=4))
    core.leased([Lease(A, 2)], 10.0)
    running = [core.arrived(request(), tag(3), 10.0)[0].placement for _ in range(2)]
    core.arrived(request(), tag(3), 10.0)
    core.leased([Lease(A, 1)], 10.1)
    assert core.fleet.by_id[A].in_flight == 2
    assert not started(core.finished(running[0], completed(), 10.2))
    assert len(started(core.finished(running[1], completed(), 10.3))) == 1


def test_loose_work_leaves_room_for_tight_work_of_other_workers() -> None:
    core = core_with(instance(limit=10))
    core.leased([Lease(A, 6)], 10.0)
    core.fleet.others(core.fleet.by_id[A], 4, 0, 0)
    assert len(started([action for _ in range(6) for action in core.arrived(request(), tag(4), 10.0)])) == 2  # its ceiling is 0.6 of 10
    assert started(core.arrived(request(), tag(0), 10.0))


@pytest.mark.parametrize("said", [7, 100])
def test_what_others_said_a_moment_ago_takes_no_slot_out_of_the_lease(said: int) -> None:
    core = core_with(instance(limit=8))
    core.leased([Lease(A, 4)], 10.0)
    core.fleet.others(core.fleet.by_id[A], said, 0, 0)
    assert len(started([action for _ in range(8) for action in core.arrived(request(), tag(0), 10.0)])) == 4


def test_many_choices_need_as_many_leased_slots() -> None:
    core = core_with(instance(limit=4))
    core.leased([Lease(A, 2)], 10.0)
    assert not started(core.arrived(request(n=3), tag(0), 10.0))
    assert started(core.leased([Lease(A, 3)], 10.1))


def test_more_choices_than_the_limit_need_the_whole_of_an_empty_instance() -> None:
    core = core_with(instance(limit=2))
    core.leased([Lease(A, 1)], 10.0)
    assert not started(core.arrived(request(n=5), tag(0), 10.0))
    assert started(core.leased([Lease(A, 2)], 10.1))


def test_a_tight_request_waits_for_a_slot_that_others_do_not_use_rather_than_being_refused() -> None:
    core = core_with(instance(limit=4))
    core.leased([Lease(A, 0)], 10.0)
    assert core.arrived(request(), tag(0), 10.0) == []
    core.fleet.others(core.fleet.by_id[A], 4, 0, 0)
    [refusal] = core.arrived(request(), tag(0), 10.0)
    assert isinstance(refusal, Refuse)


def test_an_instance_that_is_no_longer_shared_is_used_up_to_its_limit() -> None:
    core = core_with(instance(limit=3))
    core.leased([Lease(A, 1)], 10.0)
    core.leased([Lease(A, UNSHARED)], 10.1)
    assert len(started([action for _ in range(5) for action in core.arrived(request(), tag(0), 10.1)])) == 3


def test_a_lease_of_an_instance_that_has_left_is_nobodys() -> None:
    core = core_with(instance())
    assert core.leased([Lease("gone/x", 3)], 10.0) == []


def test_the_limit_others_have_found_is_taken_over_within_its_bounds() -> None:
    core = core_with(instance(limit=4, limit_pinned=False))
    core.leased([Lease(A, 1, limit=2), Lease("gone/x", 1, limit=9)], 10.0)
    assert core.fleet.by_id[A].limit == 2
    core.leased([Lease(A, 1, limit=99)], 10.0)
    assert core.fleet.by_id[A].limit == 4


def test_a_request_waits_for_the_lease_of_a_free_slot_where_it_is_served_best() -> None:
    core = core_with(instance("cost/a", tier="cost", limit=4), instance(limit=8))
    core.leased([Lease("cost/a", 4), Lease(A, 0, spare=8)], 10.0)
    ask = request()
    assert not started(core.arrived(ask, tag(0), 10.0))
    assert core.fleet.short
    ticket = core.trails.of(ask.request_id)
    assert ticket is not None
    assert [step[1] for step in ticket.trail] == ["leasing"]
    [start] = started(core.leased([Lease(A, 1, spare=7)], 10.001))
    assert start.placement.instance_id == A


def test_a_slot_that_turns_out_to_be_taken_is_not_waited_for() -> None:
    core = core_with(instance("cost/a", tier="cost", limit=4), instance(limit=8))
    core.leased([Lease("cost/a", 4), Lease(A, 0, spare=8)], 10.0)
    core.arrived(request(), tag(0), 10.0)
    [start] = started(core.leased([Lease(A, 0, spare=0)], 10.001))
    assert start.placement.instance_id == "cost/a"


def test_a_slot_that_others_wait_for_is_told_of_when_it_frees() -> None:
    core = core_with(instance(limit=8))
    core.leased([Lease(A, 2)], 10.0)
    [start] = started(core.arrived(request(), tag(3), 10.0))
    core.fleet.by_id[A].owed = True
    assert not core.fleet.short
    core.finished(start.placement, completed(), 10.1)
    assert core.fleet.short


def test_what_others_run_weighs_as_much_as_what_we_run() -> None:
    core = core_with(instance(limit=8))
    shared = core.fleet.by_id[A]
    core.fleet.others(shared, 2, 0, 500, 0.25, 0.02)
    assert (shared.stake_per_s, shared.tightest_itl_s) == (0.25, 0.02)
    [start] = started(core.arrived(request(), tag(4), 10.0))
    core.finished(start.placement, completed(), 10.1)
    assert (shared.stake_per_s, shared.tightest_itl_s) == (0.25, 0.02)
    core.fleet.others(shared, 0, 0, 0)
    assert (shared.stake_per_s, shared.tightest_itl_s) == (0.0, float("inf"))
