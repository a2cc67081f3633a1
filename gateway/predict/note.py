"""What was believed of a placement when it started, to be compared with the truth when that is known."""

from __future__ import annotations


class Note:
    """`Placement.features`. Filled in by latency.py's `Load.starts` attribute by attribute: one is made for every request, and a call
    of `__init__` would cost twice as much."""

    __slots__ = (
        "ahead_k", "context_tokens", "expected_first_at_s", "first_step_s", "first_steps", "further_s", "new_k", "seen", "sequences",
        "warm_tokens",
    )  # fmt: skip

    new_k: float  # prompt tokens to be read, thousands
    ahead_k: float  # prompt tokens read before them, thousands
    first_step_s: float  # the step of its first token
    further_s: float  # the steps of further chunks
    context_tokens: int
    warm_tokens: float
    sequences: int
    expected_first_at_s: float
    first_steps: float  # the instance's step count at its first token, < 0 = none yet
    seen: bool  # somebody told us of its first token; without it is only reckoned

    @property
    def features(self) -> list[float]:
        """What the model of first tokens looks at."""
        new_k = self.new_k
        return [1.0, new_k, new_k * new_k, self.ahead_k, self.first_step_s, self.further_s]
