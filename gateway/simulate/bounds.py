"""Upper bounds: a predictor that knows every output length and every engine's exact state, and the flow relaxation of a fleet's capacity.

The first tells what the policy loses by predicting; the second what any policy could reach at all, ignoring arrival noise and TTFT queues.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.config.catalog import Catalog
from gateway.core.flow import Considered, Outcome, Placement, Prediction, Ticket
from gateway.core.instance import Instance
from gateway.simulate.fleets import SimulatedFleet
from gateway.simulate.machine import Machine, MachineFacts
from gateway.simulate.workload import Job


class ExactPredictor:
    """Knows the truth the moment it asks. What arrives later it does not know: no policy can promise against that."""

    def __init__(self, machines: dict[str, Machine]) -> None:
        self._machines = machines
        self._read: dict[str, tuple[float, float]] = {}  # prompt seconds of late, as of when: what residents will still suffer

    def expected_output_tokens(self, ticket: Ticket) -> float:
        """The true length."""
        if ticket.handle is None:  # nobody's: the core wonders whether one like it would be let in
            return float(ticket.tag.output_tokens)
        job: Job = ticket.handle.job
        return float(min(job.output_tokens, job.max_output_tokens or job.output_tokens))

    def consider(self, ticket: Ticket, instances: Sequence[Instance], now_s: float) -> list[Considered]:
        """By the engines' own step times and what is really inside them."""
        considered: list[Considered] = []
        for instance in instances:
            machine, read_ratio = self._machines[instance.spec.instance_id], self._read_ratio(instance.spec.instance_id, now_s)
            prediction = _exact(machine.facts, machine, ticket, read_ratio, now_s)
            considered.append((instance, *prediction, instance.in_flight, instance.tightest_itl_s))
        return considered

    def predict_idle(self, ticket: Ticket, instance: Instance) -> Prediction:
        """The same engine, empty."""
        return _exact(self._machines[instance.spec.instance_id].facts, None, ticket, 0.0, 0.0)

    def started(self, placement: Placement, instance: Instance, now_s: float) -> None:
        """Nothing to learn but how much of its time an engine spends on prompts."""

    def first_token(self, placement: Placement, instance: Instance, now_s: float) -> None:
        """See `started`."""
        name = instance.spec.instance_id
        spent_s = _prefill_s(self._machines[name].facts, placement.ticket.request.prompt_tokens)
        self._read[name] = (self._read_ratio(name, now_s) + spent_s / 10.0, now_s)

    def finished(self, placement: Placement, instance: Instance, outcome: Outcome, now_s: float) -> None:
        """See `started`."""

    def passing(self, instance: Instance, now_s: float) -> None:
        """See `started`."""

    def _read_ratio(self, name: str, now_s: float) -> float:
        ratio, at_s = self._read.get(name, (0.0, 0.0))
        return float(min(ratio * 2.718281828 ** ((at_s - now_s) / 10.0), 0.8))


def _prefill_s(facts: MachineFacts, tokens: float) -> float:
    """Reading a prompt, without the steps' own time."""
    return facts.d * tokens / 1e6 * (1 + facts.attention * tokens / 2000)


def _exact(facts: MachineFacts, machine: Machine | None, ticket: Ticket, read_ratio: float, now_s: float) -> Prediction:
    prompt, output = ticket.request.prompt_tokens, ticket.expected_output_tokens
    decoding, context, ahead, wait_s = 0, 0.0, 0, 0.0
    if machine is not None:
        decoding, context = machine.decoding, float(machine.context_tokens)
        # Of the step under way, its prompt tokens are read by its end.
        wait_s, ahead = machine.step_left_s(now_s), machine.unread_after_step()
    steps = max(-(-(prompt + ahead) // max(facts.chunk_tokens - decoding, 1)), 1)
    ttft_s = facts.overhead_s + max(wait_s - facts.overhead_s, 0.0) + steps * facts.step_s(decoding, context)
    ttft_s += _prefill_s(facts, prompt) + facts.d * ahead * 1.05 / 1e6
    pending = len(machine.reading) + len(machine.waiting) if machine is not None else 0
    itl_s = facts.step_s(decoding + pending + 1, context + prompt + output / 2) / (1 - read_ratio)
    # What the step takes longer for this one's being there, and the reading of its prompt.
    alone_s = facts.step_s(decoding + pending, context) / (1 - read_ratio)
    work_s = _prefill_s(facts, prompt) + output * (itl_s - alone_s)
    return Prediction(ttft_s, itl_s, ttft_s + max(output - 1, 0) * itl_s, work_s)


def flow_capacity(fleet: SimulatedFleet, catalog: Catalog, mix: dict[str, float] | None = None) -> float:
    """Requests a second of this mix the fleet could serve within ITL and E2E targets if work were a fluid: an upper bound of every policy.

    For each engine and use case, the most a second it could serve alone: the largest batch within the gap targets, prompts included.
    Serving a mix costs each use case its share of an engine; the best split of use cases over engines is a linear program of the kind
    max rate s.t. sum_j rate_ij = mix_i * rate, sum_i rate_ij / most_ij <= 1. Its dual is small (a price per use case), so it is solved by
    multiplicative weights, and what is returned is the dual's value: a bound whatever its remaining error. Requests per second.
    """
    weights = mix or dict.fromkeys(catalog.use_cases, 1.0)
    total = sum(weights.values())
    share = [weight / total for weight in weights.values()]
    most = [[_most_per_s(facts, catalog, name) for name in weights] for facts in fleet.engines]
    return _dual_bound(share, most)


def _most_per_s(facts: MachineFacts, catalog: Catalog, use_case: str) -> float:
    profile = catalog.profiles[catalog.use_cases[use_case].profile]
    targets = catalog.targets_for(use_case)
    prompt, output = profile.prompt_tokens, profile.output_tokens
    read_s = _prefill_s(facts, prompt)
    gap_s = min(targets.itl_s, (targets.e2e_s - read_s) / max(output - 1, 1))
    if read_s + facts.step_s(1, prompt) > targets.ttft_s:
        return 0.0
    best = 0.0
    for batch in range(1, facts.max_num_seqs + 1):
        context = batch * (prompt + output / 2)
        if facts.kv_tokens and context > facts.kv_tokens:
            break
        step_s = facts.step_s(batch, context)
        # In the time of one answer, `batch` prompts are read besides its steps: the gap is the step and its share of that.
        spent_s = (step_s * output + batch * read_s) / output
        if spent_s <= gap_s:
            best = max(best, batch / (spent_s * output))
    return best


def _dual_bound(share: Sequence[float], most: Sequence[Sequence[float]], rounds: int = 4000) -> float:
    """min over prices p >= 0 with sum share_i p_i = 1 of sum_j max_i p_i most_ij; every visited p is a valid bound."""
    count = len(share)
    if any(all(row[i] <= 0 for row in most) for i in range(count)):
        served = [i for i in range(count) if any(row[i] > 0 for row in most)]
        if not served:
            return 0.0
        kept = sum(share[i] for i in served)
        return _dual_bound([share[i] / kept for i in served], [[row[i] for i in served] for row in most]) / kept
    prices = [1.0] * count
    best = float("inf")
    for turn in range(rounds):
        scale = sum(s * p for s, p in zip(share, prices, strict=True))
        prices = [p / scale for p in prices]
        served_rate = [0.0] * count
        bound = 0.0
        for row in most:
            index = max(range(count), key=lambda i: prices[i] * row[i])
            bound += prices[index] * row[index]
            served_rate[index] += row[index]
        best = min(best, bound)
        # What is served above its share gets cheaper, what is starved dearer.
        step = 0.5 / (1 + turn) ** 0.6
        prices = [p * 2.718281828 ** (-step * (served / (s * bound) - 1)) for p, served, s in zip(prices, served_rate, share, strict=True)]
    return best
