"""Which prompt blocks an instance has read of late, so that the same beginning is predicted to cost less there.

The gateway sees keyed hashes of leading prompt blocks (never the text); engines keep such blocks in their KV cache, least recently used
first to go. This mirrors that with a bounded memory per instance, and learns how far an engine really profits: some run without a prefix
cache, some share it with other gateways' traffic.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

BLOCK_TOKENS = 256  # what one hash stands for
MAX_BLOCKS = 4096  # per instance
FIRST_TRUST = 0.7


class Warmth:
    """What one instance has read of late, and how far it profits from that."""

    __slots__ = ("blocks", "trust_ratio")

    def __init__(self) -> None:
        # Ordered: taking the oldest off the front of a plain dict looks past everything taken before it.
        self.blocks: OrderedDict[int, None] = OrderedDict()
        self.trust_ratio = FIRST_TRUST

    def tokens(self, hashes: tuple[int, ...], prompt_tokens: int) -> float:
        """Prompt tokens expected to be read from its cache: 0 .. prompt_tokens - 1."""
        blocks = self.blocks
        matched = 0
        for block in hashes:
            if block not in blocks:
                break
            matched += 1
        if not matched:
            return 0.0
        known = matched * BLOCK_TOKENS
        return (known if known < prompt_tokens else prompt_tokens - 1) * self.trust_ratio

    def sent(self, hashes: tuple[int, ...]) -> None:
        """It is reading this prompt."""
        blocks = self.blocks
        # Later blocks are useless without the earlier ones, so the earlier are the more recently used.
        for block in reversed(hashes):
            blocks[block] = None
            blocks.move_to_end(block)
        while len(blocks) > MAX_BLOCKS:
            blocks.popitem(last=False)

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
