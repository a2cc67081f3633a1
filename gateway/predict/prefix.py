"""Which prompt blocks an instance has read of late, so that the same beginning is predicted to cost less there.

The gateway sees keyed hashes of leading prompt blocks (never the text); engines keep such blocks in their KV cache, least recently used
first to go. This mirrors that with a bounded memory per instance, and learns how far an engine really profits: some run without a prefix
cache, some share it with other gateways' traffic.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

MAX_BLOCKS = 4096  # per instance
FIRST_TRUST = 0.7


class PrefixMemory:
    """Warmth of prompts per instance. `block_tokens`: tokens one hash stands for."""

    def __init__(self, block_tokens: int = 256) -> None:
        self.block_tokens = block_tokens
        # Ordered: taking the oldest off the front of a plain dict looks past everything taken before it.
        self._blocks: dict[str, OrderedDict[int, None]] = {}
        self._trust: dict[str, float] = {}

    def warm_tokens(self, instance_id: str, hashes: tuple[int, ...], prompt_tokens: int) -> float:
        """Prompt tokens expected to be read from the instance's cache: 0 .. prompt_tokens - 1."""
        blocks = self._blocks.get(instance_id)
        if not blocks or not hashes or hashes[0] not in blocks:
            return 0.0
        matched = 1
        for block in hashes[1:]:
            if block not in blocks:
                break
            matched += 1
        return min(matched * self.block_tokens, prompt_tokens - 1) * self._trust.get(instance_id, FIRST_TRUST)

    def sent(self, instance_id: str, hashes: tuple[int, ...]) -> None:
        """The instance is reading this prompt."""
        if not hashes:
            return
        blocks = self._blocks.get(instance_id)
        if blocks is None:
            blocks = self._blocks[instance_id] = OrderedDict()
        # Later blocks are useless without the earlier ones, so the earlier are the more recently used.
        for block in reversed(hashes):
            blocks[block] = None
            blocks.move_to_end(block)
        while len(blocks) > MAX_BLOCKS:
            blocks.popitem(last=False)

    def learn(self, instance_id: str, saved_ratio: float) -> None:
        """Of the tokens matched in memory, this share (clamped to 0..1) really was spared."""
        trust = self._trust.get(instance_id, FIRST_TRUST)
        self._trust[instance_id] = trust + 0.1 * (min(max(saved_ratio, 0.0), 1.0) - trust)

    def trust_ratio(self, instance_id: str) -> float:
        """How far the instance profits from what it has read, 0..1."""
        return self._trust.get(instance_id, FIRST_TRUST)

    def forget(self, instance_id: str) -> None:
        """The instance was restarted: nothing is warm there."""
        self._blocks.pop(instance_id, None)

    def state(self) -> dict[str, Any]:
        """How far instances are trusted. What is warm is not saved: after a restart of ours it may be minutes old."""
        return dict(self._trust)

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._trust = {name: float(trust) for name, trust in state.items()}
