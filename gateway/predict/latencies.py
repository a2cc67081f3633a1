"""The loads of all instances and the models of their kinds: made at first sight, saved and restored over restarts.

What is predicted of one instance is latency.py's business, how it is learnt hearing.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.predict.kinds import UNKNOWN_GPU, KeyModel, StepFacts
from gateway.predict.latency import Load
from gateway.predict.regression import Drift

MAX_INSTANCES: Final = 4096


class Latencies:
    """All instances' loads and their kinds' models. `facts`: step times by predictor key; unknown keys begin at UNKNOWN_GPU."""

    def __init__(self, facts: Mapping[str, StepFacts]) -> None:
        self._facts = dict(facts)
        self.keys: dict[str, KeyModel] = {}
        self.loads: dict[str, Load] = {}
        self._kept: dict[str, Any] = {}

    def know(self, facts: Mapping[str, StepFacts]) -> None:
        """Facts of other kinds too, for those that are yet to be met."""
        self._facts.update(facts)

    def load(self, instance_id: str, predictor_key: str) -> Load:
        """The load of an instance, made on first sight."""
        found = self.loads.get(instance_id)
        if found is not None:
            return found
        if len(self.loads) >= MAX_INSTANCES:
            idle = next((name for name, load in self.loads.items() if not load.decoding and not load.pending), None)
            if idle is not None:
                del self.loads[idle]
        load = self.loads[instance_id] = Load(self._key(predictor_key))
        kept = self._kept.pop(instance_id, None)
        if kept is not None:
            load.ttft_drift, load.step_drift = Drift(float(kept["ttft"])), Drift(float(kept["step"]))
            if kept.get("own"):
                batches = load.key.batches
                load.key = KeyModel(UNKNOWN_GPU)
                load.key.batches = batches
                load.key.restore(kept["own"])
                load.private = True
        else:
            # A new sibling is expected to be as far from the facts as those that are known.
            ttft_ratio, step_ratio = self._siblings(load)
            load.ttft_drift, load.step_drift = Drift(ttft_ratio), Drift(step_ratio)
        return load

    def _key(self, predictor_key: str) -> KeyModel:
        key = self.keys.get(predictor_key)
        if key is None:
            key = self.keys[predictor_key] = KeyModel(self._facts.get(predictor_key, UNKNOWN_GPU))
        return key

    def _siblings(self, newcomer: Load) -> tuple[float, float]:
        alike = [load for load in self.loads.values() if load.key is newcomer.key and load is not newcomer and load.ttft_drift.samples > 8]
        if not alike:
            return 1.0, 1.0
        middle = len(alike) // 2
        return sorted(load.ttft_drift.value for load in alike)[middle], sorted(load.step_drift.value for load in alike)[middle]

    def state(self) -> dict[str, Any]:
        """Everything learnt, as plain values. What runs at the moment is not part of it."""
        instances = {
            name: {"ttft": load.ttft_drift.value, "step": load.step_drift.value, "own": load.key.state() if load.private else None}
            for name, load in self.loads.items()
        }
        return {"keys": {name: key.state() for name, key in self.keys.items()}, "instances": {**self._kept, **instances}}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave. ValueError or KeyError when it does not fit."""
        for name, saved in state["keys"].items():
            self._key(name).restore(saved)
        self._kept = dict(state["instances"])
