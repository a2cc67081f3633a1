"""What an instance has read of late is believed to cost less there, and the memory of it is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.openai.body import MAX_BLOCKS as BLOCKS_OF_A_PROMPT
from gateway.predict.prefix import BLOCK_TOKENS, FIRST_TRUST, MAX_BLOCKS, Warmth

SYSTEM_TEXT = (1, 2, 3)


def test_a_beginning_that_is_read_again_and_again_stays_warm_whatever_passes_in_between() -> None:
    warmth = Warmth()
    for block in range(10, 10 + 5 * MAX_BLOCKS):
        warmth.sent((block,))
        if block % 100 == 0:
            warmth.sent(SYSTEM_TEXT)
    assert warmth.tokens((*SYSTEM_TEXT, 7), 100_000) == 3 * BLOCK_TOKENS * FIRST_TRUST
    assert not warmth.holds(10)


def test_blocks_count_from_the_beginning_and_never_for_more_than_the_prompt() -> None:
    warmth = Warmth()
    warmth.sent(SYSTEM_TEXT)
    assert warmth.tokens((9, *SYSTEM_TEXT), 100_000) == 0.0
    assert warmth.tokens(SYSTEM_TEXT, 2 * BLOCK_TOKENS) == (2 * BLOCK_TOKENS - 1) * FIRST_TRUST


@given(st.lists(st.integers(1, BLOCKS_OF_A_PROMPT), min_size=500, max_size=900), st.integers(0, 2**61))
def test_at_least_half_of_what_it_may_remember_is_remembered_and_never_more_than_all(lengths: list[int], first: int) -> None:
    warmth, sent = Warmth(), []
    for length in lengths:
        blocks = tuple(first + len(sent) + number for number in range(length))
        sent.extend(blocks)
        warmth.sent(blocks)
    held = [warmth.holds(block) for block in sent]
    assert sum(held) <= MAX_BLOCKS
    assert all(held[-(MAX_BLOCKS // 2 - 2 * BLOCKS_OF_A_PROMPT) :])
