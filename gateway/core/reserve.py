"""Where the answers of a class that is worth more than others stream, and what others have to pay there.

A price by what is at stake at the moment lets a long document onto the best instance whenever no tight answer happens to stream there;
those that come next then miss by it. So the instances where such a class has streamed most of late ask of everybody else what a second
of delay costs the whole class, times its worth, whoever is there just now. Long prompts settle elsewhere, the class stays where they do
not come, and while little is at stake there is little to pay. Who is served where is the policy's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from typing import Final

from gateway.core.flow import Outcome, Placement, Ticket
from gateway.core.policy import Fleet

# Long enough to hold on to an instance through a lull, short enough to let go of one within a minute.
MEMORY_S: Final = 30.0
LOOK_S: Final = 1.0
# Answers at a time that one instance is kept for. Of instances alike at most one in three: the others' work has to go somewhere.
ANSWERS_EACH: Final = 8.0
SHARE_OF_ALIKE: Final = 3
NEGLIGIBLE_S: Final = 0.05


class _Streams:
    """Of one model: by instance, the stakes and the time of the class's answers there, both fading, and the prices that follow."""

    __slots__ = ("_at_s", "_looked_at_s", "_streamed", "prices_per_s")

    def __init__(self) -> None:
        self._streamed: dict[str, tuple[float, float]] = {}
        self._at_s = self._looked_at_s = 0.0
        self.prices_per_s: dict[str, float] = {}

    def ended(self, instance_id: str, stake: float, took_s: float, now_s: float) -> None:
        self._fade(now_s)
        known_stake, known_s = self._streamed.get(instance_id, (0.0, 0.0))
        self._streamed[instance_id] = known_stake + stake, known_s + took_s

    def look(self, ticket: Ticket, fleet: Fleet, now_s: float) -> None:
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
        self.prices_per_s = dict.fromkeys(kept, stake / (MEMORY_S * len(kept))) if kept else {}

    def _fade(self, now_s: float) -> None:
        if now_s <= self._at_s:
            return
        keep = exp((self._at_s - now_s) / MEMORY_S)
        self._at_s = now_s
        self._streamed = {
            name: (stake * keep, took_s * keep) for name, (stake, took_s) in self._streamed.items() if took_s * keep > NEGLIGIBLE_S
        }


class Reserve:
    """Of all models."""

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams: dict[str, _Streams] = {}

    def learn(self, placement: Placement, outcome: Outcome) -> None:
        """It is over. What counts is what was promised in time and answered."""
        ticket = placement.ticket
        if ticket.worth <= 1.0 or ticket.late or outcome.e2e_s is None:
            return
        ended_at_s = ticket.request.arrived_at_s + outcome.e2e_s
        took_s = max(ended_at_s - placement.started_at_s, 0.0)
        streams = self._streams.get(ticket.model)
        if streams is None:
            streams = self._streams[ticket.model] = _Streams()
        streams.ended(placement.instance_id, ticket.worth * ticket.stake_per_s * took_s, took_s, ended_at_s)

    def prices_per_s(self, ticket: Ticket, fleet: Fleet, now_s: float) -> Mapping[str, float]:
        """By instance: what a second of its time costs this ticket at least, in likelihood; empty where nothing is kept from it."""
        streams = self._streams.get(ticket.model)
        if streams is None or ticket.worth > 1.0:
            return {}
        streams.look(ticket, fleet, now_s)
        return streams.prices_per_s
