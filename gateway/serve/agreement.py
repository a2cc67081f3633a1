"""One configuration for all workers: each says first whether it could take it, and none takes it before all have said yes.

A worker that cannot do what it said is ended, and whoever takes its place begins with what is in force.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence
from dataclasses import replace

from gateway.admin.views import ReloadView
from gateway.config.handed import handed
from gateway.config.loaded import Loaded
from gateway.serve.link import LinkError
from gateway.serve.seats import Member

log = logging.getLogger("slo_gateway")

ACT_S = 5.0  # for a worker to answer


class Agreement:
    """What is in force. `state_url` is where workers share, when the configuration does not say."""

    def __init__(self, loaded: Loaded, state_url: str) -> None:
        self.loaded = loaded
        self._state_url = state_url

    def handed(self, loaded: Loaded | None = None) -> bytes:
        """For a worker."""
        loaded = loaded or self.loaded
        settings = loaded.settings
        if self._state_url:
            settings = replace(settings, state=replace(settings.state, url=self._state_url))
        return handed(replace(loaded, settings=settings))

    async def change(self, loaded: Loaded, members: Sequence[Member]) -> ReloadView:
        """Another one, at all of these workers or at none."""
        data = self.handed(loaded)
        told = await asyncio.gather(*(member.link.ask("prepare", data, ACT_S) for member in members), return_exceptions=True)
        problems: list[str] = []
        for member, answer in zip(members, told, strict=True):
            found = [f"worker {member.number}: {answer}"] if isinstance(answer, BaseException) else answer
            problems += [problem for problem in found if problem not in problems]
        if problems:
            return ReloadView(ok=False, problems=tuple(problems))
        self.loaded = loaded
        changed = await asyncio.gather(*map(self._commit, members))
        return ReloadView(ok=True, changed=tuple(next((sentences for sentences in changed if sentences), ())))

    async def catch_up(self, member: Member) -> None:
        """It began with what was in force then."""
        try:
            problems = await member.link.ask("prepare", self.handed(), ACT_S)
        except LinkError as error:
            problems = [str(error)]
        if problems:
            log.error("worker %d cannot take the configuration (%s); it is replaced", member.number, "; ".join(problems))
            member.send(signal.SIGKILL)
        else:
            await self._commit(member)

    async def _commit(self, member: Member) -> list[str]:
        member.digest = self.loaded.digest
        try:
            changed: list[str] = await member.link.ask("commit", None, ACT_S)
        except LinkError as error:
            log.error("worker %d did not take the configuration (%s); it is replaced", member.number, error)
            member.send(signal.SIGKILL)
            return []
        return changed
