"""What one gateway has learnt, in a file of its own: after a restart it predicts as before, without any server.

Written whole beside the file and put in its place, so that no reader ever sees half of it, every half a minute and at the end. What is
read is checked as strictly as what comes from a store (warm.py). A disk that is full or gone costs what was learnt, never a request.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from gateway.predict.predictor import LearningPredictor
from gateway.state.looks import again
from gateway.state.warm import EVERY_S, MAX_APPS, MAX_BYTES, gathered, packed, read, settled

log = logging.getLogger("slo_gateway")


class LearntFile:
    """`path` need not exist yet; its folder must. Of several workers all read it, and the one that `may` writes it."""

    def __init__(self, predictor: LearningPredictor, path: str | Path, may: Callable[[], bool] = lambda: True) -> None:
        self.path = Path(path)
        self._predictor = predictor
        self._may = may

    def begin(self) -> bool:
        """Take over what is there. False when there is nothing of use, or more is known already; the log says so when there should have
        been."""
        if settled(self._predictor):
            return False
        try:
            if self.path.stat().st_size > MAX_BYTES:
                raise ValueError(f"larger than {MAX_BYTES} bytes")
            data = self.path.read_bytes()
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as problem:
            log.warning("%s cannot be read (%s); predictions begin with the shipped facts", self.path, problem)
            return False
        found = read(data)
        if found is None:
            log.warning("%s is not what a gateway of this version writes; predictions begin with the shipped facts", self.path)
            return False
        self._predictor.adopt(found)
        log.info("predictions go on from %s", self.path)
        return True

    async def run(self) -> None:
        """Write for ever."""
        await again(EVERY_S, "what was learnt", self.save)

    async def save(self) -> bool:
        """Write it now. False when there is nothing worth it, or the disk does not take it."""
        if not self._may() or not settled(self._predictor):
            return False
        state = await gathered(self._predictor, MAX_APPS)
        return await asyncio.to_thread(lambda: self._write(packed(state)))

    def _write(self, data: bytes) -> bool:
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path)
        except OSError as problem:
            log.warning("%s cannot be written: %s", self.path, problem.strerror or problem)
            beside.unlink(missing_ok=True)
            return False
        return True
