"""What the fleet has learnt, kept where a new worker finds it: it begins with good predictions instead of the shipped facts.

The controller writes it twice a minute, fenced, once it has itself begun with what was there; the others read it when they start. What is
read is checked to the last figure: predictions are used on the request path, where nothing may go wrong any more. What runs at the
moment, and which prompts are warm, is not shared.
"""

from __future__ import annotations

import asyncio
import logging
import math
import zlib
from time import monotonic, perf_counter
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.predict.predictor import LearningPredictor
from gateway.state.controller import ControllerLease
from gateway.state.looks import again
from gateway.state.names import Names
from gateway.state.store import Store

log = logging.getLogger("slo_gateway")

EVERY_S = 30.0
LOOK_S = 1.0
"""between looks whether the store answers at the start, and whether it is time to tell"""
KEPT_S = 7 * 86400.0
SLICE_S = 0.0005
MAX_BYTES = 16 * 1024 * 1024
MAX_APPS = 4000
"""applications whose output lengths are shared, those met last; some 500 kB"""
SETTLED_SAMPLES = 20
"""a worker that has learnt this much by itself needs no start any more"""

NotNegative = Annotated[float, Meta(ge=0.0, le=1e12)]
Positive = Annotated[float, Meta(gt=0.0, le=1e12)]
Bias = Annotated[float, Meta(ge=0.02, le=50.0)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Word = Annotated[str, Meta(max_length=1024)]


class Linear(msgspec.Struct, forbid_unknown_fields=True):
    """predict/regression.Regression"""

    weights: list[NotNegative]
    spread: list[NotNegative]
    covariance: list[list[float]]
    samples: Count


class Ratios(msgspec.Struct, forbid_unknown_fields=True):
    """predict/regression.RatioQuantiles"""

    counts: list[NotNegative]
    p50: Positive
    p90: Positive
    since: Count


class Kind(msgspec.Struct, forbid_unknown_fields=True):
    """predict/kinds.KeyModel"""

    step: Linear
    first: Linear
    first_ratio: Ratios


class Biases(msgspec.Struct, forbid_unknown_fields=True):
    """predict/latency.Load"""

    ttft: Bias
    step: Bias
    own: Kind | None


class Latencies(msgspec.Struct, forbid_unknown_fields=True):
    """predict/latencies.Latencies"""

    keys: dict[Word, Kind]
    instances: dict[Word, Biases]


Length = tuple[list[Word | int], Annotated[float, Meta(ge=1.0, le=1e9)], Count, list[tuple[Annotated[int, Meta(ge=0, le=63)], NotNegative]]]


class Learnt(msgspec.Struct, forbid_unknown_fields=True):
    """predict/predictor.LearningPredictor"""

    version: int
    latencies: Latencies
    lengths: list[Length]
    prompts: list[tuple[Word, Word, Annotated[float, Meta(ge=0.001, le=10.0)], Count]]
    prefixes: dict[Word, Annotated[float, Meta(ge=0.0, le=1.0)]]


_decoder = msgspec.msgpack.Decoder(Learnt)


def packed(state: dict[str, Any]) -> bytes:
    """For a thread."""
    return zlib.compress(msgspec.msgpack.encode(state), 1)


def read(data: bytes) -> LearningPredictor | None:
    """A predictor that knows what is in there; None when that is not what a gateway of this version would have written. For a thread."""
    try:
        unpacking = zlib.decompressobj()
        learnt = _decoder.decode(unpacking.decompress(data, MAX_BYTES))
        state = msgspec.to_builtins(learnt)
        if not unpacking.eof or not _finite(state):
            return None
        made = LearningPredictor({})
        made.restore(state)
        # Models of instances of their own kind are only looked at when they are first met: here and now is better.
        kinds = [kind for one in state["latencies"]["instances"].values() if (kind := one["own"]) is not None]
        LearningPredictor({}).latencies.restore({"keys": {str(n): kind for n, kind in enumerate(kinds)}, "instances": {}})
    except (zlib.error, ValueError, KeyError, TypeError, IndexError):
        return None
    return made


def settled(predictor: LearningPredictor) -> bool:
    """Has it learnt enough by itself?"""
    return any(max(key.step.samples, key.first.samples) > SETTLED_SAMPLES for key in predictor.latencies.keys.values())


async def gathered(predictor: LearningPredictor, most_apps: int) -> dict[str, Any]:
    """All that was learnt, with requests served in between."""
    steps, until_s = predictor.state_in_steps(most_apps), perf_counter() + SLICE_S
    while True:
        try:
            next(steps)
        except StopIteration as end:
            state: dict[str, Any] = end.value
            return state
        if perf_counter() >= until_s:
            await asyncio.sleep(0)
            until_s = perf_counter() + SLICE_S


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, list | tuple) else True


class WarmStart:
    """One worker's side of it."""

    def __init__(self, predictor: LearningPredictor, store: Store, names: Names, controller: ControllerLease) -> None:
        self.begun = False  # with what was there, or the knowledge that there is nothing
        self._predictor = predictor
        self._store = store
        self._names = names
        self._controller = controller
        self._told_at_s = monotonic()

    async def run(self) -> None:
        """Begin warm as soon as the store answers, and tell for ever."""
        await again(LOOK_S, "what was learnt", self._look)

    async def _look(self) -> None:
        if not self.begun:
            await self.begin()
        elif monotonic() - self._told_at_s >= EVERY_S:
            self._told_at_s = monotonic()
            await self.tell()

    async def begin(self) -> bool:
        """Take over what the fleet has learnt. False when there was nothing of use. StoreError: nobody knows."""
        data = await self._store.get(self._names.learnt)
        self.begun = True
        if data is None or settled(self._predictor):
            return False
        found = await asyncio.to_thread(read, data)
        if found is None:
            log.warning("what the fleet has learnt cannot be read; beginning with the shipped facts")
            return False
        self._predictor.adopt(found)
        log.info("beginning with what the fleet has learnt")
        return True

    async def tell(self) -> bool:
        """Write what this worker has learnt, if it is the controller and knows something."""
        if not self._controller.held() or not settled(self._predictor):
            return False
        data = await asyncio.to_thread(packed, await gathered(self._predictor, MAX_APPS))
        return await self._controller.put(self._names.learnt, data, KEPT_S)
