"""The decision core: tell it what happened and when, it says what to do. Pure: the same events give the same actions.

Late binding: what finds no place waits here, never in an engine's own queue, and is looked at again whenever a slot frees. Where a
ticket goes is the policy's choice, whether it may wait admit.py's, the limits of instances enforce.py's; here are the books and the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Final

from gateway.core.admit import Admission
from gateway.core.enforce import Controller
from gateway.core.fleet import Fleet
from gateway.core.flow import (
    Action,
    ClassPolicy,
    CoreSettings,
    Degrade,
    FailReason,
    InstanceSpec,
    Lease,
    Mode,
    Outcome,
    Placement,
    Prediction,
    Refuse,
    RefuseReason,
    Request,
    Result,
    Start,
    Tag,
    Ticket,
)
from gateway.core.forming import held_until_s
from gateway.core.instance import Instance
from gateway.core.policy import LATE, Policy, Predictor, Verdict
from gateway.core.queues import Lane, Queues
from gateway.core.shares import Shares
from gateway.core.tickets import loosen, ticket_of
from gateway.core.trail import Trails

# How many tickets of a lane are looked at before it has to wait: the first may need an instance that the second does not.
LOOK_AHEAD: Final = 3
NO_CAPACITY_RETRY_S: Final = 2.0


class Core:
    """Every decision of one worker. Calls must come with times that never go back."""

    def __init__(self, settings: CoreSettings, policy: Policy, predictor: Predictor | None = None) -> None:
        self.settings = settings
        self.policy = policy
        self.predictor = predictor
        self.fleet = Fleet(self._ceilings(settings), predictor)
        self.queues = Queues(settings, policy)
        self.trails = Trails(settings.trail_size)
        self.controller = Controller(predicts=predictor is not None and not policy.plain)
        self.shares = Shares(settings.tenant_weights)
        self.admission = Admission(self.fleet, self.queues, settings)
        self._classes: dict[str, ClassPolicy] = {c.name: c for c in settings.classes}
        self._observes = settings.mode is Mode.OBSERVE
        self._starts_anyway = self._observes or self.policy.early_binding  # nothing is held back

    def _ceilings(self, settings: CoreSettings) -> list[float]:
        return [1.0 if self.policy.plain else c.ceiling_ratio for c in settings.classes]

    # ---- requests

    def ticket(self, request: Request, tag: Tag, handle: object = None) -> Ticket:
        """A request with its deadlines. It stands nowhere yet."""
        class_ = self._classes.get(tag.experience_class)
        ticket = ticket_of(request, tag, class_, self.predictor, handle)
        ticket.weight = self.shares.worth(request.tenant)
        ticket.worth = class_.worth if class_ is not None else 1.0
        return ticket

    def arrived(self, request: Request, tag: Tag, now_s: float, handle: object = None) -> list[Action]:
        """`ticket` and `submit` in one."""
        return self.submit(self.ticket(request, tag, handle), now_s)

    def submit(self, ticket: Ticket, now_s: float) -> list[Action]:
        """A request arrives: it starts, waits, takes a looser class, or is refused."""
        ticket.queued_at_s = now_s
        self.trails.begin(ticket)
        serving = self.fleet.serving(ticket.model)
        if (serving is None or not serving.instances) and not self._find_model(ticket):
            return [self._refuse(ticket, RefuseReason.NO_CAPACITY, NO_CAPACITY_RETRY_S, now_s, hopeless=False)]
        queues = self.queues
        # Only looser work waits, if any: it cannot be in this one's way.
        if not queues.waiting or not queues.ahead(ticket.model, ticket.tag.rank) or self._starts_anyway:
            actions: list[Action] = []
            if self._try(ticket, now_s, actions):
                return actions
            if self._starts_anyway:
                instance = min(self.fleet.instances(ticket), key=lambda i: i.saturation_ratio, default=None)
                if instance is not None:
                    self._start(ticket, instance, now_s, actions, holds=False)
                    return actions
                return [self._refuse(ticket, RefuseReason.NO_CAPACITY, NO_CAPACITY_RETRY_S, now_s, hopeless=False)]
        else:
            self.fleet.considered = []
        return self._wait(ticket, now_s)

    def _find_model(self, ticket: Ticket) -> bool:
        """The model asked for, or the first fallback that somebody serves."""
        for model in (ticket.request.model, *ticket.request.fallback_models):
            serving = self.fleet.serving(model)
            if serving is not None and serving.instances:
                if ticket.tried and all(i.spec.instance_id in ticket.tried for i in serving.instances):
                    continue
                if model != ticket.model:
                    ticket.model = model
                    ticket.latest_start_at_s, ticket.seen_version = -1.0, -1
                return True
        return False

    def _wait(self, ticket: Ticket, now_s: float) -> list[Action]:
        """It stands in line, unless that would be no kindness."""
        full = self.queues.full(ticket)
        if full is None and ticket.wish is not None:
            self.queues.push(ticket)
            self.trails.add(ticket, "leasing", now_s, ticket.wish.spec.instance_id)
            return []
        if full is None:
            class_ = self._classes[ticket.tag.experience_class]
            may_wait = not class_.refusable or self.admission.may_wait(ticket, now_s)
            self._weighed(ticket, now_s)
            if may_wait:
                self.queues.push(ticket)
                self.trails.add(ticket, "queued", now_s)
                return self._fill(ticket.model, now_s)
            full = RefuseReason.CANNOT_MEET_SLO
        predicted_s = self.admission.wait_s(ticket, ticket.tag.rank, now_s)
        looser = self.admission.looser_class(ticket, now_s)
        if looser is not None and ticket.request.may_degrade:
            return self._degrade(ticket, looser, now_s)
        retry_s = self.admission.refused(ticket, predicted_s, now_s)
        return [self._refuse(ticket, full, retry_s, now_s, looser=looser.name if looser is not None else "")]

    def _weighed(self, ticket: Ticket, now_s: float) -> None:
        rank, fleet = ticket.tag.rank, self.fleet
        wait_s = self.admission.wait_s(ticket, rank, now_s)
        fleet.savable(ticket, now_s)  # how long it can wait is known from here on
        self.trails.weighed(ticket, fleet.considered, self.queues.ahead(ticket.model, rank), wait_s, now_s)

    def _would_fit(self, request: Request, tag: Tag, now_s: float) -> bool:
        """Would one like this be let in if it came now?"""
        ticket = self.ticket(replace(request, arrived_at_s=now_s), tag)
        if not self._find_model(ticket):
            return False
        if not self.queues.ahead(ticket.model, tag.rank) and not self.policy.plain:
            self.fleet.considered = []  # the last one may belong to a trail
            placed = not isinstance(self.policy.place(ticket, self.fleet, now_s), Verdict)
            self.fleet.considered = []
            if placed:
                return True
        return self.admission.may_wait(ticket, now_s)

    def _degrade(self, ticket: Ticket, class_: ClassPolicy, now_s: float) -> list[Action]:
        loosen(ticket, class_)
        ticket.worth = class_.worth
        self.trails.add(ticket, "degraded", now_s, class_.name)
        self.queues.push(ticket)
        return [Degrade(ticket, ticket.tag), *self._fill(ticket.model, now_s)]

    def _refuse(
        self, ticket: Ticket, reason: RefuseReason, retry_after_s: float, now_s: float, looser: str = "", hopeless: bool = False
    ) -> Refuse:
        ticket.gone = True
        refuse = Refuse(ticket, reason, retry_after_s, looser, hopeless)
        self.trails.refused(refuse, now_s)
        return refuse

    # ---- what becomes of placements

    def first_token(self, placement: Placement, now_s: float) -> list[Action]:
        """The engine has answered: this prompt no longer delays others on its instance."""
        instance: Instance | None = placement.instance
        if instance is None:
            return []
        if self.predictor is not None:
            self.predictor.first_token(placement, instance, now_s)
        self.fleet.prefilled(placement)
        return self._fill(instance.spec.model, now_s) if self.queues.waiting else []

    def finished(self, placement: Placement, outcome: Outcome, now_s: float) -> list[Action]:
        """It is over, well or not, and nothing is tried again."""
        self.trails.finished(placement, outcome, now_s)
        return self._ended(placement, outcome, now_s)

    def failed(self, placement: Placement, reason: FailReason, now_s: float, retry: bool) -> list[Action]:
        """An attempt came to nothing. With `retry` (nothing was sent yet) another instance is looked for, else that was all."""
        ticket = placement.ticket
        self.trails.failed(placement, reason, now_s)
        actions = self._ended(placement, Outcome(Result.FAILED, fail_reason=reason), now_s)
        if not retry or ticket.gone:
            return actions
        ticket.tries += 1
        ticket.tried = (*ticket.tried, placement.instance_id)
        if ticket.tries >= self.settings.max_tries or not self._find_model(ticket):
            return [*actions, self._refuse(ticket, RefuseReason.NO_CAPACITY, NO_CAPACITY_RETRY_S, now_s)]
        if self._try(ticket, now_s, actions):
            return actions
        # It has been admitted once; whoever waits longest for the same instances goes first, as ever.
        self.queues.push(ticket)
        return [*actions, *self._fill(ticket.model, now_s)]

    def _ended(self, placement: Placement, outcome: Outcome, now_s: float) -> list[Action]:
        instance = placement.instance
        if instance is None:
            return []
        if self.predictor is not None:
            self.predictor.finished(placement, instance, outcome, now_s)
        if placement.held_until_s:
            self._forming -= 1
        self.fleet.give_back(placement)
        placement.ticket.placement = None
        if self.policy.learn is not None:
            self.policy.learn(placement, outcome)
        model = instance.spec.model
        self.admission.finished(model, now_s)
        self.controller.ended(instance, placement)
        return self._fill(model, now_s) if self.queues.waiting else []

    def gone(self, ticket: Ticket, now_s: float) -> list[Action]:
        """Its client has left, at whatever stage."""
        ticket.gone = True
        self.queues.remove(ticket)
        placement = ticket.placement
        self.trails.add(ticket, "gone", now_s)
        if placement is None:
            return []
        return self._ended(placement, Outcome(Result.CLIENT_GONE, output_tokens=placement.output_tokens), now_s)

    # ---- instances, settings, time

    def instances_changed(self, specs: Sequence[InstanceSpec], now_s: float) -> list[Action]:
        """These are the configured instances now. Those that left finish what they have."""
        self.fleet.change(specs)
        return self._everywhere(now_s)

    def instance_health(self, instance_id: str, healthy: bool, now_s: float) -> list[Action]:
        """It is up, or not to be used."""
        instance = self.fleet.by_id.get(instance_id)
        if instance is None:
            return []
        self.fleet.set_health(instance, healthy, now_s)
        return self._everywhere(now_s)

    def leased(self, leases: Sequence[Lease], now_s: float) -> list[Action]:
        """So many slots of these instances are this worker's to use, until it is told otherwise."""
        self.fleet.lease(leases)
        return self._everywhere(now_s)

    def settings_changed(self, settings: CoreSettings, now_s: float) -> list[Action]:
        """Another configuration; who waits keeps waiting."""
        self.settings = self.admission.settings = settings
        self._classes = {c.name: c for c in settings.classes}
        self._observes = settings.mode is Mode.OBSERVE
        self._starts_anyway = self._observes or self.policy.early_binding  # nothing is held back
        self.trails.resize(settings.trail_size)
        self.shares.reweigh(settings.tenant_weights)
        self.fleet.set_ceilings(self._ceilings(settings))
        lost = self.queues.change(settings)
        actions: list[Action] = [self._refuse(ticket, RefuseReason.NO_CAPACITY, NO_CAPACITY_RETRY_S, now_s) for ticket in lost]
        return [*actions, *self._everywhere(now_s)]

    def idle(self) -> bool:
        """Nothing runs, and nothing waits."""
        if self.queues.waiting:
            return False
        return not self.fleet.leaving and not any(instance.residents for instance in self.fleet.by_id.values())

    @property
    def next_wake_at_s(self) -> float | None:
        """When `tick` should be called at the latest for a held start; None when nothing is held."""
        at_s = min((i.forming_until_s for i in self.fleet.by_id.values() if i.forming), default=inf) if self._forming else inf
        return at_s if at_s < inf else None

    _forming = 0  # starts that are held to form a batch

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed: batches are due, waiting has lasted too long, limits may move."""
        actions: list[Action] = []
        self.fleet.look_again()
        self.shares.fade(now_s)
        if self._forming:
            for instance in (*self.fleet.by_id.values(), *self.fleet.leaving):
                if instance.forming and now_s >= instance.forming_until_s - 1e-6:
                    self._release(instance, now_s, actions)
        if self.queues.waiting:
            for ticket in [t for t in self.queues.tickets() if now_s >= t.expires_at_s]:
                self.queues.remove(ticket)
                actions.append(self._refuse(ticket, RefuseReason.EXPIRED, 1.0, now_s))
        for instance in self.fleet.by_id.values():
            if instance.returned_at_s > -inf:
                self.fleet.warm_up(instance, now_s)
            if instance.residents:
                self.fleet.count_context(instance, now_s)
        self.admission.look(now_s, lambda request, tag: self._would_fit(request, tag, now_s))
        for instance, limit in self.controller.limits(self.fleet, now_s):
            self.fleet.set_limit(instance, limit)
        return [*actions, *self._everywhere(now_s)]

    def _everywhere(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        if not self.queues.waiting:
            return actions
        for model, queues in list(self.queues.by_model.items()):
            if queues.waiting:
                serving = self.fleet.serving(model)
                if serving is None or not serving.instances:
                    self._nobody_serves(model, now_s, actions)
                else:
                    actions += self._fill(model, now_s)
        return actions

    def _nobody_serves(self, model: str, now_s: float, actions: list[Action]) -> None:
        """All instances of a model are down: who waits is told so, or goes to a fallback model."""
        queues = self.queues.of(model)
        for lane in (*queues.lanes, queues.late):
            for ticket in list(lane.tickets()):
                self.queues.remove(ticket)
                if self._find_model(ticket):
                    self.fleet.considered = []
                    actions += self._wait(ticket, now_s)
                else:
                    actions.append(self._refuse(ticket, RefuseReason.NO_CAPACITY, NO_CAPACITY_RETRY_S, now_s))

    # ---- places

    def _fill(self, model: str, now_s: float) -> list[Action]:
        """Give places to who waits, most urgent first, until nobody can be placed."""
        actions: list[Action] = []
        queues = self.queues.of(model)
        if not queues.waiting:
            return actions
        urgency = self.policy.urgency
        heads = [(lane, tickets) for lane in queues.lanes if lane.requests and (tickets := lane.heads(LOOK_AHEAD))]
        while heads:
            at = 0
            if len(heads) > 1:
                urgencies = [urgency(tickets[0], now_s) for _, tickets in heads]
                at = urgencies.index(min(urgencies))
            lane, tickets = heads[at]
            # What becomes of one lane changes no other's heads.
            if self._serve_lane(lane, tickets, now_s, actions) and (tickets := lane.heads(LOOK_AHEAD)):
                heads[at] = lane, tickets
            else:
                del heads[at]
        if queues.late.requests:
            while True:
                tickets = queues.late.heads(LOOK_AHEAD)
                if not tickets or not self._serve_lane(queues.late, tickets, now_s, actions):
                    break
        return actions

    def _serve_lane(self, lane: Lane, tickets: list[Ticket], now_s: float, actions: list[Action]) -> bool:
        """Try a lane's next tickets. True when one of them left the lane."""
        for ticket in tickets:
            if now_s >= ticket.expires_at_s:
                self.queues.remove(ticket)
                actions.append(self._refuse(ticket, RefuseReason.EXPIRED, 1.0, now_s))
                return True
            was_late = ticket.late
            if self._try(ticket, now_s, actions) or (ticket.late and not was_late):
                return True
            if ticket.lane is None:
                return True
        return False

    def _try(self, ticket: Ticket, now_s: float, actions: list[Action]) -> bool:
        """Ask the policy for a place and take it."""
        fleet = self.fleet
        if fleet.considered:
            fleet.considered = []
        ticket.wish = None
        chosen = self.policy.place(ticket, fleet, now_s)
        if chosen is LATE:
            if ticket.lane is not None:
                if not ticket.late:
                    self.queues.late(ticket)
                    self.trails.add(ticket, "late", now_s)
                return False
            # It has just arrived and cannot be saved. If nobody waits it may still be served, behind whoever comes.
            ticket.late = True
            chosen = self.policy.place(ticket, fleet, now_s)
            if isinstance(chosen, Verdict):
                ticket.late = False
                return False
        if isinstance(chosen, Verdict):
            ticket.seen_version = fleet.version
            return False
        if chosen.leased < chosen.slots and chosen.in_flight + ticket.request.n > chosen.leased and not self._starts_anyway:
            # The slot is nobody's, but not ours yet: better a moment later there than at once somewhere else.
            ticket.wish, ticket.seen_version = chosen, -1
            fleet.short = True
            return False
        self._start(ticket, chosen, now_s, actions, holds=True)
        return True

    def _start(self, ticket: Ticket, instance: Instance, now_s: float, actions: list[Action], holds: bool) -> None:
        spec, considered, prediction = instance.spec, self.fleet.considered, None
        for one in reversed(considered):
            if one[0] is instance:
                prediction = tuple.__new__(Prediction, one[1:5])
                break
        placement = Placement(ticket, spec.instance_id, spec.pool, spec.tier, spec.model, now_s, prediction)
        if ticket.lane is not None:
            self.queues.took(ticket)
        ticket.placement, ticket.seen_version = placement, -1
        self.trails.started(placement, considered, now_s)
        self.fleet.take(instance, placement)
        self.shares.took(ticket.request.tenant, ticket.request.prompt_tokens + ticket.expected_output_tokens)
        if self.predictor is not None:
            # Told at once even when the start is held: the engine has yet to read this prompt, and who comes next comes behind it.
            self.predictor.started(placement, instance, now_s)
        if holds and spec.batch_window_s > 0.0 and not self._observes:
            until_s = held_until_s(placement, instance, now_s)
            if until_s:
                placement.held_until_s = until_s
                instance.forming.append(placement)
                instance.forming_until_s = min(instance.forming_until_s, until_s)
                self._forming += 1
                return
        if instance.forming:
            self._release(instance, now_s, actions)
        actions.append(Start(placement))

    def _release(self, instance: Instance, now_s: float, actions: list[Action]) -> None:
        """The batch starts."""
        forming, instance.forming = instance.forming, []
        instance.forming_until_s = inf
        self._forming -= len(forming)
        for placement in forming:
            placement.held_until_s = 0.0
            placement.started_at_s = now_s
            actions.append(Start(placement))
