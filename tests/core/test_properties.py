"""Whatever happens in whatever order: no limit is passed, nothing placed twice, nothing leaks; same events, same actions."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import policies
from gateway.core.decide import Core
from gateway.core.flow import UNSHARED, Cancel, Degrade, FailReason, Lease, Outcome, Placement, Refuse, Result, Start, Ticket
from gateway.predict.predictor import LearningPredictor
from tests.core import conftest as made

EVENT_KINDS = ("arrive", "arrive", "arrive", "first", "finish", "fail", "gone", "tick", "down", "up", "leave", "join", "lease")
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(EVENT_KINDS),
        st.integers(0, 1_000),
        st.floats(0.0, 0.5),
    ),
    max_size=60,
)
SPECS = [
    made.instance("premium/a", "premium", 2, kv_tokens=400),
    made.instance("balanced/b", "balanced", 3, kv_tokens=330),
    made.instance("cost/c", "cost", 2, batch_window_s=0.3, batch_min=2),
]
POLICIES = ("tier_preference", "best_value", "cheapest_feasible", "round_robin", "edf", "static_pools", "power_of_two")


class World:
    """Plays events to a core and keeps the books that a driver would."""

    def __init__(self, policy: str, predicts: bool = False) -> None:
        self.predictor = LearningPredictor({"H100|m|": (7.7, 0.004, 0.076, 24.0)}) if predicts else None
        self.core = Core(made.settings(), policies.load(policy)(Random(0)), self.predictor)
        self.core.instances_changed(list(SPECS), 0.0)
        self.now_s = 10.0
        self.tickets: list[Ticket] = []
        self.running: dict[int, Placement] = {}
        self.over: set[int] = set()
        self.told: list[tuple[str, str]] = []
        self.number = 0

    def do(self, actions: list) -> None:
        for action in actions:
            if isinstance(action, Start):
                ticket = action.placement.ticket
                assert id(ticket) not in self.running, "placed twice"
                assert id(ticket) not in self.over, "placed after its end"
                self.running[id(ticket)] = action.placement
                self.told.append(("start", f"{ticket.request.request_id}>{action.placement.instance_id}"))
            elif isinstance(action, Refuse):
                assert id(action.ticket) not in self.over, "refused after its end"
                assert id(action.ticket) not in self.running, "refused while it runs"
                self.over.add(id(action.ticket))
                self.told.append(("refuse", f"{action.ticket.request.request_id}>{action.reason.value}"))
            else:
                assert isinstance(action, Degrade | Cancel)
        for instance in (*self.core.fleet.by_id.values(), *self.core.fleet.leaving):
            assert instance.in_flight <= max(instance.limit, 1), "above its limit"
            assert instance.unprefilled_tokens >= 0
            assert instance.in_flight == sum(p.ticket.request.n for p in instance.residents)
            if instance.spec.kv_tokens:
                tickets = [placement.ticket for placement in instance.residents]
                needs = [t.request.prompt_tokens + int(t.expected_output_tokens) * t.request.n for t in tickets]
                assert instance.kv_left_tokens == instance.spec.kv_tokens - sum(needs) >= 0, "above its memory"

    def play(self, kind: str, number: int, passes_s: float) -> None:
        self.now_s += passes_s
        core, now_s = self.core, self.now_s
        placement = list(self.running.values())[number % len(self.running)] if self.running else None
        if kind == "arrive":
            self.number += 1
            rank = number % 5
            more = {"tenant": f"t{number % 3}", "arrived_at_s": now_s, "may_degrade": number % 7 == 0, "stream": number % 4 > 0}
            ticket = core.ticket(made.request(f"r{self.number}", **more), made.tag(rank), now_s)
            self.tickets.append(ticket)
            self.do(core.submit(ticket, now_s))
        elif kind == "first" and placement is not None:
            placement.first_token_at_s = now_s
            self.do(core.first_token(placement, now_s))
        elif kind == "finish" and placement is not None:
            self._ended(placement)
            self.do(core.finished(placement, Outcome(Result.COMPLETED, output_tokens=number), now_s))
        elif kind == "fail" and placement is not None:
            del self.running[id(placement.ticket)]
            self.do(core.failed(placement, FailReason.CONNECT, now_s, True))
        elif kind == "gone" and self.tickets:
            ticket = self.tickets[number % len(self.tickets)]
            if id(ticket) not in self.over:
                self.running.pop(id(ticket), None)
                self.over.add(id(ticket))
                self.do(core.gone(ticket, now_s))
        elif kind in ("down", "up"):
            self.do(core.instance_health(SPECS[number % 3].instance_id, kind == "up", now_s))
        elif kind == "leave":
            self.do(core.instances_changed([s for i, s in enumerate(SPECS) if i != number % 3], now_s))
        elif kind == "join":
            self.do(core.instances_changed(SPECS, now_s))
        elif kind == "lease":
            self.do(core.leased([Lease(SPECS[number % 3].instance_id, number % 5 if number % 5 < 4 else UNSHARED)], now_s))
        elif kind == "tick":
            self.do(core.tick(now_s))

    def _ended(self, placement: Placement) -> None:
        del self.running[id(placement.ticket)]
        self.over.add(id(placement.ticket))

    def end(self) -> None:
        """Everybody finishes; then nothing may be left."""
        self.play("join", 0, 0.0)
        for spec in SPECS:
            self.do(self.core.leased([Lease(spec.instance_id, UNSHARED)], self.now_s))
            self.do(self.core.instance_health(spec.instance_id, True, self.now_s))
        for _ in range(500):
            if not self.running:
                self.play("tick", 0, 0.001)
                assert self.running or not list(self.core.queues.tickets()), "somebody waits and everything is idle"
            if not self.running:
                self.play("tick", 0, 5.0)
                if not self.running and not any(True for _ in self.core.queues.tickets()):
                    break
            for placement in list(self.running.values()):
                if id(placement.ticket) in self.running:
                    self.play("finish", 0, 0.001)
        assert not self.running
        assert not list(self.core.queues.tickets())
        assert all(not q.waiting for q in self.core.queues.by_model.values())
        assert all(not i.in_flight and not i.residents and not i.forming for i in self.core.fleet.by_id.values())
        assert not self.core.fleet.leaving
        assert self.core.next_wake_at_s is None
        assert not self.core._forming
        for load in self.predictor.latencies.loads.values() if self.predictor is not None else ():
            assert not load.pending
            assert not load.decoding
        assert {id(t) for t in self.tickets} == self.over


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.sampled_from(POLICIES), st.booleans())
def test_every_sequence_of_events_ends_with_nothing_leaked(events: list[tuple[str, int, float]], policy: str, predicts: bool) -> None:
    world = World(policy, predicts)
    for event in events:
        world.play(*event)
    world.end()
    assert len(world.over) == len(world.tickets)


@settings(max_examples=25, deadline=None)
@given(EVENTS, st.sampled_from(POLICIES), st.booleans())
def test_the_same_events_give_the_same_actions(events: list[tuple[str, int, float]], policy: str, predicts: bool) -> None:
    told = []
    for _ in range(2):
        world = World(policy, predicts)
        for event in events:
            world.play(*event)
        told.append(world.told)
    assert told[0] == told[1]
