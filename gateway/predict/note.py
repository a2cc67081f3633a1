"""What was believed of a placement when it started, to be compared with the truth when that is known."""

from __future__ import annotations


class Note:
    """What was believed when a placement started (`Placement.features`), to learn from when the truth is known."""

    __slots__ = (
        "_ahead_k", "_first_step_s", "_further", "context_tokens", "expected_first_at_s", "first_steps", "new_k", "seen", "sequences",
        "warm_tokens",
    )  # fmt: skip

    def __init__(
        self,
        new_k: float,
        ahead_k: float,
        first_step_s: float,
        further: float,
        context_tokens: int,
        warm_tokens: float,
        sequences: int,
        expected_first_at_s: float,
    ) -> None:
        self.new_k = new_k
        self._ahead_k = ahead_k
        self._first_step_s = first_step_s
        self._further = further
        self.context_tokens = context_tokens
        self.warm_tokens = warm_tokens
        self.sequences = sequences
        self.expected_first_at_s = expected_first_at_s
        self.first_steps = -1.0  # the instance's step count at its first token, < 0 = none yet
        self.seen = False  # somebody told us of its first token; without it is only reckoned

    @property
    def features(self) -> list[float]:
        """What the model of first tokens looks at."""
        new_k, first_step_s, further = self.new_k, self._first_step_s, self._further
        return [1.0, new_k, new_k * new_k, self._ahead_k, first_step_s, further]
