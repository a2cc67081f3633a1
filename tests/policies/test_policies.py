"""Every policy file: what all of them promise, and the one thing that sets each apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import policies
from gateway.core.decide import Core
from gateway.core.flow import InstanceSpec, Outcome, Placement, Refuse, Result, SloTargets, Start
from gateway.core.policy import Verdict
from gateway.predict.predictor import LearningPredictor
from tests.core import conftest as made

FACTS = {"premium": (7.7, 0.004, 0.076, 24.0), "balanced": (13.8, 0.004, 0.295, 110.0), "cost": (10.4, 0.004, 0.425, 330.0)}
SPEEDS = {"premium": 6.0, "balanced": 2.0, "cost": 1.0}
EVENTS = st.lists(
    st.tuples(st.sampled_from(("arrive", "arrive", "arrive", "finish", "down", "up")), st.integers(0, 999), st.floats(0.0, 0.4)),
    max_size=50,
)


def spec(name: str, tier: str, limit: int = 3) -> InstanceSpec:
    return made.instance(name, tier, limit, speed_per_s=SPEEDS[tier], engine_config=tier)


SPECS = [spec("premium/a", "premium"), spec("premium/b", "premium"), spec("balanced/a", "balanced"), spec("cost/a", "cost", 2)]


def core_of(policy: str, specs: Sequence[InstanceSpec] = SPECS) -> Core:
    predictor = LearningPredictor({each.predictor_key: FACTS[each.tier] for each in specs})
    core = Core(made.settings(), policies.load(policy)(Random(3)), predictor)
    core.instances_changed(list(specs), 0.0)
    return core


class Play:
    """Events to a core; what it did, and whether it ever used what it may not."""

    def __init__(self, policy: str) -> None:
        self.core, self.now_s, self.told, self.number = core_of(policy), 10.0, list[str](), 0
        self.running: list[Placement] = []

    def do(self, actions: list) -> None:
        for action in actions:
            if isinstance(action, Start):
                instance = self.core.fleet.by_id[action.placement.instance_id]
                assert instance.healthy
                assert instance.in_flight <= instance.limit
                self.running.append(action.placement)
                self.told.append(f"{action.placement.ticket.request.request_id} > {instance.spec.instance_id}")
            elif isinstance(action, Refuse):
                self.told.append(f"{action.ticket.request.request_id} refused")

    def play(self, kind: str, number: int, passes_s: float) -> None:
        self.now_s += passes_s
        name = SPECS[number % len(SPECS)].instance_id
        if kind == "arrive":
            self.number += 1
            hashes = (number % 3, number % 7)
            request = made.request(
                f"r{self.number}", arrived_at_s=self.now_s, tenant=f"t{number % 3}", prefix_hashes=hashes, prompt_tokens=50 + number * 5
            )
            self.do(self.core.arrived(request, made.tag(number % 5, 1.0 + number % 4), self.now_s))
        elif kind == "finish" and self.running:
            placement = self.running.pop(number % len(self.running))
            outcome = Outcome(Result.COMPLETED, output_tokens=number + 1, e2e_s=1.0)
            self.do(self.core.finished(placement, outcome, self.now_s))
        elif kind in ("down", "up"):
            self.do(self.core.instance_health(name, kind == "up", self.now_s))


@pytest.mark.parametrize("policy", policies.names())
@settings(max_examples=15, deadline=None)
@given(events=EVENTS)
def test_a_policy_uses_only_healthy_instances_with_room_and_decides_alike_when_all_is_alike(
    policy: str, events: list[tuple[str, int, float]]
) -> None:
    told = []
    for _ in range(2):
        game = Play(policy)
        for event in events:
            game.play(*event)
        told.append(game.told)
    assert told[0] == told[1]


@pytest.mark.parametrize("policy", policies.names())
def test_a_policy_with_nowhere_to_go_says_so(policy: str) -> None:
    core = core_of(policy)
    for each in SPECS:
        core.instance_health(each.instance_id, False, 1.0)
    ticket = core.ticket(made.request(), made.tag(2))
    ticket.model = made.MODEL
    assert isinstance(core.policy.place(ticket, core.fleet, 10.0), Verdict)


@pytest.mark.parametrize("policy", policies.names())
def test_a_policy_is_a_file_of_under_sixty_lines(policy: str) -> None:
    lines = (Path(policies.__file__).parent / f"{policy}.py").read_text().splitlines()
    assert len(lines) < 60
    assert lines[0].startswith('"""')


def places(policy: str, count: int = 4, specs: Sequence[InstanceSpec] = SPECS, rank: int = 1, **more: object) -> list[str]:
    """Where so many requests go that arrive one after the other and stay."""
    core = core_of(policy, specs)
    actions = [action for _ in range(count) for action in core.arrived(made.request(**more), made.tag(rank, 5.0), 10.0)]
    return [action.placement.instance_id for action in actions if isinstance(action, Start)]


def test_round_robin_takes_each_in_its_turn() -> None:
    assert sorted(places("round_robin")) == sorted(each.instance_id for each in SPECS)


def test_round_robin_by_speed_gives_each_its_share_and_never_all_of_it_at_once() -> None:
    specs = [
        replace(made.instance(f"premium/{name}", limit=100), speed_per_s=speed) for name, speed in (("a", 3.0), ("b", 2.0), ("c", 1.0))
    ]
    turns = [name[-1] for name in places("round_robin_speed", 60, specs)]
    assert [turns.count(name) for name in "abc"] == [30, 20, 10]
    assert "".join(turns[:6]).count("aa") == 0


def test_least_request_fills_evenly_and_its_speed_aware_twin_by_speed() -> None:
    assert sorted(places("least_request")) == sorted(each.instance_id for each in SPECS)
    assert [name.split("/")[0] for name in places("least_request_speed")] == ["premium"] * 4


def test_two_choices_by_chance_are_fewer_than_all_and_the_better_one_is_taken() -> None:
    chosen = places("power_of_two", 6)
    assert len(set(chosen)) > 1
    assert chosen.count("cost/a") <= 1


def test_one_queue_and_deadlines_fill_what_is_least_full() -> None:
    for policy in ("fifo", "edf"):
        assert len(set(places(policy))) == 4


@pytest.mark.parametrize(("policy", "first"), [("fifo", "early"), ("fifo_fastest", "early"), ("edf", "tight"), ("edf_fastest", "tight")])
def test_a_queue_goes_by_arrival_or_by_deadline(policy: str, first: str) -> None:
    core = core_of(policy, [spec("premium/a", "premium", 1)])
    [busy] = core.arrived(made.request(), made.tag(3, 5.0), 10.0)
    core.arrived(made.request("early", arrived_at_s=10.0), made.tag(3, 9.0), 10.0)
    core.arrived(made.request("tight", arrived_at_s=10.1), made.tag(3, 2.0), 10.1)
    [start] = core.finished(busy.placement, made.completed(), 10.2)
    assert start.placement.ticket.request.request_id == first


@pytest.mark.parametrize("policy", ["edf_fastest", "fifo_fastest"])
def test_fastest_first_leaves_the_fastest_only_when_it_is_full(policy: str) -> None:
    assert [name.split("/")[0] for name in places(policy, 7)] == ["premium"] * 6 + ["balanced"]


def test_static_pools_never_spill_over() -> None:
    assert {name.split("/")[0] for name in places("static_pools", 9)} == {"premium"}


def test_a_known_beginning_goes_where_it_went() -> None:
    specs = [spec(f"premium/{letter}", "premium", 8) for letter in "abc"]
    core = core_of("prefix_affinity", specs)
    went = []
    for hashes in ((1, 2), (7, 8), (1, 2)):
        [start] = core.arrived(made.request(prefix_hashes=hashes), made.tag(1, 5.0), 10.0)
        went.append(start.placement.instance_id)
    assert went[0] == went[2] != went[1]


def test_lowest_latency_goes_where_answers_were_quickest() -> None:
    core = core_of("lowest_latency", SPECS[:2])
    for _ in range(2):
        [start] = core.arrived(made.request(), made.tag(1, 5.0), 10.0)
        slow = start.placement.instance_id == "premium/a"
        core.finished(start.placement, Outcome(Result.COMPLETED, output_tokens=10, e2e_s=9.0 if slow else 1.0), 11.0)
    [start] = core.arrived(made.request(), made.tag(1, 5.0), 12.0)
    assert start.placement.instance_id == "premium/b"


def test_queue_and_memory_avoid_what_still_has_to_read() -> None:
    core = core_of("queue_kv", SPECS[:2])
    [first] = core.arrived(made.request(prompt_tokens=9_000), made.tag(1, 5.0), 10.0)
    others = [core.arrived(made.request(prompt_tokens=100), made.tag(1, 5.0), 10.0)[0].placement.instance_id for _ in range(3)]
    assert first.placement.instance_id not in others


def test_headroom_takes_what_has_most_to_spare() -> None:
    assert {name.split("/")[0] for name in places("headroom", 4)} == {"premium"}


def test_tier_preference_fills_one_instance_of_the_first_tier_before_the_next() -> None:
    assert len(set(places("tier_preference", 2))) == 1
    assert places("tier_preference", 2)[0].startswith("premium")


def test_cheapest_feasible_takes_the_cheapest_that_keeps_the_promise_and_the_dear_one_where_only_that_can() -> None:
    core = core_of("cheapest_feasible")
    for ttft_s, tier in ((5.0, "cost"), (0.2, "premium")):
        [start] = core.arrived(made.request(prompt_tokens=4_000), made.tag(2, ttft_s), 10.0)
        assert start.placement.tier == tier


def test_best_value_pays_for_speed_only_where_the_promise_needs_it() -> None:
    core = core_of("best_value")
    [short] = core.arrived(made.request(prompt_tokens=50, max_output_tokens=8), made.tag(2, 5.0), 10.0)
    [long] = core.arrived(made.request(prompt_tokens=6_000), made.tag(2, 0.3), 10.0)
    assert short.placement.tier == "cost"
    assert long.placement.tier == "premium"


TWO = [spec("premium/a", "premium", 32), spec("premium/b", "premium", 32)]


def tight(core: Core, count: int = 1, tenant: str = "t") -> list[str]:
    """Answers of some 200 tokens that have little time; where they went."""
    went = []
    for _ in range(count):
        tag = replace(made.tag(0, 0.3), targets=SloTargets(0.3, 0.03, 4.0, 4.0), output_tokens=200)
        [start] = core.arrived(made.request(max_output_tokens=None, tenant=tenant), tag, 10.0)
        went.append(start.placement.instance_id)
    return went


def long_document(core: Core, name: str = "", e2e_s: float = 120.0, **more: object) -> str:
    tag = replace(made.tag(3, 2.0), use_case="summarization_long", targets=SloTargets(2.0, 0.045, e2e_s, e2e_s), output_tokens=1500)
    actions = core.arrived(made.request(name, prompt_tokens=10_000, max_output_tokens=None, **more), tag, 10.0)
    return next((a.placement.instance_id for a in actions if isinstance(a, Start)), "")


def test_best_value_keeps_a_long_document_away_from_where_tight_answers_stream() -> None:
    core = core_of("best_value", TWO)
    [where] = tight(core)
    assert long_document(core) not in (where, "")


@pytest.mark.parametrize("worth", [1.0, 4.0])
def test_best_value_keeps_a_long_document_away_from_where_a_class_worth_more_has_streamed(worth: float) -> None:
    dearer = [replace(spec(f"premium/{name}", "premium", 32), usd_per_hour=9.0) for name in "bc"]
    core = core_of("best_value", [TWO[0], *dearer])
    classes = tuple(replace(each, worth=worth if each.rank == 0 else 1.0) for each in core.settings.classes)
    core.settings_changed(replace(core.settings, classes=classes), 9.0)
    tag = replace(made.tag(0, 0.3), targets=SloTargets(0.3, 0.03, 4.0, 4.0), output_tokens=200)
    for other in ("premium/b", "premium/c"):
        core.instance_health(other, False, 9.0)
    for number in range(20):  # one after the other: nobody streams when the next comes, nor when the document does
        at_s = 10.0 + 2.0 * number
        [start] = core.arrived(made.request(max_output_tokens=None, arrived_at_s=at_s), tag, at_s)
        core.first_token(start.placement, at_s + 0.02)
        core.finished(start.placement, Outcome(Result.COMPLETED, output_tokens=200, ttft_s=0.02, tpot_s=0.008, e2e_s=1.6), at_s + 1.6)
    for other in ("premium/b", "premium/c"):
        core.instance_health(other, True, 50.0)
    document = replace(made.tag(3, 2.0), targets=SloTargets(2.0, 0.045, 120.0, 120.0), output_tokens=1500)
    [start] = core.arrived(made.request(prompt_tokens=10_000, max_output_tokens=None, arrived_at_s=50.0), document, 50.0)
    assert (start.placement.instance_id == "premium/a") is (worth == 1.0)


def test_best_value_uses_the_cheaper_card_while_nothing_misses_and_the_surer_one_once_something_has() -> None:
    core = core_of("best_value")
    tag = replace(made.tag(3, 5.0), targets=SloTargets(5.0, 0.045, 18.0, 18.0), output_tokens=500)

    def start_at(now_s: float) -> Placement:
        [start] = core.arrived(made.request(max_output_tokens=None, arrived_at_s=now_s), tag, now_s)
        return start.placement

    calm = start_at(10.0)
    assert calm.tier == "cost"
    core.finished(calm, Outcome(Result.COMPLETED, output_tokens=500, ttft_s=6.0, tpot_s=0.011, e2e_s=11.0), 21.0)
    assert start_at(21.0).tier == "premium"


def test_best_value_lets_wait_what_would_cost_those_who_stream_more_than_it_brings() -> None:
    core = core_of("best_value", TWO[:1])
    tight(core, 10)
    stakes_per_s = core.fleet.by_id["premium/a"].stake_per_s
    assert long_document(core, "heavy") == ""
    [light] = tight(core)  # though it came later: it asks for little
    assert light == "premium/a"
    assert core.fleet.by_id["premium/a"].stake_per_s > stakes_per_s > 0.0


@pytest.mark.parametrize(("ttft_s", "tier"), [(1.4, "balanced"), (1.05, "premium")])
def test_best_value_starts_nothing_where_its_first_token_would_clearly_be_late(ttft_s: float, tier: str) -> None:
    """A balanced card reads 9,000 tokens in 1.1 s and more; narrowly in time is good enough when the premium one has its hands full."""
    core = core_of("best_value", [TWO[0], spec("balanced/a", "balanced", 32)])
    tight(core, 5)
    tag = replace(made.tag(3), use_case="summarization_long", targets=SloTargets(ttft_s, 0.045, 120.0, 120.0), output_tokens=500)
    [start] = core.arrived(made.request(prompt_tokens=9_000, max_output_tokens=None), tag, 10.0)
    assert start.placement.tier == tier


def test_best_value_serves_who_is_late_only_where_nobody_minds() -> None:
    core = core_of("best_value", TWO[:1])
    tight(core, 2)
    assert long_document(core, "hopeless", e2e_s=1.0) == ""
    [queued] = core.queues.tickets()
    assert queued.late
    ended = [core.finished(placement, made.completed(), 11.0) for placement in list(core.fleet.by_id["premium/a"].residents)]
    assert ended[-1][0].placement.ticket is queued
    assert core.fleet.by_id["premium/a"].stake_per_s < 1e-6  # it has nothing to lose


def test_best_value_takes_less_from_a_tenant_that_has_had_little() -> None:
    core = core_of("best_value", TWO[:1])
    core.shares.took("loud", 1e7)
    core.shares.took("quiet", 1e5)
    tight(core, 6, tenant="loud")
    assert long_document(core, "quiet one's", tenant="quiet") == "premium/a"
