"""How long an instance will take: time to the first token and between tokens, learnt online from what the gateway itself sees.

Two small linear models per `InstanceSpec.predictor_key` (GPU, model, engine configuration), shared by all instances of the key, and a
multiplicative bias per instance for each. They begin at shipped facts (step times `a, b, c, d`, see config/gpus.yaml) and are corrected by
every first token and by the pace at which residents' tokens arrive. Nothing is scraped, so nothing is stale.

- One step (a token for every resident), seconds: `a + b * sequences + c * context + d * prompt tokens prefilled in it`.
- First token, seconds from the sending: `1, new, new^2, ahead, first step, further steps`: `new` are prompt tokens without a warm prefix,
  `ahead` the prompt tokens the engine reads before ours, both in thousands, and a step is what the first model says of the residents.

What depends on the instance alone is kept ready in `Load`: marked stale when something starts, answers or ends there and renewed when it
is next looked at, so that asking for one more instance costs about a microsecond (predictor.py asks, in one loop over all of them). How
long outputs are and which prompts are warm is left to lengths.py and prefix.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from math import exp

from gateway.core.flow import Placement
from gateway.core.instance import Instance
from gateway.predict.kinds import KeyModel
from gateway.predict.note import Note
from gateway.predict.prefix import Warmth
from gateway.predict.regression import Drift

# Prompt tokens an engine reads in one step: vLLM's default for online serving. Only the shape of the prior depends on it.
CHUNK_K = 2.048
# An instance's share of time spent on prompts is averaged over this long: several requests, yet shorter than a shift of the workload.
PREFILL_MEMORY_S = 10.0
MOST_READING = 0.8
# A pace is judged over at least this many tokens; fewer, and the step in progress when the window opened weighs too much.
PACE_TOKENS = 8
LONG_PACE_TOKENS = 400
# The share of a miss that a pace is believed at once: it averages several steps, where a first token is a single event.
PACE_TRUST, PACE_ALERTNESS, PACE_NOISE = 0.95, 0.6, 0.02
SUDDEN_RATIO = 1.15
# From then on only every fourth sample moves the shared model, unless it is off: the bias follows all of them, at a tenth of the cost.
SETTLED_SAMPLES = 256
LEARN_EVERY_S = 0.02
# Cached figures of an instance are renewed by events, and after this long without one (contexts grow, other workers report).
FRESH_S = 0.5
REDEPLOYED_SAMPLES = 20


class Load:
    """What runs on one instance by our own count, and the figures derived from it."""

    __slots__ = (
        "_key",
        "at_s",
        "base_s",
        "cautious_ratio",
        "context_k",
        "decoding",
        "fresh_at_s",
        "further_s",
        "gap_s",
        "learnt_at_s",
        "others_context_k",
        "others_seqs",
        "others_unread_k",
        "pace_context_s",
        "pace_from",
        "pace_prefilled",
        "pace_seqs_s",
        "pace_since_s",
        "pending",
        "per_ahead_s",
        "per_context_s",
        "per_new2_s",
        "per_new_s",
        "per_sequence_s",
        "per_unread_s",
        "prefill_at_s",
        "prefill_ratio",
        "private",
        "probe",
        "prompt_tokens",
        "reading_ratio",
        "shown",
        "step_drift",
        "step_s",
        "steps",
        "steps_at_first",
        "ttft_drift",
        "waiting_at_s",
        "waiting_k",
        "warmth",
    )

    def __init__(self, key: KeyModel) -> None:
        self._key = key
        self.private = False
        self.warmth = Warmth()
        self.ttft_drift = Drift()
        self.step_drift = Drift()
        self.pending: deque[Placement] = deque()  # sent, no first token yet, in the order the engine reads them
        self.decoding = 0
        self.shown = 0  # residents whose tokens are seen as they come
        self.prompt_tokens = 0  # of the decoding ones
        # Steps done so far, as we reckon: residents' output = steps now - steps at their first token, without visiting each of them.
        self.steps = 0.0
        self.steps_at_first = 0.0  # summed over the decoding ones
        self.at_s = 0.0
        self.waiting_k = 0.0  # prompt tokens of ours ahead of a newcomer, thousands, as of waiting_at_s
        self.waiting_at_s = 0.0
        self.prefill_ratio = 0.0  # share of recent time the engine spent on prompts, as of prefill_at_s
        self.prefill_at_s = 0.0
        self.reading_ratio = 0.0  # the same as of at_s, at most MOST_READING
        # What other workers have there: sequences, and unread prompt tokens and context in thousands.
        self.others_seqs = 0
        self.others_unread_k = self.others_context_k = 0.0
        # The pace of one resident between two looks at it.
        self.probe: Placement | None = None
        self.pace_from = 0
        self.pace_since_s = 0.0
        self.pace_seqs_s = 0.0
        self.pace_context_s = 0.0
        self.pace_prefilled = 0.0
        self.step_s = 0.01
        self.context_k = 0.0
        self.fresh_at_s = self.learnt_at_s = -1.0
        # A first token takes `base_s`, so much for its own thousand tokens and their square, for what is ahead, and for each further step.
        self.base_s = self.per_new_s = self.per_new2_s = self.per_ahead_s = self.further_s = 0.0
        self.per_unread_s = 1e-9  # what the engine needs for a thousand tokens that wait
        self.gap_s = self.per_sequence_s = self.per_context_s = 0.0
        self.cautious_ratio = 1.0

    @property
    def key(self) -> KeyModel:
        return self._key

    # ---- time passes

    def advance(self, now_s: float) -> None:
        """Let residents grow and waiting prompts be read, up to now."""
        took_s = now_s - self.at_s
        if took_s <= 0:
            return
        self.at_s = now_s
        reading_ratio = self.prefill_ratio
        if reading_ratio:
            reading_ratio *= exp((self.prefill_at_s - now_s) / PREFILL_MEMORY_S)
            self.reading_ratio = reading_ratio = reading_ratio if reading_ratio < MOST_READING else MOST_READING
        decoding = self.decoding
        if decoding:
            rate = (1.0 - reading_ratio) / self.step_s
            context_k = self.context_k
            self.steps += took_s * rate
            self.pace_seqs_s += took_s * decoding
            self.pace_context_s += took_s * context_k
            self.context_k = context_k + took_s * rate * decoding / 1000
        pending = self.pending
        while pending:
            oldest = pending[0]
            if oldest.ticket.request.stream or oldest.features.expected_first_at_s > now_s:
                break
            self._answers(pending.popleft().features)  # nobody will tell us of its first token

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

    def look(self, residents: Iterable[Placement], now_s: float) -> None:
        """Up to now, and what the residents' tokens have shown meanwhile is learnt."""
        if self.at_s < now_s:
            self.advance(now_s)
        if self.shown:
            sample = self.pace(residents)
            if sample is not None:
                self.learn_pace(*sample)

    def refresh(self, now_s: float) -> None:
        """Renew the figures, `advance` having been called. They are stale when `fresh_at_s` is more than FRESH_S ago, or negative."""
        key = self._key
        a, b, c, _ = key.step.weights
        w0, w_new, w_new2, w_ahead, w_first, w_further = key.first.weights
        self.fresh_at_s = now_s
        decoding = self.decoding
        if decoding:
            self._weigh()
        decoding += self.others_seqs
        plain_s = a + b * decoding + c * (self.context_k + self.others_context_k)
        bias, gap = self.ttft_drift.value, self.step_drift.value
        step_s = plain_s * gap
        if step_s < 1e-4:
            step_s = 1e-4
        self.step_s = step_s
        if self.reading_ratio:
            gap /= 1.0 - self.reading_ratio
        self.per_sequence_s = per_sequence_s = b * gap
        self.per_context_s = c * gap
        gap_s = plain_s * gap
        self.gap_s = (gap_s if gap_s > step_s else step_s) + per_sequence_s * len(self.pending)
        self.cautious_ratio = key.first_ratio.p90
        self.base_s = bias * (w0 + w_first * plain_s * (1.5 if decoding else 1.0))
        self.per_new_s = bias * w_new
        self.per_new2_s = bias * w_new2
        self.per_ahead_s = per_ahead_s = bias * w_ahead
        self.further_s = further_s = bias * w_further * plain_s
        self.per_unread_s = per_ahead_s + further_s / CHUNK_K + 1e-9

    # ---- what it would take

    def idle_ttft_s(self, new_k: float) -> float:
        """The first token of a request that is alone."""
        a, b, c, _ = self._key.step.weights
        step_s = a + b + c * new_k
        w0, w_new, w_new2, _, w_first, w_further = self._key.first.weights
        further = new_k / CHUNK_K - 0.5 if new_k > CHUNK_K else 0.0
        return self.ttft_drift.value * (w0 + new_k * (w_new + w_new2 * new_k) + step_s * (w_first + w_further * further))

    def idle_itl_s(self, context_k: float) -> float:
        """The mean gap of a request that is alone."""
        a, b, c, _ = self._key.step.weights
        return self.step_drift.value * (a + b + c * context_k)

    # ---- what happened

    def starts(self, placement: Placement, warm_tokens: float, now_s: float) -> None:
        """Its prompt is sent there now, `warm_tokens` of which have been read before. What is believed of it is its note."""
        request = placement.ticket.request
        context_tokens = request.prompt_tokens
        key = self._key
        a, b, c, _ = key.step.weights
        w0, w_new, w_new2, w_ahead, w_first, w_further = key.first.weights
        new_k = (context_tokens - warm_tokens if context_tokens > warm_tokens + 1.0 else 1.0) / 1000
        unread_k = self.unread_k(now_s) if self.waiting_k else 0.0
        ahead_k = unread_k + self.others_unread_k
        total_k = new_k + ahead_k
        decoding = self.decoding + self.others_seqs
        step_s = a + b * decoding + c * (self.context_k + self.others_context_k)
        further = step_s * (total_k / CHUNK_K - 0.5) if total_k > CHUNK_K else 0.0
        if decoding:
            step_s *= 1.5
        expected_s = w0 + new_k * (w_new + w_new2 * new_k) + w_ahead * ahead_k + w_first * step_s + w_further * further
        first_at_s = now_s + expected_s * self.ttft_drift.value
        placement.features = Note(new_k, ahead_k, step_s, further, context_tokens, warm_tokens, request.n, first_at_s)
        self.waiting_k = unread_k + new_k
        self.waiting_at_s = now_s
        self.pending.append(placement)
        self.fresh_at_s = -1.0

    def answers(self, placement: Placement, now_s: float) -> bool:
        """Its first token is here. False when it was not waited for (a stray or second call)."""
        pending = self.pending
        if pending and pending[0] is placement:
            pending.popleft()
        else:
            try:
                pending.remove(placement)
            except ValueError:
                return False
        # First come, first served: what was sent after it is what is left to read.
        self.waiting_k = sum([waiting.features.new_k for waiting in pending]) if pending else 0.0
        self.waiting_at_s = now_s
        note: Note = placement.features
        note.seen = True
        self.shown += 1
        self._answers(note)
        if self._key.batches:
            self.prefill_ratio = ratio = self.reading_ratio + note.new_k * self.per_new_s / PREFILL_MEMORY_S
            self.reading_ratio = ratio if ratio < MOST_READING else MOST_READING
            self.prefill_at_s = now_s
        self.fresh_at_s = -1.0
        return True

    def _answers(self, note: Note) -> None:
        steps, sequences = self.steps, note.sequences
        self.decoding += sequences
        self.prompt_tokens += note.context_tokens
        self.steps_at_first += steps * sequences
        note.first_steps = steps
        self.pace_prefilled += note.new_k
        self._weigh()

    def ends(self, placement: Placement, now_s: float) -> None:
        """It is over, however it ended."""
        note: Note = placement.features
        if note.first_steps >= 0:
            if note.seen:
                self.shown -= 1
            self.decoding = decoding = self.decoding - note.sequences
            self.prompt_tokens -= note.context_tokens
            self.steps_at_first -= note.first_steps * note.sequences
            if decoding <= 0:
                self.decoding = self.prompt_tokens = 0
                self.steps = self.steps_at_first = self.context_k = 0.0
            else:
                self._weigh()
        elif placement in self.pending:
            self.pending.remove(placement)
            left_k = self.unread_k(now_s) - note.new_k
            self.waiting_k = left_k if left_k > 0.0 else 0.0
            self.waiting_at_s = now_s
        if self.probe is placement:
            self.probe = None
        self.fresh_at_s = -1.0

    def pace(self, residents: Iterable[Placement]) -> tuple[list[float], float] | None:
        """Features and seconds of one step since the last look, when enough tokens came; and a new look begins."""
        probe = self.probe
        if probe is None:
            for placement in islice(residents, 4):  # the oldest: if they show no tokens, neither will the others
                if placement.first_token_at_s > 0.0 and placement.ticket.request.n == 1:
                    self._look(placement)
                    break
            return None
        # Steps are reckoned from predicted paces; a resident whose tokens are counted says how many there really were.
        note: Note = probe.features
        if note.first_steps >= 0 and probe.last_token_at_s:
            since_s = self.at_s - probe.last_token_at_s
            since = since_s * (1.0 - self.reading_ratio) / self.step_s if since_s > 0.0 else 0.0
            self.steps = note.first_steps + probe.output_tokens - 1 + since
            self._weigh()
        tokens = probe.output_tokens - self.pace_from
        if tokens < PACE_TOKENS or (tokens < LONG_PACE_TOKENS and self.pending and self._key.batches):
            return None  # too few, or a prompt half read: the long window can bear that
        took_s = probe.last_token_at_s - self.pace_since_s
        looked_s = self.at_s - self.pace_since_s
        if looked_s < 1e-6:
            looked_s = 1e-6
        sequences = self.pace_seqs_s / looked_s + self.others_seqs
        context_k = self.pace_context_s / looked_s + self.others_context_k
        sample = [1.0, sequences, context_k, self.pace_prefilled / tokens], took_s / tokens
        self._look(probe)
        return sample if took_s > 0 else None

    def _weigh(self) -> None:
        context_tokens = self.prompt_tokens + self.decoding * self.steps - self.steps_at_first
        self.context_k = context_tokens / 1000 if context_tokens > 0.0 else 0.0

    def _look(self, placement: Placement) -> None:
        self.probe = placement
        self.pace_from = placement.output_tokens
        self.pace_since_s = placement.last_token_at_s or placement.first_token_at_s
        # What passed between that token and now belongs to the next window as well.
        early_s = self.at_s - self.pace_since_s
        if early_s < 0.0:
            early_s = 0.0
        self.pace_seqs_s = self.decoding * early_s
        self.pace_context_s = self.context_k * early_s
        self.pace_prefilled = 0.0

    # ---- what it teaches

    def learn_pace(self, features: list[float], took_s: float) -> None:
        """One step took this long, with these residents and prompts."""
        step, drift = self._key.step, self.step_drift
        predicted_s = step.predict(features)
        if predicted_s <= 0:
            return
        before = drift.value
        if features[3]:  # prompts were read meanwhile, in whole chunks
            drift.follow(took_s / predicted_s / before, 0.8, PACE_ALERTNESS)
        else:
            drift.follow(took_s / predicted_s / before, PACE_TRUST, PACE_ALERTNESS, PACE_NOISE)
        moved = drift.value / before
        if not 1 / SUDDEN_RATIO < moved < SUDDEN_RATIO:
            # What has suddenly become slower at writing has become slower at reading too, until first tokens say otherwise.
            self.ttft_drift.value *= moved
        if step.samples < SETTLED_SAMPLES or drift.samples % 4 == 0:
            step.learn(features, took_s / drift.value)
        if drift.far >= REDEPLOYED_SAMPLES or self.ttft_drift.far >= REDEPLOYED_SAMPLES:
            self._redeployed()

    def learn_first(self, note: Note, took_s: float) -> None:
        """The first token took this long from the sending."""
        key, drift = self._key, self.ttft_drift
        features = note.features
        predicted_s = key.first.predict(features)
        if predicted_s <= 0 or took_s <= 0:
            return
        ratio = took_s / predicted_s
        key.first_ratio.add(ratio / drift.value)
        drift.follow(ratio / drift.value)
        # A model that has settled gains nothing from hundreds of samples a second, and they cost as much as a decision each.
        if key.first.samples < SETTLED_SAMPLES or (drift.samples % 4 == 0 and self.at_s - self.learnt_at_s > LEARN_EVERY_S):
            self.learnt_at_s = self.at_s
            key.first.learn(features, took_s / drift.value)
        if drift.far >= REDEPLOYED_SAMPLES or self.step_drift.far >= REDEPLOYED_SAMPLES:
            self._redeployed()

    def bound_first(self, predicted_s: float, took_s: float) -> None:
        """The whole answer took this long, less than its first token was expected to take: the bias is too high."""
        self.ttft_drift.follow(max(took_s, 1e-4) / predicted_s)

    def _redeployed(self) -> None:
        """Far from its kind for long: another engine answers at this address now, so it is learnt anew and on its own."""
        self._key = self._key.fork(self.step_drift.value, self.ttft_drift.value)
        self.private = True
        self.step_drift, self.ttft_drift = Drift(), Drift()
