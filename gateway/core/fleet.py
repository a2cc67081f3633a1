"""The instances as the core sees them: who serves what, how loaded each is by our own exact count, and slots given and taken back.

The figures are what the gateway itself knows at this moment (never scraped, never stale); other workers' load is told by state/
through `others`. What an instance will *take* is the predictor's business, whether to use it the policy's.

Everything a decision reads is kept ready as events come in. For each model there is one list of open instances per class rank, so that
a decision touches no instance it may not use: a class sees an instance only while its saturation is below the class's ceiling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Final

from gateway.core.flow import UNSHARED, Considered, InstanceSpec, Lease, Placement, Prediction, Ticket
from gateway.core.instance import Instance, Serving
from gateway.core.policy import Predictor

__all__ = ["Fleet", "Instance"]

# An instance that comes back from the dead has cold caches and may die again: it starts with a quarter of its slots and has them
# all after half a minute, which is what load balancers call slow start.
SLOW_START_S: Final = 30.0
SLOW_START_RATIO: Final = 0.25

# Without a predictor nothing is known to be too slow: only limits, tiers and deadlines decide.
UNKNOWN: Final = Prediction(0.0, 0.0, 0.0)


class Fleet:
    """All instances. `ceilings` are the classes' highest saturation ratios by rank, tightest first."""

    __slots__ = ("_ceilings", "_predictor", "_serving", "_whole_from", "by_id", "considered", "leaving", "short", "unleased", "version")

    def __init__(self, ceilings: Sequence[float], predictor: Predictor | None = None) -> None:
        self._ceilings = _nested(ceilings)
        self._predictor = predictor
        self._serving: dict[str, Serving] = {}
        self.by_id: dict[str, Instance] = {}
        self.unleased = UNSHARED  # the slots of an instance of which no lease is known yet
        self.version = 0  # counts changes of instances, so that who found no place need not ask those that have not changed
        self._whole_from = 0
        self.leaving: list[Instance] = []  # drained ones that still hold residents
        self.short = False  # a lease is wanted, here or elsewhere, that could be moved at once: whoever leases looks and takes it back
        self.considered: list[Considered] = []  # what the decision under way has asked for, for its trail

    @property
    def ceilings(self) -> tuple[float, ...]:
        """The highest saturation ratio at which each class may start, tightest class first."""
        return self._ceilings

    # ---- what a policy asks (core/policy.Fleet)

    def open_instances(self, ticket: Ticket) -> Sequence[Instance]:
        """Healthy instances of the ticket's model with a slot that its class may use, without those it failed on and those
        that have not changed since it last found no place. Read, never kept."""
        serving = self._serving.get(ticket.model)
        if serving is None:
            return ()
        # Work that is late anyway takes only what the loosest class may take: it must not crowd out what can still be saved.
        found = serving.open[-1 if ticket.late else ticket.tag.rank]
        n = ticket.request.n
        if n > 1:
            found = [i for i in found if i.may_hold(n)]
        if ticket.tried:
            found = [i for i in found if i.spec.instance_id not in ticket.tried]
        seen = ticket.seen_version
        if seen >= self._whole_from:
            found = [i for i in found if i.version > seen]
        if serving.kv_most_tokens and found:
            # What fits nowhere goes where most fits, alone: an estimate is no reason to refuse what the engine can judge.
            needs = min(kv_needs_tokens(ticket), serving.kv_most_tokens)
            found = [i for i in found if i.kv_left_tokens - i.others_context_tokens >= needs]
        return found

    def instances(self, ticket: Ticket) -> Sequence[Instance]:
        """The same without asking for a free slot; without those whose KV cache could not hold it even when empty."""
        serving = self._serving.get(ticket.model)
        if serving is None:
            return ()
        found: Sequence[Instance] = serving.instances
        if ticket.tried:
            found = [i for i in found if i.spec.instance_id not in ticket.tried]
        if serving.kv_most_tokens:
            needs = min(kv_needs_tokens(ticket), serving.kv_most_tokens)
            found = [i for i in found if (i.spec.kv_tokens or inf) >= needs]
        return found

    def predict(self, ticket: Ticket, instance: Instance, now_s: float) -> Prediction:
        """What `instance` would take for `ticket` if started now, with what runs there."""
        if self._predictor is None:
            return UNKNOWN
        [one] = self._predictor.consider(ticket, (instance,), now_s)
        self.considered.append(one)
        return Prediction(*one[1:5])

    def consider(self, ticket: Ticket, now_s: float) -> Sequence[Considered]:
        """`open_instances` with what each would take."""
        found = self.open_instances(ticket)
        if self._predictor is None:
            return [(instance, *UNKNOWN, instance.in_flight, instance.tightest_itl_s) for instance in found]
        considered = self._predictor.consider(ticket, found, now_s)
        self.considered = self.considered + considered if self.considered else considered
        return considered

    def savable(self, ticket: Ticket, now_s: float) -> bool:
        """Could some instance, were it idle, still keep every promise? Asked once per ticket and model, then a comparison."""
        if ticket.latest_start_at_s < 0.0:
            ticket.latest_start_at_s = self._latest_start_at_s(ticket)
        return now_s <= ticket.latest_start_at_s

    def _latest_start_at_s(self, ticket: Ticket) -> float:
        """0 when no kind of instance could keep the promises even if it started this ticket on arrival."""
        if self._predictor is None:
            return ticket.ttft_deadline_at_s
        latest_at_s = 0.0
        asked: set[str] = set()
        itl_target_s = ticket.itl_target_s or ticket.tag.targets.itl_s
        for instance in self.instances(ticket):
            key = instance.spec.predictor_key
            if key in asked:
                continue
            asked.add(key)
            idle = self._predictor.predict_idle(ticket, instance)
            if idle.itl_s <= itl_target_s:
                at_s = min(ticket.ttft_deadline_at_s - idle.ttft_s, ticket.e2e_deadline_at_s - idle.e2e_s)
                if at_s > latest_at_s:
                    latest_at_s = at_s
        return latest_at_s

    def look_again(self) -> None:
        """Time alone has changed what instances would take: the next look of everybody is at all of them."""
        self.version += 1
        self._whole_from = self.version

    # ---- slots

    def take(self, instance: Instance, placement: Placement) -> None:
        """A sequence starts (or is held for a batch): it holds its slots and counts as load from now on."""
        ticket = placement.ticket
        request = ticket.request
        prompt_tokens, n = request.prompt_tokens, request.n
        placement.instance = instance
        placement.unprefilled_tokens = placement.context_tokens = prompt_tokens
        placement.kv_tokens = kv_tokens = prompt_tokens + int(ticket.expected_output_tokens) * n
        self.version = instance.version = self.version + 1
        instance.residents[placement] = None
        instance.unprefilled_tokens += prompt_tokens
        instance.context_tokens += prompt_tokens
        instance.kv_left_tokens -= kv_tokens
        itl_target_s = ticket.itl_target_s or ticket.tag.targets.itl_s
        counts = instance.itl_targets
        counts[itl_target_s] = counts.get(itl_target_s, 0) + 1
        if itl_target_s < instance.tightest_itl_s:
            instance.tightest_itl_s = itl_target_s
        instance.in_flight = in_flight = instance.in_flight + n
        instance.stake_ours_per_s = stake_per_s = instance.stake_ours_per_s + ticket.stake_per_s
        instance.stake_per_s = stake_per_s + instance.others_stake_per_s
        serving = instance.serving
        if serving is not None:
            serving.in_flight += n
            held, in_flight = in_flight, in_flight + instance.others_counted
            room = instance.room
            ranks = room[in_flight] if in_flight < len(room) and held < instance.reach else 0
            if ranks != instance.offered_ranks:
                self._offer(instance, serving, ranks)

    def prefilled(self, placement: Placement) -> None:
        """The engine has answered: this prompt no longer delays others on its instance."""
        instance = placement.instance
        if instance is not None:
            self.version = instance.version = self.version + 1
            instance.unprefilled_tokens -= placement.unprefilled_tokens
            placement.unprefilled_tokens = 0

    def give_back(self, placement: Placement) -> Instance | None:
        """The sequence is over, for whatever reason. None if it was over already: slots are given back once."""
        instance: Instance | None = placement.instance
        if instance is None:
            return None
        placement.instance = None
        self.version = instance.version = self.version + 1
        del instance.residents[placement]
        if placement.held_until_s:
            instance.forming.remove(placement)
            instance.forming_until_s = min((held.held_until_s for held in instance.forming), default=inf)
        instance.unprefilled_tokens -= placement.unprefilled_tokens
        placement.unprefilled_tokens = 0
        instance.context_tokens -= placement.context_tokens
        instance.kv_left_tokens += placement.kv_tokens
        ticket = placement.ticket
        itl_target_s = ticket.itl_target_s or ticket.tag.targets.itl_s
        counts = instance.itl_targets
        left = counts[itl_target_s] - 1
        if left:
            counts[itl_target_s] = left
        else:
            del counts[itl_target_s]
            if itl_target_s == instance.tightest_itl_s:
                instance.tightest_itl_s = min(min(counts, default=inf), instance.others_tightest_itl_s)
        n = ticket.request.n
        instance.in_flight = in_flight = instance.in_flight - n
        stake_per_s = instance.stake_ours_per_s - ticket.stake_per_s if instance.residents else 0.0
        instance.stake_ours_per_s = stake_per_s = stake_per_s if stake_per_s > 0.0 else 0.0
        instance.stake_per_s = stake_per_s + instance.others_stake_per_s
        serving = instance.serving
        if serving is not None:
            serving.in_flight -= n
            held, in_flight = in_flight, in_flight + instance.others_counted
            room = instance.room
            ranks = room[in_flight] if in_flight < len(room) and held < instance.reach else 0
            if ranks != instance.offered_ranks:
                self._offer(instance, serving, ranks)
        elif instance.draining and not in_flight:
            self.leaving.remove(instance)
        if instance.owed:
            self.short = True
        return instance

    def count_context(self, instance: Instance, now_s: float) -> None:
        """Bring the context up to date with what the relay has counted since, and let the predictor see the same."""
        if self._predictor is not None:
            self._predictor.passing(instance, now_s)
        grown_tokens = 0
        for placement in instance.residents:
            context_tokens = placement.ticket.request.prompt_tokens + placement.output_tokens
            grown_tokens += context_tokens - placement.context_tokens
            placement.context_tokens = context_tokens
            if context_tokens > placement.kv_tokens:  # it has said more than was expected of it
                instance.kv_left_tokens -= context_tokens - placement.kv_tokens
                placement.kv_tokens = context_tokens
        instance.context_tokens += grown_tokens

    # ---- who serves what

    def serving(self, model: str) -> Serving | None:
        return self._serving.get(model)

    def models(self) -> Iterable[str]:
        return self._serving.keys()

    def change(self, specs: Iterable[InstanceSpec]) -> None:
        """The configured instances are these now: new ones join, known ones take over their new figures, the others are drained. One that
        serves something else under an old name is a new instance; the old one keeps its residents until they are done."""
        wanted = {spec.instance_id: spec for spec in specs}
        for instance_id, instance in list(self.by_id.items()):
            spec = wanted.get(instance_id)
            if spec is None or spec.model != instance.spec.model or spec.url != instance.spec.url:
                self._retire(instance)
        for instance_id, spec in wanted.items():
            known = self.by_id.get(instance_id)
            if known is None:
                known = self.by_id[instance_id] = Instance(spec)
                known.leased = known.reach = self.unleased
                self._list(known)
            else:
                limit = spec.limit_start if spec.limit_start != known.spec.limit_start or spec.limit_pinned else known.limit
                known.spec = spec
                known.usd_per_hour = spec.usd_per_hour
                known.kv_left_tokens = (spec.kv_tokens or inf) - sum(placement.kv_tokens for placement in known.residents)
                if known.serving is not None:
                    known.serving.know_kv()
                self.set_limit(known, limit)

    def set_health(self, instance: Instance, healthy: bool, now_s: float) -> None:
        """An unhealthy instance takes no new work; what runs there ends as it ends."""
        if healthy is instance.healthy:
            return
        instance.healthy = healthy
        if healthy:
            instance.returned_at_s = now_s
            self.warm_up(instance, now_s)
            self._list(instance)
        else:
            self._unlist(instance)

    def warm_up(self, instance: Instance, now_s: float) -> None:
        """More of a returned instance's slots, as time passes without another failure."""
        passed_s = now_s - instance.returned_at_s
        if passed_s >= SLOW_START_S:
            instance.returned_at_s = -inf
            self._set_slots(instance, instance.limit)
        else:
            ratio = SLOW_START_RATIO + (1.0 - SLOW_START_RATIO) * max(0.0, passed_s) / SLOW_START_S
            self._set_slots(instance, max(1, int(instance.limit * ratio)))

    def set_limit(self, instance: Instance, limit: int) -> None:
        """Clamped to the bounds of its configuration. Residents above a lowered limit finish in peace."""
        spec = instance.spec
        instance.limit = max(spec.limit_min, min(spec.limit_max, limit)) if not spec.limit_pinned else spec.limit_start
        if instance.returned_at_s == -inf:
            self._set_slots(instance, instance.limit)

    def others(
        self,
        instance: Instance,
        in_flight: int,
        unprefilled_tokens: int,
        context_tokens: int,
        stake_per_s: float = 0.0,
        tightest_itl_s: float = inf,
    ) -> None:
        """What the other workers have running there, as they last said."""
        instance.others_in_flight = in_flight
        instance.others_unprefilled_tokens = unprefilled_tokens
        instance.others_context_tokens = context_tokens
        instance.others_stake_per_s = stake_per_s
        instance.others_tightest_itl_s = tightest_itl_s
        instance.stake_per_s = instance.stake_ours_per_s + stake_per_s
        instance.tightest_itl_s = min(min(instance.itl_targets, default=inf), tightest_itl_s)
        self._count_others(instance)

    def lease(self, leases: Iterable[Lease]) -> None:
        """How many slots this worker may use. Residents above a shrunken lease finish in peace, and nothing is started in their place."""
        for lease in leases:
            instance = self.by_id.get(lease.instance_id)
            if instance is not None:
                instance.leased = lease.slots
                instance.reach = min(lease.slots + lease.spare, UNSHARED)
                if lease.limit:
                    self.set_limit(instance, lease.limit)
                self._count_others(instance)

    def _count_others(self, instance: Instance) -> None:
        counted = instance.others_in_flight
        if instance.leased != UNSHARED:
            counted = min(counted, max(instance.slots - instance.leased, 0))
        instance.others_counted = counted
        self._refresh(instance)

    def set_ceilings(self, ceilings: Sequence[float]) -> None:
        """Other classes or ceilings: every instance is offered anew."""
        self._ceilings = _nested(ceilings)
        listed = [instance for serving in self._serving.values() for instance in serving.instances]
        for instance in listed:
            self._unlist(instance)
        self._serving.clear()
        for instance in self.by_id.values():
            if instance.healthy:
                self._list(instance)

    def _set_slots(self, instance: Instance, slots: int) -> None:
        if slots != instance.slots or not instance.room:
            instance.slots = slots
            instance.room = self._room(slots)
            self._count_others(instance)

    def _room(self, slots: int) -> tuple[int, ...]:
        ceilings = self._ceilings
        return tuple(sum(in_flight < ceiling * slots for ceiling in ceilings) for in_flight in range(slots))

    def _refresh(self, instance: Instance) -> None:
        self.version = instance.version = self.version + 1
        serving = instance.serving
        if serving is not None:
            in_flight = instance.in_flight + instance.others_counted
            ranks = instance.room[in_flight] if in_flight < len(instance.room) and instance.in_flight < instance.reach else 0
            self._offer(instance, serving, ranks)

    def _offer(self, instance: Instance, serving: Serving, ranks: int) -> None:
        """List it as open for the `ranks` tightest classes, no others."""
        for rank in range(instance.offered_ranks, ranks):
            serving.open[rank].append(instance)
        for rank in range(ranks, instance.offered_ranks):
            serving.open[rank].remove(instance)
        instance.offered_ranks = ranks

    def _list(self, instance: Instance) -> None:
        model = instance.spec.model
        serving = self._serving.get(model)
        if serving is None:
            serving = self._serving[model] = Serving(model, len(self._ceilings))
        serving.instances.append(instance)
        serving.know_kv()
        serving.in_flight += instance.in_flight
        instance.serving = serving
        instance.room = self._room(instance.slots)
        self._refresh(instance)

    def _unlist(self, instance: Instance) -> None:
        serving = instance.serving
        if serving is None:
            return
        self._offer(instance, serving, 0)
        serving.instances.remove(instance)
        serving.know_kv()
        serving.in_flight -= instance.in_flight
        instance.serving = None

    def _retire(self, instance: Instance) -> None:
        self._unlist(instance)
        del self.by_id[instance.spec.instance_id]
        instance.draining = True
        if instance.residents:
            self.leaving.append(instance)


def kv_needs_tokens(ticket: Ticket) -> int:
    """KV cache that its prompt and its expected answers take; the choices of one request share its prompt. Whole tokens, so that
    what is taken and given back adds up."""
    return ticket.request.prompt_tokens + int(ticket.expected_output_tokens) * ticket.request.n


def _nested(ceilings: Sequence[float]) -> tuple[float, ...]:
    """A looser class never gets more room than a tighter one, whatever the configuration says."""
    nested: list[float] = []
    for ceiling in ceilings or (1.0,):
        nested.append(min(ceiling, nested[-1]) if nested else ceiling)
    return tuple(nested)
