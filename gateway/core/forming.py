"""Holding a start back a little, so that several start together and the engine prefills them as one batch.

Only where the configuration gives a window (cost tiers), and only out of time that the promise can spare.
"""

from __future__ import annotations

from math import inf
from typing import Final

from gateway.core.flow import Placement
from gateway.core.instance import Instance

# A start is held for at most this share of the time it can spare: predictions err, and the rest is theirs.
HOLD_RATIO: Final = 0.25
SHORTEST_S: Final = 0.001


def held_until_s(placement: Placement, instance: Instance, now_s: float) -> float:
    """Until when this start may wait for others; 0 = it starts now. The instance has already counted it."""
    spec, ticket = instance.spec, placement.ticket
    if instance.in_flight >= spec.batch_min or ticket.late:
        return 0.0
    # The batch's prompts are read in the same steps: nobody has a first token before the last one, whose prediction counts the others.
    predicted_s = placement.prediction.ttft_s if placement.prediction is not None else 0.0
    deadline_at_s = min((held.ticket.ttft_deadline_at_s for held in instance.forming), default=inf)
    spare_s = min(ticket.ttft_deadline_at_s, deadline_at_s) - now_s - predicted_s
    held_s = min(spec.batch_window_s, spare_s * HOLD_RATIO)
    return now_s + held_s if held_s >= SHORTEST_S else 0.0
