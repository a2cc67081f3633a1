"""Joins latencies, lengths, prompts and prefixes into what the core asks of a predictor (core/policy.Predictor).

One object per process; serve.py and simulate/run.py make it and hand it to the core. Saved and loaded as plain JSON by whoever owns files.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from gateway.core.flow import InstanceSpec, Outcome, Placement, Prediction, Result, Ticket
from gateway.core.instance import Instance
from gateway.predict.kinds import StepFacts
from gateway.predict.latencies import Latencies
from gateway.predict.latency import FRESH_S, Load
from gateway.predict.lengths import Lengths
from gateway.predict.prefix import PrefixMemory
from gateway.predict.prompts import PromptRatios

STATE_VERSION = 1


class LearningPredictor:
    """Predictions for decisions, learnt from outcomes. `ttft_quantile_p90`: promise first tokens at the 90th percentile of past misses
    (the default) or at their middle; `length_share`: the quantile of output lengths to plan with."""

    def __init__(self, facts: Mapping[str, StepFacts], *, cautious: bool = True, length_share: float = 0.5) -> None:
        self.latencies = Latencies(facts)
        self.lengths = Lengths(length_share)
        self.prompts = PromptRatios()
        self.prefixes = PrefixMemory()
        self.cautious = cautious

    def _load(self, spec: InstanceSpec) -> Load:
        return self.latencies.loads.get(spec.instance_id) or self.latencies.load(spec.instance_id, spec.predictor_key)

    # ---- asked by the core and its policies

    def expected_output_tokens(self, ticket: Ticket) -> float:
        """Output tokens to plan with, within what the caller allows."""
        request, tag = ticket.request, ticket.tag
        return self.lengths.expected(request.tenant, request.app, tag.use_case, tag.output_tokens, request.max_output_tokens)

    def predict(self, ticket: Ticket, instance: Instance, now_s: float) -> Prediction:
        """What `instance` would take for `ticket` if it were sent now, beside what runs there."""
        load = self._load(instance.spec)
        request = ticket.request
        prompt_tokens = request.prompt_tokens
        new_tokens = prompt_tokens
        if request.prefix_hashes:
            new_tokens -= int(self.prefixes.warm_tokens(instance.spec.instance_id, request.prefix_hashes, prompt_tokens))
        if instance.others_in_flight or load.others[0]:
            load.others = (instance.others_in_flight, instance.others_unprefilled_tokens, instance.others_context_tokens)
        if now_s - load.fresh_at_s > FRESH_S:
            load.fresh(now_s)
        new_k = new_tokens / 1000
        expected_s = load.ttft_s(new_k, now_s)
        output_tokens = ticket.expected_output_tokens
        itl_s = load.itl_s(request.n, (prompt_tokens + output_tokens * 0.5) * request.n / 1000)
        work_s = new_k * (load.per_new_s + load.per_new2_s * new_k) + output_tokens * (itl_s - load.gap_s)
        ttft_s = expected_s * load.cautious_ratio if self.cautious else expected_s
        return Prediction(ttft_s, itl_s, expected_s + (output_tokens - 1.0) * itl_s if output_tokens > 1.0 else expected_s, work_s)

    def predict_idle(self, ticket: Ticket, spec: InstanceSpec) -> Prediction:
        """What an idle instance of this kind would take."""
        load = self._load(spec)
        prompt_tokens, output_tokens = ticket.request.prompt_tokens, ticket.expected_output_tokens
        ttft_s = load.idle_ttft_s(prompt_tokens / 1000)
        itl_s = load.idle_itl_s((prompt_tokens + output_tokens * 0.5) / 1000)
        return Prediction(ttft_s, itl_s, ttft_s + max(output_tokens - 1.0, 0.0) * itl_s)

    # ---- told by the core

    def started(self, placement: Placement, instance: Instance, now_s: float) -> None:
        """A ticket goes to an instance: what is believed now is noted, to be compared with the truth."""
        load = self._load(instance.spec)
        self._look(load, instance, now_s)
        ticket = placement.ticket
        request = ticket.request
        prompt_tokens = request.prompt_tokens
        warm_tokens = 0.0
        if request.prefix_hashes:
            warm_tokens = self.prefixes.warm_tokens(instance.spec.instance_id, request.prefix_hashes, prompt_tokens)
            self.prefixes.sent(instance.spec.instance_id, request.prefix_hashes)
        load.fresh(now_s)
        itl_s = load.itl_s(request.n, (prompt_tokens + ticket.expected_output_tokens * 0.5) / 1000)
        load.starts(placement, prompt_tokens, warm_tokens, request.n, now_s).itl_s = itl_s
        load.stale()

    def first_token(self, placement: Placement, instance: Instance, now_s: float) -> None:
        """The engine has answered."""
        load = self._load(instance.spec)
        note = placement.features
        if note is None:
            return
        self._look(load, instance, now_s)
        if not load.answers(placement, now_s):
            return
        took_s = now_s - placement.started_at_s
        if note.warm_tokens * load.per_new_s > 0.2 * took_s:
            spared = (load.key.first.predict(note.features) * load.ttft_drift.value - took_s) / (note.warm_tokens * load.per_new_s)
            trust = self.prefixes.trust_ratio(instance.spec.instance_id)
            self.prefixes.learn(instance.spec.instance_id, trust * (1.0 + spared))
        else:
            load.learn_first(note, took_s)
        load.stale()

    def finished(self, placement: Placement, instance: Instance, outcome: Outcome, now_s: float) -> None:
        """It is over: its length is learnt if it completed, and its place is free."""
        load = self._load(instance.spec)
        note = placement.features
        if note is not None:
            self._look(load, instance, now_s)
            if outcome.result is Result.COMPLETED and not placement.ticket.request.stream:
                # Nobody saw its first token, but it came before the end: a prediction beyond that was wrong.
                took_s = now_s - placement.started_at_s
                predicted_s = note.expected_first_at_s - placement.started_at_s
                if took_s < predicted_s:
                    load.bound_first(predicted_s, took_s)
            load.ends(placement, now_s)
            load.stale()
        request, tag = placement.ticket.request, placement.ticket.tag
        if outcome.result is Result.COMPLETED and outcome.output_tokens > 0:
            capped = request.max_output_tokens is not None and outcome.output_tokens >= request.max_output_tokens
            self.lengths.learn(request.tenant, request.app, tag.use_case, outcome.output_tokens, capped)

    def passing(self, instance: Instance, now_s: float) -> None:
        """Time passes there: an engine that has slowed down shows it in its residents' tokens before anything begins or ends."""
        load = self._load(instance.spec)
        self._look(load, instance, now_s)
        load.stale()

    def _look(self, load: Load, instance: Instance, now_s: float) -> None:
        load.advance(now_s)
        if load.shown:
            sample = load.pace(instance.residents)
            if sample is not None:
                load.learn_pace(*sample)

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

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave. ValueError when another version saved it: then the priors are the better start."""
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"saved predictions are of version {state.get('version')}, this gateway reads {STATE_VERSION}")
        self.latencies.restore(state["latencies"])
        self.lengths.restore(state["lengths"])
        self.prompts.restore(state["prompts"])
        self.prefixes.restore(state["prefixes"])
