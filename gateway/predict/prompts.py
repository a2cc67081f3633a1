"""How many tokens a prompt has, before any engine has counted them: bytes x a ratio learnt per (tenant, model) from the engines' `usage`.

Languages and tokenizers differ by a factor of three; one tenant's traffic to one model hardly does. The bytes are openai/body's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

# English prose with today's 100k-token vocabularies, JSON framing left out.
TOKENS_PER_BYTE: Final = 0.25
MAX_KEYS: Final = 20_000
_SMOOTHING: Final = 0.05
SETTLED: Final = 64  # samples


class PromptRatios:
    """Learns tokens per byte; a tenant that was never seen begins at its model's ratio, a model at the constant."""

    def __init__(self) -> None:
        self._ratios: dict[tuple[str, str], tuple[float, int]] = {}
        self._told = 0

    def tokens(self, tenant: str, model: str, text_bytes: int) -> int:
        """Estimated prompt tokens of `text_bytes` bytes of text."""
        known = self._ratios.get((tenant, model)) or self._ratios.get(("", model))
        return int(text_bytes * (known[0] if known else TOKENS_PER_BYTE) + 0.5) or 1

    def learn(self, tenant: str, model: str, text_bytes: int, prompt_tokens: int) -> None:
        """The engine counted `prompt_tokens` in `text_bytes`. Ratios no tokenizer has (an image in the body, say) are left out."""
        self._told += 1
        known = self._ratios.get((tenant, model))
        if known is not None and known[1] > SETTLED and self._told % 8:
            return  # it hardly moves any more
        if text_bytes < 32 or prompt_tokens <= 0 or not 0.02 <= prompt_tokens / text_bytes <= 1.5:
            return
        sample = prompt_tokens / text_bytes
        for key in ((tenant, model), ("", model)):
            ratio, seen = self._ratios.pop(key, (sample, 0))
            if len(self._ratios) >= MAX_KEYS:
                del self._ratios[next(iter(self._ratios))]
            weight = max(_SMOOTHING, 1.0 / (seen + 1))
            self._ratios[key] = (ratio + weight * (sample - ratio), min(seen + 1, 1000))

    def state(self) -> list[list[Any]]:
        """Plain values, for saving."""
        return [[tenant, model, ratio, seen] for (tenant, model), (ratio, seen) in self._ratios.items()]

    def restore(self, state: Sequence[Sequence[Any]]) -> None:
        """Take back what `state` gave."""
        for tenant, model, ratio, seen in state[:MAX_KEYS]:
            self._ratios[(tenant, model)] = (float(ratio), int(seen))
