"""Is an engine there, and does it answer? Probes every second, and what requests experienced in between.

Says `up` or `down`; what follows from it is the core's business. An instance that fails requests is left out for 5 s, then twice as long
each time, a minute at most, but never the last one of its model: one that may be broken is better than none. Nor for errors that the
others of its model answer just as often: then it is the requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from time import monotonic

from gateway.core.flow import EngineKind, FailReason, InstanceSpec

PROBE_EVERY_S = 1.0
PROBES_DOWN = 2  # failed probes in a row
EJECT_S = 5.0
EJECT_MAX_S = 60.0
# How many of a kind, in a row, before an instance is left out. A stall takes seconds to notice: two are enough.
_EJECT_AFTER = {
    FailReason.CONNECT: 3,
    FailReason.CLOSED_EARLY: 3,
    FailReason.MALFORMED: 3,
    FailReason.ENGINE_ERROR: 5,
    FailReason.CUT: 3,
    FailReason.STALLED: 2,
    FailReason.FIRST_TOKEN_TIMEOUT: 2,
}


@dataclass(slots=True)
class State:
    """What is known of one instance."""

    spec: InstanceSpec
    up: bool = True
    failed_probes: int = 0
    failures: int = 0  # of requests, in a row
    ejections: int = 0
    ejected_until_s: float = 0.0
    good_since_s: float = 0.0
    path: str = "/health"
    reason: str = ""


Ask = Callable[[str, str, float], Awaitable[int]]
"""(instance id, path, seconds it may take) -> the status of an answer; OSError says why there is none"""


class Health:
    """Of all instances. `tell(instance_id, up)` is called on every change."""

    def __init__(self, tell: Callable[[str, bool], None], ask: Ask) -> None:
        self._tell = tell
        self._ask = ask
        self._probe_s = 0.0
        self.states: dict[str, State] = {}

    def change(self, specs: Iterable[InstanceSpec], probe_s: float) -> None:
        """These are the instances now, and a probe may take so long; what is known of those that stay is kept."""
        self._probe_s = probe_s
        known, self.states = self.states, {}
        for spec in specs:
            state = known.get(spec.instance_id)
            if state is None or state.spec.url != spec.url:
                state = State(spec)
            state.spec = spec
            self.states[spec.instance_id] = state

    def request_failed(self, instance_id: str, reason: FailReason) -> None:
        """A request got no good answer there."""
        state = self.states.get(instance_id)
        after = _EJECT_AFTER.get(reason)
        if state is None or after is None:
            return
        state.failures += 1
        if state.up and state.failures >= after and self._others_do_better(state, reason):
            now_s = monotonic()
            state.ejected_until_s = now_s + min(EJECT_S * 2**state.ejections, EJECT_MAX_S)
            state.ejections = min(state.ejections + 1, 4)
            self._set(state, False, f"{state.failures} requests in a row failed there ({reason.value})")

    def request_completed(self, instance_id: str) -> None:
        """A request was answered there."""
        state = self.states.get(instance_id)
        if state is not None and state.failures:
            state.failures = 0

    def ejected_for_s(self, instance_id: str) -> float:
        """How much longer it is left out."""
        state = self.states.get(instance_id)
        return max(state.ejected_until_s - monotonic(), 0.0) if state is not None and not state.up else 0.0

    def _others_do_better(self, state: State, reason: FailReason) -> bool:
        others = [o for o in self.states.values() if o.up and o.spec.model == state.spec.model and o is not state]
        if reason is FailReason.ENGINE_ERROR:
            # Some requests break whatever engine they are sent to. Where others fail as often in a row, to leave one out helps nobody.
            return any(2 * o.failures < state.failures for o in others)
        return bool(others)

    def _set(self, state: State, up: bool, reason: str) -> None:
        state.reason = reason
        if state.up is not up:
            state.up = up
            state.good_since_s = monotonic()
            self._tell(state.spec.instance_id, up)

    async def run(self) -> None:
        """For ever: probe each instance every second, spread over the second."""
        while True:
            states = [s for s in self.states.values() if s.spec.engine is not EngineKind.REMOTE]
            pause_s = PROBE_EVERY_S / max(len(states), 1)
            probes = []
            for state in states:
                probes.append(asyncio.create_task(self._probe(state)))
                await asyncio.sleep(pause_s)
            if probes:
                await asyncio.wait(probes)
            else:
                await asyncio.sleep(PROBE_EVERY_S)

    async def _probe(self, state: State) -> None:
        instance_id = state.spec.instance_id
        try:
            status = await self._ask(instance_id, state.path, self._probe_s)
            if status in (404, 405) and state.path == "/health":
                state.path = "/v1/models"
                status = await self._ask(instance_id, state.path, self._probe_s)
            alive, reason = status < 500, f"{state.path} answered {status}"
        except OSError as error:
            alive, reason = False, f"{state.path}: {error}"
        now_s = monotonic()
        if not alive:
            state.failed_probes += 1
            if state.failed_probes >= PROBES_DOWN:
                self._set(state, False, reason)
            return
        state.failed_probes = 0
        if not state.up and now_s >= state.ejected_until_s:
            state.failures = 0
            self._set(state, True, "")
        elif state.up and state.ejections and now_s - state.good_since_s > EJECT_MAX_S:
            state.ejections = 0
