"""How long an instance will take: time to the first token and between tokens, by what the gateway itself has sent there.

Two small linear models per `InstanceSpec.predictor_key` (GPU, model, engine configuration), shared by all instances of the key, and a
multiplicative bias per instance for each. They begin at shipped facts (step times `a, b, c, d`, see config/gpus.yaml) and are corrected by
first tokens and by the pace at which residents' tokens arrive (hearing.py). Nothing is scraped, so nothing is stale.

- One step (a token for every resident), seconds: `a + b * sequences + c * context + d * prompt tokens prefilled in it`.
- First token, seconds from the sending: `1, new, new^2, ahead, first step, further steps`: `new` are prompt tokens without a warm prefix,
  `ahead` the prompt tokens the engine reads before ours, both in thousands, and a step is what the first model says of the residents.

What depends on the instance alone is kept ready in `Load`: marked stale when something answers or ends there and renewed when it is next
looked at, so that asking for one more instance costs about a microsecond (predictor.py asks, in one loop over all of them). How long
outputs are and which prompts are warm is left to lengths.py and prefix.py.
"""

from __future__ import annotations

from collections import deque
from math import exp
from typing import Final

from gateway.core.flow import Placement
from gateway.core.instance import Instance
from gateway.predict.kinds import KeyModel
from gateway.predict.note import Note
from gateway.predict.pace import Probe
from gateway.predict.prefix import Warmth
from gateway.predict.regression import Drift

# Prompt tokens an engine reads in one step: vLLM's default for online serving. Only the shape of the prior depends on it.
CHUNK_K: Final = 2.048
# An instance's share of time spent on prompts is averaged over this long: several requests, yet shorter than a shift of the workload.
PREFILL_MEMORY_S: Final = 10.0
MOST_READING: Final = 0.8
# Cached figures of an instance are renewed by events, and after this long without one (contexts grow, other workers report).
FRESH_S: Final = 0.5


class Load:
    """What runs on one instance by our own count, and the figures derived from it."""

    __slots__ = (
        "_a", "_b", "_base_s", "_c", "_per_first_step", "_per_further_step", "at_s", "base_s", "cautious_ratio", "context_k",
        "context_k_s", "decoding", "first_every", "first_step_s", "fresh_at_s", "further_s", "gap_s", "key", "known_version",
        "learnt_at_s", "others_context_k", "others_seqs", "others_unread_k", "paced_at_s", "pending", "pending_k", "per_ahead_s",
        "per_context_s", "per_new2_s", "per_new_s", "per_sequence_s", "per_unread_s", "plain_s", "private", "probe", "read_k",
        "reading_ratio", "sequences_s", "shown", "step_drift", "step_s", "steps", "ttft_drift", "unheard", "waiting_at_s", "waiting_k",
        "warmth", "watched",
    )  # fmt: skip

    def __init__(self, key: KeyModel) -> None:
        self.key = key
        self.private = False
        self.warmth = Warmth()
        self.ttft_drift = Drift()
        self.step_drift = Drift()
        # How closely it is listened to (hearing.py): is its pace looked at at every event, and is every first token learnt from?
        self.watched = True
        self.first_every = 1
        self.unheard = 0  # first tokens since the last one that was learnt from
        self.learnt_at_s = self.paced_at_s = -1.0  # when a first token has last moved its kind's model, and a pace its bias
        self.probe: Probe | None = None
        self.pending: deque[Placement] = deque()  # sent, no first token yet, in the order the engine reads them
        self.pending_k = 0.0  # prompt tokens of theirs to be read, thousands
        self.waiting_k = 0.0  # those ahead of a newcomer, as of waiting_at_s
        self.waiting_at_s = 0.0
        self.decoding = 0
        self.shown = 0  # residents whose tokens are seen as they come
        self.context_k = 0.0  # prompts and output so far of the decoding ones, thousands of tokens
        # Steps done so far, as we reckon: residents' output = steps now - steps at their first token, without visiting each of them.
        self.steps = 0.0
        self.at_s = 0.0  # all of this is as of then
        self.reading_ratio = 0.0  # share of recent time the engine spent on prompts
        # Summed over time, for those who compare two moments: sequences decoding, their context; and thousands of prompt tokens read.
        self.sequences_s = self.context_k_s = self.read_k = 0.0
        # What other workers have there: sequences, and unread prompt tokens and context in thousands.
        self.others_seqs = 0
        self.others_unread_k = self.others_context_k = 0.0
        # Figures of the models and biases, of this version of the key's.
        self.known_version = -1
        self._a = self._b = self._c = self._base_s = self._per_first_step = self._per_further_step = 0.0
        self.per_new_s = self.per_new2_s = self.per_ahead_s = 0.0
        self.cautious_ratio = 1.0
        # Figures of what runs there. A first token takes `base_s`, so much for its own thousand tokens and their square, for what is ahead,
        # and for each further step.
        self.fresh_at_s = -1.0
        self.step_s = self.plain_s = 0.01  # a step, with and without the instance's bias
        self.base_s = self.first_step_s = self.further_s = 0.0
        self.per_unread_s = 1e-9  # what the engine needs for a thousand tokens that wait
        self.gap_s = self.per_sequence_s = self.per_context_s = 0.0

    # ---- time passes

    def advance(self, now_s: float) -> None:
        """Let residents grow and waiting prompts be read, up to now."""
        took_s = now_s - self.at_s
        if took_s <= 0:
            return
        self.at_s = now_s
        reading_ratio = self.reading_ratio
        if reading_ratio:
            self.reading_ratio = reading_ratio = reading_ratio * exp(-took_s / PREFILL_MEMORY_S) if reading_ratio > 1e-6 else 0.0
        decoding = self.decoding
        if decoding:
            steps = took_s * (1.0 - reading_ratio) / self.step_s
            context_k = self.context_k
            self.steps += steps
            self.sequences_s += took_s * decoding
            self.context_k_s += took_s * context_k
            self.context_k = context_k + steps * decoding / 1000
        pending = self.pending
        while pending:
            oldest = pending[0]
            note: Note = oldest.features
            if note.expected_first_at_s > now_s or oldest.ticket.request.stream:
                break
            pending.popleft()  # nobody will tell us of its first token
            if pending:
                self.pending_k -= note.new_k
            else:
                self.pending_k = self.waiting_k = 0.0
            self._answers(note)

    def unread_k(self, now_s: float) -> float:
        """Prompt tokens of ours the engine has yet to read before a newcomer's, thousands."""
        left_k = self.waiting_k
        if left_k:
            left_k -= (now_s - self.waiting_at_s) / self.per_unread_s
        return left_k if left_k > 0.0 else 0.0

    def share(self, instance: Instance) -> None:
        """What other workers have there, as the instance says."""
        self.others_seqs = instance.others_in_flight
        self.others_unread_k = instance.others_unprefilled_tokens / 1000
        self.others_context_k = instance.others_context_tokens / 1000

    def correct(self, steps: float) -> None:
        """So many steps have been done, whatever was reckoned."""
        self.context_k += (steps - self.steps) * self.decoding / 1000
        self.steps = steps

    def refresh(self, now_s: float) -> None:
        """Renew the figures, `advance` having been called. They are stale when `fresh_at_s` is more than FRESH_S ago, or negative."""
        if self.known_version != self.key.version:
            self._take_up()
        self.fresh_at_s = now_s
        decoding, context_k, gap = self.decoding + self.others_seqs, self.context_k, self.step_drift.value
        if context_k < 0.0:
            context_k = 0.0
        self.plain_s = first_step_s = plain_s = self._a + self._b * decoding + self._c * (context_k + self.others_context_k)
        if decoding:
            first_step_s *= 1.5
        self.first_step_s = first_step_s
        self.base_s = self._base_s + self._per_first_step * first_step_s
        self.further_s = further_s = self._per_further_step * plain_s
        self.per_unread_s = self.per_ahead_s + further_s / CHUNK_K + 1e-9
        step_s = plain_s * gap
        if step_s < 1e-4:
            step_s = 1e-4
        self.step_s = step_s
        if self.reading_ratio:
            slower = 1.0 / (1.0 - self.reading_ratio)
            step_s *= slower
            gap *= slower
        self.per_sequence_s = per_sequence_s = self._b * gap
        self.per_context_s = self._c * gap
        self.gap_s = step_s + per_sequence_s * len(self.pending)

    def _take_up(self) -> None:
        """What was learnt of it or its kind since the last time."""
        key, bias = self.key, self.ttft_drift.value
        self.known_version = key.version
        self._a, self._b, self._c, _ = key.step.weights
        w0, w_new, w_new2, w_ahead, w_first, w_further = key.first.weights
        self._base_s, self._per_first_step, self._per_further_step = bias * w0, bias * w_first, bias * w_further
        self.per_new_s, self.per_new2_s, self.per_ahead_s = bias * w_new, bias * w_new2, bias * w_ahead
        self.cautious_ratio = key.first_ratio.p90

    # ---- what it would take

    def idle_ttft_s(self, new_k: float) -> float:
        """The first token of a request that is alone."""
        a, b, c, _ = self.key.step.weights
        step_s = a + b + c * new_k
        w0, w_new, w_new2, _, w_first, w_further = self.key.first.weights
        further = new_k / CHUNK_K - 0.5 if new_k > CHUNK_K else 0.0
        return self.ttft_drift.value * (w0 + new_k * (w_new + w_new2 * new_k) + step_s * (w_first + w_further * further))

    def idle_itl_s(self, context_k: float) -> float:
        """The mean gap of a request that is alone."""
        a, b, c, _ = self.key.step.weights
        return self.step_drift.value * (a + b + c * context_k)

    # ---- what happened

    def starts(self, placement: Placement, warm_tokens: float, now_s: float) -> None:
        """Its prompt is sent there now, `warm_tokens` of which have been read before. What is believed of it is its note; the figures are
        fresh (`refresh`)."""
        request = placement.ticket.request
        context_tokens = request.prompt_tokens
        new_k = (context_tokens - warm_tokens if context_tokens > warm_tokens + 1.0 else 1.0) / 1000
        unread_k = self.waiting_k
        if unread_k:
            unread_k -= (now_s - self.waiting_at_s) / self.per_unread_s
            if unread_k < 0.0:
                unread_k = 0.0
        ahead_k = unread_k + self.others_unread_k
        expected_s = self.base_s + new_k * (self.per_new_s + self.per_new2_s * new_k) + self.per_ahead_s * ahead_k
        note = Note()
        further = (new_k + ahead_k) / CHUNK_K - 0.5
        if further > 0.5:
            note.further_s = self.plain_s * further
            expected_s += self.further_s * further
        else:
            note.further_s = 0.0
        note.new_k, note.ahead_k, note.first_step_s = new_k, ahead_k, self.first_step_s
        note.context_tokens, note.warm_tokens, note.sequences = context_tokens, warm_tokens, request.n
        note.expected_first_at_s, note.first_steps, note.seen = now_s + expected_s, -1.0, False
        placement.features = note
        self.waiting_k = unread_k + new_k
        self.waiting_at_s = now_s
        self.pending_k += new_k
        self.pending.append(placement)
        self.gap_s += self.per_sequence_s  # nothing else of the figures has changed

    def answers(self, placement: Placement, note: Note, now_s: float) -> bool:
        """Its first token is here. False when it was not waited for (a stray or second call)."""
        pending = self.pending
        if pending and pending[0] is placement:
            pending.popleft()
        elif placement in pending:
            pending.remove(placement)
        else:
            return False
        # First come, first served: what was sent after it is what is left to read.
        self.pending_k = self.waiting_k = self.pending_k - note.new_k if pending else 0.0
        self.waiting_at_s = now_s
        note.seen = True
        self.shown += 1
        self._answers(note)
        if self.key.batches:
            ratio = self.reading_ratio + note.new_k * self.per_new_s / PREFILL_MEMORY_S
            self.reading_ratio = ratio if ratio < MOST_READING else MOST_READING
        return True

    def _answers(self, note: Note) -> None:
        note.first_steps = self.steps
        self.decoding += note.sequences
        self.context_k += note.context_tokens / 1000
        self.read_k += note.new_k
        self.fresh_at_s = -1.0

    def ends(self, placement: Placement, note: Note, now_s: float) -> None:
        """It is over, however it ended."""
        if note.first_steps >= 0.0:
            if note.seen:
                self.shown -= 1
            sequences = note.sequences
            self.decoding = decoding = self.decoding - sequences
            if decoding <= 0:
                self.decoding = 0
                self.steps = self.context_k = 0.0
            else:
                self.context_k -= (note.context_tokens + (self.steps - note.first_steps) * sequences) / 1000
        elif placement in self.pending:
            self.pending.remove(placement)
            self.pending_k = self.pending_k - note.new_k if self.pending else 0.0
            left_k = self.unread_k(now_s) - note.new_k
            self.waiting_k = left_k if left_k > 0.0 and self.pending else 0.0
            self.waiting_at_s = now_s
        probe = self.probe
        if probe is not None and probe.placement is placement:
            self.probe = None
        self.fresh_at_s = -1.0

    def redeployed(self) -> None:
        """Far from its kind for long: another engine answers at this address now, so it is learnt anew and on its own."""
        self.key = self.key.fork(self.step_drift.value, self.ttft_drift.value)
        self.private = True
        self.step_drift, self.ttft_drift = Drift(), Drift()
        self.watched, self.first_every, self.known_version = True, 1, -1
