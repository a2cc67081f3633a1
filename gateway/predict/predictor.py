"""Joins latencies, lengths, prompts and prefixes into what the core asks of a predictor (core/policy.Predictor).

One object per process; serve.py and simulate/run.py make it and hand it to the core. Saved and loaded as plain JSON by whoever owns files.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final

from gateway.core.flow import Considered, Outcome, Placement, Prediction, Result, Ticket
from gateway.core.instance import Instance
from gateway.predict.hearing import FIRST_EVERY, ODD_RATIO, PACE_EVERY_S, bound_first, learn_first, look
from gateway.predict.kinds import StepFacts
from gateway.predict.latencies import Latencies
from gateway.predict.latency import CHUNK_K, FRESH_S, Load
from gateway.predict.lengths import Lengths
from gateway.predict.note import Note
from gateway.predict.prefix import PrefixMemory
from gateway.predict.prompts import PromptRatios

STATE_VERSION: Final = 1
COMPLETED: Final = Result.COMPLETED  # to look a member up costs more than all that is done with it


class LearningPredictor:
    """Predictions for decisions, learnt from outcomes. `ttft_quantile_p90`: promise first tokens at the 90th percentile of past misses
    (the default) or at their middle; `length_share`: the quantile of output lengths to plan with."""

    def __init__(self, facts: Mapping[str, StepFacts], *, cautious: bool = True, length_share: float = 0.5) -> None:
        self.latencies = Latencies(facts)
        self.lengths = Lengths(length_share)
        self.prompts = PromptRatios()
        self.prefixes = PrefixMemory()
        self.cautious = cautious

    def _meet(self, instance: Instance) -> Load:
        """What is known of an instance that is seen for the first time."""
        spec = instance.spec
        load: Load = self.latencies.load(spec.instance_id, spec.predictor_key)
        load.warmth = self.prefixes.of(spec.instance_id)
        instance.load = load
        return load

    # ---- asked by the core and its policies

    def expected_output_tokens(self, ticket: Ticket) -> float:
        """Output tokens to plan with, within what the caller allows."""
        request, tag = ticket.request, ticket.tag
        return self.lengths.expected(request.tenant, request.app, tag.use_case, tag.output_tokens, request.max_output_tokens)

    def consider(self, ticket: Ticket, instances: Sequence[Instance], now_s: float) -> list[Considered]:
        """What each of `instances` would take for `ticket` if it were sent there now, beside what runs there. One loop without a call:
        it goes over whole fleets for every request."""
        request, output_tokens = ticket.request, ticket.expected_output_tokens
        prompt_tokens, hashes, n = request.prompt_tokens, request.prefix_hashes, request.n
        first_block = hashes[0] if hashes else 0
        cold_k, context_k = prompt_tokens / 1000, (prompt_tokens + output_tokens * 0.5) * n / 1000
        further_tokens = output_tokens - 1.0 if output_tokens > 1.0 else 0.0
        considered: list[Considered] = []
        cautious, add = self.cautious, considered.append
        for instance in instances:
            load: Load = instance.load or self._meet(instance)
            if instance.others_in_flight or load.others_seqs:
                load.share(instance)
            if now_s - load.fresh_at_s > FRESH_S:
                load.advance(now_s)
                load.refresh(now_s)
            new_k = cold_k
            if hashes and load.warmth.holds(first_block):
                new_k = (prompt_tokens - int(load.warmth.tokens(hashes, prompt_tokens))) / 1000
            reading_s = new_k * (load.per_new_s + load.per_new2_s * new_k)
            expected_s, total_k = load.base_s + reading_s, new_k
            ahead_k, waiting_k = load.others_unread_k, load.waiting_k
            if waiting_k:
                waiting_k -= (now_s - load.waiting_at_s) / load.per_unread_s
                if waiting_k > 0.0:
                    ahead_k += waiting_k
            if ahead_k:
                expected_s += ahead_k * load.per_ahead_s
                total_k += ahead_k
            if total_k > CHUNK_K:
                expected_s += load.further_s * (total_k / CHUNK_K - 0.5)
            gap_s = load.gap_s
            itl_s = gap_s + load.per_sequence_s * n + load.per_context_s * context_k
            ttft_s = expected_s * load.cautious_ratio if cautious else expected_s
            e2e_s, work_s = expected_s + further_tokens * itl_s, reading_s + output_tokens * (itl_s - gap_s)
            add((instance, ttft_s, itl_s, e2e_s, work_s, instance.in_flight, instance.tightest_itl_s))
        return considered

    def predict_idle(self, ticket: Ticket, instance: Instance) -> Prediction:
        """What `instance` would take if nothing ran there."""
        load = instance.load or self._meet(instance)
        prompt_tokens, output_tokens = ticket.request.prompt_tokens, ticket.expected_output_tokens
        ttft_s = load.idle_ttft_s(prompt_tokens / 1000)
        itl_s = load.idle_itl_s((prompt_tokens + output_tokens * 0.5) / 1000)
        return Prediction(ttft_s, itl_s, ttft_s + max(output_tokens - 1.0, 0.0) * itl_s)

    # ---- told by the core

    def started(self, placement: Placement, instance: Instance, now_s: float) -> None:
        """A ticket goes to an instance: what is believed now is noted, to be compared with the truth."""
        load: Load = instance.load or self._meet(instance)
        if load.watched and load.shown:
            load.advance(now_s)
            look(load, instance.residents)
        if now_s - load.fresh_at_s > FRESH_S:
            load.advance(now_s)
            load.refresh(now_s)
        request, warm_tokens = placement.ticket.request, 0.0
        hashes = request.prefix_hashes
        if hashes:
            if load.warmth.holds(hashes[0]):
                warm_tokens = load.warmth.tokens(hashes, request.prompt_tokens)
            load.warmth.sent(hashes)
        load.starts(placement, warm_tokens, now_s)

    def first_token(self, placement: Placement, instance: Instance, now_s: float) -> None:
        """The engine has answered."""
        load: Load = instance.load or self._meet(instance)
        note: Note | None = placement.features
        if note is None:
            return
        if load.at_s < now_s:
            load.advance(now_s)
        if load.watched and load.shown:
            look(load, instance.residents)
        if not load.answers(placement, note, now_s):
            return
        started_at_s = placement.started_at_s
        took_s, expected_s = now_s - started_at_s, note.expected_first_at_s - started_at_s
        load.unheard += 1
        if load.unheard >= load.first_every:
            load.unheard = 0
            warm_s = note.warm_tokens * load.per_new_s
            if warm_s > 0.2 * took_s:
                spared_s = load.key.first.predict(note.features) * load.ttft_drift.value - took_s
                load.warmth.learn(load.warmth.trust_ratio * (1.0 + spared_s / warm_s))
            else:
                learn_first(load, note, took_s)
        if took_s > expected_s * ODD_RATIO or took_s * ODD_RATIO < expected_s:
            load.unheard = FIRST_EVERY  # the next one will tell whether that was chance

    def finished(self, placement: Placement, instance: Instance, outcome: Outcome, now_s: float) -> None:
        """It is over: its length is learnt if it completed, and its place is free."""
        load: Load = instance.load or self._meet(instance)
        note: Note | None = placement.features
        request, completed = placement.ticket.request, outcome.result is COMPLETED
        if note is not None:
            if load.at_s < now_s:
                load.advance(now_s)
            if load.shown:
                probe = load.probe
                ends_it = probe is not None and probe.placement is placement
                if load.watched or (ends_it and now_s - load.paced_at_s > PACE_EVERY_S):
                    look(load, instance.residents)
            if completed and not request.stream:
                # Nobody saw its first token, but it came before the end: a prediction beyond that was wrong.
                started_at_s = placement.started_at_s
                took_s, predicted_s = now_s - started_at_s, note.expected_first_at_s - started_at_s
                if took_s < predicted_s:
                    bound_first(load, predicted_s, took_s)
            load.ends(placement, note, now_s)
        if completed:
            tokens, most = outcome.output_tokens, request.max_output_tokens
            self.lengths.learn(request.tenant, request.app, placement.ticket.tag.use_case, tokens, most is not None and tokens >= most)

    def passing(self, instance: Instance, now_s: float) -> None:
        """Time passes there: an engine that has slowed down shows it in its residents' tokens before anything begins or ends."""
        load: Load = instance.load or self._meet(instance)
        load.advance(now_s)
        if load.shown:
            look(load, instance.residents)
        load.fresh_at_s = -1.0

    # ---- kept over restarts

    def state(self) -> dict[str, Any]:
        """All that was learnt, as plain JSON values."""
        return {
            "version": STATE_VERSION,
            "latencies": self.latencies.state(),
            "lengths": self.lengths.state(),
            "prompts": self.prompts.state(),
            "prefixes": self.prefixes.state(),
        }

    def state_in_steps(self, most_apps: int) -> Generator[None, None, dict[str, Any]]:
        """The same, made in steps of some 10 us beside requests, with at most so many applications' lengths."""
        lengths = []
        for row in self.lengths.rows(most_apps):
            lengths.append(row)
            yield
        state = {"version": STATE_VERSION, "latencies": self.latencies.state()}
        yield
        return state | {"lengths": lengths, "prompts": self.prompts.state()[-most_apps:], "prefixes": self.prefixes.state()}

    def adopt(self, other: LearningPredictor) -> None:
        """Know what another one knows, and forget what was learnt so far. What runs now goes on being followed."""
        self.latencies.restore(other.latencies.state())
        self.lengths, self.prompts, self.prefixes = other.lengths, other.prompts, other.prefixes
        for instance_id, load in self.latencies.loads.items():
            load.warmth = self.prefixes.of(instance_id)

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave. ValueError when another version saved it: then the priors are the better start."""
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"saved predictions are of version {state.get('version')}, this gateway reads {STATE_VERSION}")
        self.latencies.restore(state["latencies"])
        self.lengths.restore(state["lengths"])
        self.prompts.restore(state["prompts"])
        self.prefixes.restore(state["prefixes"])
