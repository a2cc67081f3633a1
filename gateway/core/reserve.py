"""Where the answers of a class that is worth more than others stream, and what others have to pay there.

A price by what is at stake at the moment lets a long document onto the best instance whenever no tight answer happens to stream there;
those that come next then miss by it. So the instances where such a class has streamed most of late ask two things of everybody else, its
worth times over: what a second of delay costs the whole class, whoever is there just now, and for a prompt that takes longer to read than
the class's first tokens may take, whoever comes in that time. Long prompts settle elsewhere, the class stays where they do not come, and
while little is at stake there is little to pay. Who is served where is the policy's business.
"""

from __future__ import annotations

from math import exp
from typing import Final

from gateway.core.flow import Outcome, Placement, Ticket
from gateway.core.instance import Instance
from gateway.core.policy import Fleet

# Long enough to hold on to an instance through a lull, short enough to let go of one within a minute.
MEMORY_S: Final = 30.0
LOOK_S: Final = 1.0
# Answers at a time that one instance is kept for. Of instances alike at most one in three: the others' work has to go somewhere.
ANSWERS_EACH: Final = 8.0
SHARE_OF_ALIKE: Final = 3
NEGLIGIBLE_S: Final = 0.05


class Kept:
    """Of one model: the instances kept for such a class, and what each asks of others, in likelihood."""

    __slots__ = ("_at_s", "_came", "_looked_at_s", "_may_take_s", "_streamed", "came_per_s", "delays_per_s", "patience_s")

    def __init__(self) -> None:
        self.delays_per_s: dict[str, float] = {}  # by instance: of a second of its time
        self.came_per_s = 0.0  # worth of the answers that begin on each of them in a second
        self.patience_s = 0.0  # that their first tokens may take
        # By instance, stakes and time of the class's answers there; of all, their worth, and that times the promise. They all fade.
        self._streamed: dict[str, tuple[float, float]] = {}
        self._came = self._may_take_s = 0.0
        self._at_s = self._looked_at_s = 0.0

    def ended(self, placement: Placement, took_s: float, now_s: float) -> None:
        """One of the class's answers is over."""
        self._fade(now_s)
        ticket = placement.ticket
        worth = ticket.worth * ticket.weight
        self._came += worth
        self._may_take_s += worth * ticket.tag.targets.ttft_s
        stake, known_s = self._streamed.get(placement.instance_id, (0.0, 0.0))
        self._streamed[placement.instance_id] = stake + ticket.worth * ticket.stake_per_s * took_s, known_s + took_s

    def look(self, ticket: Ticket, fleet: Fleet, room_ratio: float, now_s: float) -> None:
        """Once in a while: where do they stream, and what is that worth?"""
        if now_s - self._looked_at_s < LOOK_S:
            return
        self._looked_at_s = now_s
        self._fade(now_s)
        alike: dict[str, int] = {}
        kinds = {instance.spec.instance_id: instance.spec.predictor_key for instance in fleet.instances(ticket)}
        for kind in kinds.values():
            alike[kind] = alike.get(kind, 0) + 1
        stake = sum(stake for stake, _ in self._streamed.values())
        wanted = 1 + int(sum(took_s for _, took_s in self._streamed.values()) / (MEMORY_S * ANSWERS_EACH))
        kept: list[str] = []
        for name in sorted(self._streamed, key=lambda name: -self._streamed[name][1]):
            kind = kinds.get(name, "")
            if len(kept) < wanted and sum(kinds[other] == kind for other in kept) < alike.get(kind, 0) // SHARE_OF_ALIKE:
                kept.append(name)
        if kept:
            # A delay that there is room for is made up for elsewhere; who comes while a prompt is read has nowhere to go.
            share = 1.0 / (MEMORY_S * len(kept))
            self.delays_per_s = dict.fromkeys(kept, stake * share * (1.0 - room_ratio**3))
            self.came_per_s, self.patience_s = self._came * share, self._may_take_s / self._came
        else:
            self.delays_per_s = {}

    def cost(self, instance: Instance, cost: float, work_s: float, ttft_s: float, toll: float) -> float:
        """Of a request that takes so long there and costs so much by whom it would delay; `toll` times what a delay costs the class."""
        delays_per_s = self.delays_per_s.get(instance.spec.instance_id)
        if delays_per_s is None:
            return cost
        delays = toll * delays_per_s * work_s
        return (delays if delays > cost else cost) + self.turned_away(work_s, ttft_s)

    def turned_away(self, work_s: float, ttft_s: float) -> float:
        """Worth of those who come while they would have to wait too long for it."""
        too_long_s = ttft_s - self.patience_s
        if too_long_s <= 0.0:
            return 0.0
        return self.came_per_s * (work_s if work_s < too_long_s else too_long_s)

    def _fade(self, now_s: float) -> None:
        if now_s <= self._at_s:
            return
        keep = exp((self._at_s - now_s) / MEMORY_S)
        self._at_s = now_s
        self._came *= keep
        self._may_take_s *= keep
        self._streamed = {
            name: (stake * keep, took_s * keep) for name, (stake, took_s) in self._streamed.items() if took_s * keep > NEGLIGIBLE_S
        }


class Reserve:
    """Of all models."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}

    def learn(self, placement: Placement, outcome: Outcome) -> None:
        """It is over. What counts is what was promised in time and answered."""
        ticket = placement.ticket
        if ticket.worth <= 1.0 or ticket.late or outcome.e2e_s is None:
            return
        ended_at_s = ticket.request.arrived_at_s + outcome.e2e_s
        kept = self._kept.get(ticket.model)
        if kept is None:
            kept = self._kept[ticket.model] = Kept()
        kept.ended(placement, max(ended_at_s - placement.started_at_s, 0.0), ended_at_s)

    def kept_from(self, ticket: Ticket, fleet: Fleet, room_ratio: float, now_s: float) -> Kept | None:
        """The instances where this ticket has to pay more than whom it delays; None where nothing is kept from it. `room_ratio`: 1 = there
        is room for all, 0 = there is not (core/budget)."""
        kept = self._kept.get(ticket.model)
        if kept is None or ticket.worth > 1.0:
            return None
        kept.look(ticket, fleet, room_ratio, now_s)
        return kept if kept.delays_per_s else None
