"""The pace of one resident between two looks at it: how long a step of its engine took, and what the engine had to do meanwhile.

One resident at a time, the probe, stands for all of an instance: they share the engine's steps. What a step should have taken, and what is
learnt from the difference, is hearing.py's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final

from gateway.core.flow import Placement

if TYPE_CHECKING:
    from gateway.predict.latency import Load

# A pace is judged over at least this many tokens; fewer, and the step in progress when the window opened weighs too much.
PACE_TOKENS: Final = 8
LONG_PACE_TOKENS: Final = 400


class Probe:
    """A resident that is followed, and where it and its instance stood at the last look."""

    __slots__ = ("_context_k_s", "_from_tokens", "_read_k", "_sequences_s", "_since_s", "placement")

    def __init__(self, placement: Placement, load: Load) -> None:
        self.placement = placement
        self._from_tokens = placement.output_tokens
        self._since_s = since_s = placement.last_token_at_s or placement.first_token_at_s
        # What passed between that token and now belongs to the window as well.
        early_s = load.at_s - since_s if load.at_s > since_s else 0.0
        self._sequences_s = load.sequences_s - load.decoding * early_s
        self._context_k_s = load.context_k_s - load.context_k * early_s
        self._read_k = load.read_k

    def steps(self, load: Load) -> float:
        """The instance's step count: reckoned from predicted paces elsewhere, here counted. Negative when it cannot be said."""
        placement = self.placement
        first_steps: float = placement.features.first_steps
        if first_steps < 0.0 or not placement.last_token_at_s:
            return -1.0
        since_s = load.at_s - placement.last_token_at_s
        since = since_s * (1.0 - load.reading_ratio) / load.step_s if since_s > 0.0 else 0.0
        return first_steps + placement.output_tokens - 1 + since

    def sample(self, load: Load) -> tuple[list[float], float] | None:
        """Features and seconds of one step since the last look; None while they say too little."""
        placement = self.placement
        tokens = placement.output_tokens - self._from_tokens
        if tokens < PACE_TOKENS or (tokens < LONG_PACE_TOKENS and load.pending and load.key.batches):
            return None  # too few, or a prompt half read: the long window can bear that
        took_s, looked_s = placement.last_token_at_s - self._since_s, max(load.at_s - self._since_s, 1e-6)
        if took_s <= 0.0:
            return None
        sequences = (load.sequences_s - self._sequences_s) / looked_s + load.others_seqs
        context_k = (load.context_k_s - self._context_k_s) / looked_s + load.others_context_k
        return [1.0, sequences, context_k, (load.read_k - self._read_k) / tokens], took_s / tokens


def probe_of(residents: Iterable[Placement], load: Load) -> Probe | None:
    """One to follow. Of the oldest only: if they show no tokens, neither will the others."""
    for placement in islice(residents, 4):
        if placement.first_token_at_s > 0.0 and placement.ticket.request.n == 1:
            return Probe(placement, load)
    return None
