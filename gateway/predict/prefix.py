"""Which prompt blocks an instance has read of late, so that the same beginning is predicted to cost less there.

The gateway sees keyed hashes of leading prompt blocks (never the text); engines keep such blocks in their KV cache, least recently used
first to go. This mirrors that with a bounded memory per instance, and learns how far an engine really profits: some run without a prefix
cache, some share it with other gateways' traffic.
"""

from __future__ import annotations

from typing import Any, Final

BLOCK_TOKENS: Final = 256  # what one hash stands for
MAX_BLOCKS: Final = 4096  # per instance, at most; at least half as many
FIRST_TRUST: Final = 0.7


class Warmth:
    """What one instance has read of late, and how far it profits from that."""

    __slots__ = ("_before", "_lately", "trust_ratio")

    def __init__(self) -> None:
        # In two generations: what is read again moves into the later one, and when that is full the earlier one is forgotten. Exact
        # order would cost more for every request than it tells of a cache that is only guessed at.
        self._lately: set[int] = set()
        self._before: set[int] = set()
        self.trust_ratio = FIRST_TRUST

    def holds(self, block: int) -> bool:
        """Has it read this block of late?"""
        return block in self._lately or block in self._before

    def tokens(self, hashes: tuple[int, ...], prompt_tokens: int) -> float:
        """Prompt tokens expected to be read from its cache: 0 .. prompt_tokens - 1."""
        lately, before = self._lately, self._before
        matched = 0
        for block in hashes:
            if block not in lately and block not in before:
                break
            matched += 1
        if not matched:
            return 0.0
        known = matched * BLOCK_TOKENS
        return (known if known < prompt_tokens else prompt_tokens - 1) * self.trust_ratio

    def sent(self, hashes: tuple[int, ...]) -> None:
        """It is reading this prompt."""
        lately = self._lately
        for block in hashes:
            lately.add(block)
        if len(lately) > MAX_BLOCKS // 2 - len(hashes):
            self._before, self._lately = lately, set()

    def learn(self, saved_ratio: float) -> None:
        """Of the tokens matched in memory, this share (clamped to 0..1) really was spared."""
        self.trust_ratio += 0.1 * (min(max(saved_ratio, 0.0), 1.0) - self.trust_ratio)


class PrefixMemory:
    """All instances' warmth."""

    def __init__(self) -> None:
        self._known: dict[str, Warmth] = {}

    def of(self, instance_id: str) -> Warmth:
        """An instance's, made at first sight."""
        found = self._known.get(instance_id)
        if found is None:
            found = self._known[instance_id] = Warmth()
        return found

    def state(self) -> dict[str, Any]:
        """How far instances are trusted. What is warm is not saved: after a restart of ours it may be minutes old."""
        return {name: warmth.trust_ratio for name, warmth in self._known.items() if warmth.trust_ratio != FIRST_TRUST}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        for name, trust in state.items():
            self.of(name).trust_ratio = float(trust)
