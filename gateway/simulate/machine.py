"""One simulated engine that advances many steps at a time, for discrete-event runs.

Continuous batching with chunked prefill: each step gives every decoding sequence a token and reads up to `chunk_tokens - decoding` prompt
tokens, first come, first served; a step takes `a + b * sequences + c * context + d * prompt tokens` and some terms that predictors are not
told of. Between two events nothing but decoding happens, and then the time of k steps is a quadratic in k, so k steps are one jump.
It keeps no heap of events and knows no gateway: the driver asks `next_at_s` and calls `run`.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, replace
from random import Random
from typing import Any


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What one engine is like. Step times in milliseconds (per thousand tokens for `c` and `d`), as in config/gpus.yaml."""

    a: float
    b: float
    c: float
    d: float
    chunk_tokens: int = 2048
    max_num_seqs: int = 256
    kv_tokens: int = 0  # 0 = never full
    prefix_cache: bool = False
    block_tokens: int = 256  # what one prefix hash stands for
    overhead_s: float = 0.003  # HTTP, tokenizer and scheduler of the engine, before a request is seen by a step
    attention: float = 0.02  # prefill of a chunk grows by this share for each thousand tokens of its sequence already read
    crowd: float = 0.004  # milliseconds more per sequence above 32
    jitter_ratio: float = 0.05  # spread of one step around its expected time

    def slower(self, ratio: float) -> MachineFacts:
        """The same engine at `ratio` of its speed (0.5 = every step takes twice as long)."""
        return self.scaled(1 / ratio, 1 / ratio)

    def scaled(self, decode: float, prefill: float) -> MachineFacts:
        """The same engine with decode steps and prefill taking so many times longer."""
        return replace(self, a=self.a * decode, b=self.b * decode, c=self.c * decode, d=self.d * prefill, crowd=self.crowd * decode)

    def step_s(self, sequences: int, context_tokens: float, prefill_tokens: float = 0.0) -> float:
        """Expected time of one step, seconds."""
        crowd = self.crowd * (sequences - 32) if sequences > 32 else 0.0
        return (self.a + self.b * sequences + crowd + self.c * context_tokens / 1000 + self.d * prefill_tokens / 1000) / 1000


class Sequence:
    """One request inside an engine. `owner` is the driver's own."""

    __slots__ = (
        "cached_tokens",
        "emitted_before",
        "ends_at_step",
        "first_at_s",
        "hashes",
        "log_from",
        "output_tokens",
        "owner",
        "prompt_tokens",
        "read_tokens",
        "started_at_step",
        "state",
        "to_read_tokens",
    )

    def __init__(self, owner: Any, prompt_tokens: int, output_tokens: int, hashes: tuple[int, ...] = ()) -> None:
        self.owner = owner
        self.prompt_tokens = prompt_tokens
        self.output_tokens = max(output_tokens, 1)
        self.hashes = hashes
        self.cached_tokens = 0
        self.state = WAITING
        self.to_read_tokens = prompt_tokens
        self.read_tokens = 0
        self.emitted_before = 0  # tokens given before a preemption
        self.started_at_step = 0
        self.ends_at_step = 0
        self.first_at_s = -1.0
        self.log_from = 0


WAITING, READING, DECODING, OVER = range(4)


class Machine:
    """The engine. The driver calls `submit`, `cancel` and, at `next_at_s`, `run`, which returns who got a first token and who is done."""

    def __init__(self, facts: MachineFacts, chance: Random, keep_gaps: bool = True) -> None:
        self.facts = facts
        self.chance = chance
        self.keep_gaps = keep_gaps  # for `p95_gap_s`; one that runs for days keeps none
        self.steps = 0
        self.waiting: deque[Sequence] = deque()
        self.reading: deque[Sequence] = deque()
        self.decoding = 0
        self.context_tokens = 0  # of the decoding ones
        self.kv_used_tokens = 0
        self.preempted = 0
        self.emitted_tokens = 0
        self.read_tokens = 0
        self.busy_s = 0.0
        self._ending: list[tuple[int, int, Sequence]] = []
        self._residents: dict[Sequence, None] = {}
        self._order = 0
        self._log: list[tuple[float, int]] = []  # (gap, how many steps had it)
        self._blocks: dict[int, None] = {}
        # The jump under way: when it began, how many steps, time of the first and growth per step, prompt tokens read in it.
        self._began_at_s = 0.0
        self._jump = 0
        self._first_s = 0.0
        self._growth_s = 0.0
        self._chunks: list[tuple[Sequence, int]] = []
        self.next_at_s = math.inf

    # ---- from the driver

    @property
    def in_flight(self) -> int:
        """Requests inside."""
        return len(self.waiting) + len(self.reading) + self.decoding

    def unread_tokens(self) -> int:
        """Prompt tokens still to read."""
        return sum(sequence.to_read_tokens for sequence in self.waiting) + sum(sequence.to_read_tokens for sequence in self.reading)

    def unread_after_step(self) -> int:
        """The same, once the step under way is over."""
        return self.unread_tokens() - sum(tokens for _, tokens in self._chunks)

    def step_left_s(self, now_s: float) -> float:
        """Time until the step under way ends, 0 when idle."""
        if not self._jump:
            return 0.0
        if self._jump == 1:
            return max(self.next_at_s - now_s, 0.0)
        return max(self._began_at_s + self._took_s(self._steps_in(now_s - self._began_at_s) + 1) - now_s, 0.0)

    def submit(self, sequence: Sequence, now_s: float) -> None:
        """A request reaches the engine."""
        self.waiting.append(sequence)
        self._cut(now_s)
        if self._jump == 0:
            self.next_at_s = now_s  # idle, or between two steps: `run` starts the next one

    def cancel(self, sequence: Sequence, now_s: float) -> None:
        """The caller left; the place is free at once (engines notice within a step)."""
        if sequence.state == OVER:
            return
        if sequence.state == WAITING:
            if sequence in self.waiting:  # else it is still on its way here
                self.waiting.remove(sequence)
        elif sequence.state == READING:
            self.reading.remove(sequence)
            self._chunks = [chunk for chunk in self._chunks if chunk[0] is not sequence]
            self.kv_used_tokens -= sequence.read_tokens + sequence.cached_tokens
        else:
            self._leave(sequence)
        sequence.state = OVER

    def change(self, facts: MachineFacts, now_s: float) -> None:
        """The engine behaves differently from its next step on."""
        self.facts = facts
        self._cut(now_s)

    def emitted(self, sequence: Sequence, now_s: float) -> tuple[int, float]:
        """Tokens given so far and when the last one came (as of the last step's end)."""
        if sequence.state != DECODING:
            return sequence.emitted_before, sequence.first_at_s
        steps, at_s = self.steps, self._began_at_s
        if self._jump > 1:
            done = min(self._steps_in(now_s - self._began_at_s), self._jump)
            steps, at_s = steps + done, at_s + self._took_s(done)
        return sequence.emitted_before + 1 + steps - sequence.started_at_step, at_s

    def tell(self, now_s: float) -> None:
        """Note in every resident's owner (a placement) how many tokens it has and when the last one came."""
        for sequence in self._residents:
            owner = sequence.owner
            owner.output_tokens, owner.last_token_at_s = self.emitted(sequence, now_s)

    def run(self, now_s: float) -> tuple[list[Sequence], list[Sequence]]:
        """End the jump that is due at `now_s`: (first tokens, finished). `plan` must follow when the driver has told everybody."""
        first: list[Sequence] = []
        done: list[Sequence] = []
        jump = self._jump
        if jump:
            took_s = now_s - self._began_at_s
            self.busy_s += took_s
            self.steps += jump
            self.context_tokens += self.decoding * jump
            self.kv_used_tokens += self.decoding * jump
            self.emitted_tokens += self.decoding * jump
            if self.keep_gaps:
                self._log.append((took_s / jump, jump))
            for sequence, tokens in self._chunks:
                sequence.to_read_tokens -= tokens
                sequence.read_tokens += tokens
                self.read_tokens += tokens
                self.kv_used_tokens += tokens
                if sequence.to_read_tokens <= 0:
                    self.reading.remove(sequence)
                    self._enter(sequence, now_s)
                    if sequence.emitted_before == 0:
                        first.append(sequence)
            ending = self._ending
            while ending and ending[0][0] <= self.steps:
                _, _, sequence = heapq.heappop(ending)
                if sequence.state == DECODING and sequence.ends_at_step <= self.steps:
                    self._leave(sequence)
                    sequence.state = OVER
                    done.append(sequence)
            self._chunks = []
            self._jump = 0
        self._began_at_s = now_s
        self.next_at_s = math.inf
        return first, done

    def residents(self) -> list[Sequence]:
        """Those that get a token at the end of each step."""
        return list(self._residents)

    def plan(self, now_s: float, most_steps: int = 1_000_000) -> None:
        """Start the next jump, of at most so many steps, if there is anything to do and none is under way."""
        if self._jump:
            return
        facts = self.facts
        self._admit()
        budget = facts.chunk_tokens - self.decoding
        extra_ms = 0.0
        for sequence in self.reading:
            if budget <= 0:
                break
            tokens = min(sequence.to_read_tokens, budget)
            budget -= tokens
            self._chunks.append((sequence, tokens))
            extra_ms += facts.d * tokens / 1000 * (1.0 + facts.attention * (sequence.read_tokens + sequence.cached_tokens) / 1000)
        if not self._chunks and not self.decoding:
            self.next_at_s = math.inf
            self._log.clear()
            return
        jump = 1
        if not self._chunks:
            ending = self._ending
            while ending[0][2].state != DECODING or ending[0][2].ends_at_step != ending[0][0]:
                heapq.heappop(ending)
            jump = min(ending[0][0] - self.steps, most_steps)
            if facts.kv_tokens:
                room = facts.kv_tokens - self.kv_used_tokens
                jump = max(min(jump, room // self.decoding), 1)
        noise = math.exp(self.chance.gauss(0.0, facts.jitter_ratio) / math.sqrt(jump)) if facts.jitter_ratio else 1.0
        self._began_at_s = now_s
        self._jump = jump
        self._first_s = (facts.step_s(self.decoding, self.context_tokens) + extra_ms / 1000) * noise
        self._growth_s = facts.c * self.decoding / 1e6 * noise
        self.next_at_s = now_s + self._took_s(jump)

    def p95_gap_s(self, sequence: Sequence) -> float:
        """The 95th percentile of the gaps between this sequence's tokens, up to now, seconds; 0 for a single token."""
        gaps = sorted(self._log[sequence.log_from :])
        above = 0.05 * sum(steps for _, steps in gaps)
        for gap_s, steps in reversed(gaps):
            above -= steps
            if above < 0:
                return gap_s
        return 0.0

    # ---- inside

    def _cut(self, now_s: float) -> None:
        """Something is to be seen at the end of the step under way, not of the whole jump."""
        if self._jump > 1:
            done = self._steps_in(now_s - self._began_at_s)
            if done + 1 < self._jump:
                self._jump = done + 1
                self.next_at_s = self._began_at_s + self._took_s(self._jump)

    def _took_s(self, steps: int) -> float:
        return steps * self._first_s + self._growth_s * steps * (steps - 1) / 2

    def _steps_in(self, span_s: float) -> int:
        """Whole steps of the jump under way that end within its first `span_s` seconds."""
        if span_s <= 0:
            return 0
        half = self._growth_s / 2
        slope = self._first_s - half
        if half <= 0:
            return int(span_s / slope)
        return int((math.sqrt(slope * slope + 4 * half * span_s) - slope) / (2 * half))

    def _admit(self) -> None:
        facts = self.facts
        if facts.kv_tokens and self.decoding and self.kv_used_tokens + self.decoding > facts.kv_tokens:
            self._preempt()
        while self.waiting and len(self.reading) + self.decoding < facts.max_num_seqs:
            sequence = self.waiting[0]
            if facts.kv_tokens:
                needs = sequence.to_read_tokens + sum(other.to_read_tokens for other in self.reading)
                if self.kv_used_tokens + needs > facts.kv_tokens and (self.decoding or self.reading):
                    return
            self.waiting.popleft()
            sequence.state = READING
            self.reading.append(sequence)
            if facts.prefix_cache and sequence.hashes and not sequence.cached_tokens:
                sequence.cached_tokens = self._cached(sequence)
                sequence.to_read_tokens -= sequence.cached_tokens
                self.kv_used_tokens += sequence.cached_tokens

    def _cached(self, sequence: Sequence) -> int:
        matched = 0
        for block in sequence.hashes:
            if block not in self._blocks:
                break
            matched += 1
        for block in reversed(sequence.hashes):
            self._blocks.pop(block, None)
            self._blocks[block] = None
        most = max((self.facts.kv_tokens or 400_000) // self.facts.block_tokens, 1)
        while len(self._blocks) > most:
            del self._blocks[next(iter(self._blocks))]
        return min(matched * self.facts.block_tokens, sequence.to_read_tokens - 1)

    def _enter(self, sequence: Sequence, now_s: float) -> None:
        sequence.state = DECODING
        sequence.started_at_step = self.steps
        sequence.ends_at_step = self.steps + sequence.output_tokens - sequence.emitted_before - 1
        if sequence.first_at_s < 0:
            sequence.first_at_s = now_s
            sequence.log_from = len(self._log)
        self.decoding += 1
        self.emitted_tokens += 1
        self.context_tokens += sequence.prompt_tokens + sequence.emitted_before + 1
        self.kv_used_tokens += 1
        self._order += 1
        self._residents[sequence] = None
        heapq.heappush(self._ending, (sequence.ends_at_step, self._order, sequence))

    def _leave(self, sequence: Sequence) -> int:
        given = 1 + self.steps - sequence.started_at_step
        context = sequence.prompt_tokens + sequence.emitted_before + given
        self.decoding -= 1
        self.context_tokens -= context
        self.kv_used_tokens -= context
        del self._residents[sequence]
        return given

    def _preempt(self) -> None:
        """KV memory is full: the newest resident loses its place and is read again later, with what it has said so far."""
        while self.decoding > 1 and self.kv_used_tokens + self.decoding > self.facts.kv_tokens:
            sequence = next(reversed(self._residents))
            given = self._leave(sequence)
            sequence.emitted_before += given
            sequence.state = WAITING
            sequence.to_read_tokens = sequence.prompt_tokens + sequence.emitted_before
            sequence.read_tokens = sequence.cached_tokens = 0
            self.waiting.appendleft(sequence)
            self.preempted += 1
