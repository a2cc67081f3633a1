"""What operators see of several workers: admin/views.Views over all of them, as one gateway. The supervisor's, who holds no request."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.exceptions import HTTPException

from gateway.admin.views import (
    InstanceView,
    ModelView,
    QueueView,
    ReloadView,
    RestartView,
    SharesView,
    VersionView,
    WorkersView,
    WorkerView,
)
from gateway.measure.attainment import CellKey
from gateway.serve import merge
from gateway.serve.link import LinkError
from gateway.serve.version import version_view
from gateway.telemetry.exemplars import ByHistogram, Exemplar
from gateway.telemetry.exposition import written
from gateway.telemetry.openmetrics import written as with_exemplars
from gateway.telemetry.readings import Reading, Samples

if TYPE_CHECKING:
    from gateway.serve.seats import Member
    from gateway.serve.supervisor import Supervisor

SLO_S = 5.0  # for an answer that may take a while to add up


class WholeViews:
    """Asks the workers and adds up."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._parts: dict[str, Any] = {}  # what each worker said last, by name
        self._exemplars: ByHistogram = {}

    async def look(self, openmetrics: bool = False) -> None:
        members = self._supervisor.answering
        if openmetrics:
            self._exemplars = await self._asked_for_exemplars(members)

        async def one(member: Member) -> None:
            try:
                part = await member.link.ask("look")
            except LinkError:
                return
            self._supervisor.accounts.take_figures(member.name, part["readings"])
            self._parts[member.name] = part

        await asyncio.gather(*map(one, members))
        names = {member.name for member in self._supervisor.answering}
        self._parts = {name: part for name, part in self._parts.items() if name in names}

    # ---- all of them

    def metrics(self, openmetrics: bool = False) -> Iterator[str]:
        text = self._text()
        return with_exemplars(text, self._exemplars) if openmetrics else text

    async def metrics_at_once(self, openmetrics: bool) -> str:
        """For a worker, which was asked on the applications' port."""
        await self.look(openmetrics)
        pieces = []
        for piece in self.metrics(openmetrics):
            pieces.append(piece)
            await asyncio.sleep(0)
        return "".join(pieces)

    def _text(self) -> Iterator[str]:
        accounts = self._supervisor.accounts
        for _ in accounts.cells():
            yield ""
        yield from written(accounts.whole, self._samples_of)

    async def _asked_for_exemplars(self, members: Sequence[Member]) -> ByHistogram:
        """Of all workers, the newest last."""
        told = await asyncio.gather(*(member.link.ask("exemplars") for member in members), return_exceptions=True)
        found: dict[tuple[str, CellKey], list[Exemplar]] = {}
        for answer in told:
            for name, cell, value_s, trace_id, span_id, at_unix_s in () if isinstance(answer, BaseException) else answer:
                exemplar = Exemplar(value_s, int.from_bytes(trace_id), span_id, at_unix_s)
                found.setdefault((name, CellKey(*cell)), []).append(exemplar)
        for exemplars in found.values():
            exemplars.sort(key=lambda exemplar: exemplar.at_unix_s)
        return found

    def _samples_of(self, reading: Reading, _: Any) -> Samples:
        match reading.name:
            case "slo_gateway_ready":
                return [((), not self.not_ready())]
            case "slo_gateway_config_last_reload_successful":
                return [((), not self._supervisor.reload_refused)]
            case "slo_gateway_start_time_seconds":
                return [((), self._supervisor.started_unix_s)]
            case "slo_gateway_worker_restarts_total":
                return [((why,), count) for why, count in self._supervisor.restarts.items()]
            case "slo_gateway_second_opinion_up":
                wanted = self._supervisor.loaded.settings.classify.second_opinion
                return [((), self._supervisor.adviser.up)] if wanted else []
        return self._supervisor.accounts.samples_of(reading)

    def fleet(self) -> list[InstanceView]:
        return merge.fleets(msgspec.convert(part["fleet"], list[InstanceView]) for part in self._parts.values())

    def queues(self) -> list[QueueView]:
        return merge.queues(msgspec.convert(part["queues"], list[QueueView]) for part in self._parts.values())

    def shares(self) -> SharesView:
        return merge.shares([msgspec.convert(part["shares"], SharesView) for part in self._parts.values()], socket.gethostname()[:40])

    async def workers(self) -> WorkersView:
        await self.look()
        supervisor = self._supervisor
        shown = []
        for member in supervisor.members:
            part = self._parts.get(member.name)
            view = msgspec.convert(part["view"], WorkerView) if part is not None else _unheard(member)
            shown.append(msgspec.structs.replace(view, state=member.state, ready=view.ready and member.state == "serving"))
        return WorkersView(
            configured=len(supervisor.seats),
            serving=sum(view.ready for view in shown),
            restarts=dict(supervisor.restarts),
            changing=supervisor.changing,
            workers=tuple(sorted(shown, key=lambda view: (int(view.worker), view.started_unix_s))),
            lost=tuple(supervisor.lost),
        )

    def not_ready(self) -> str:
        return self._supervisor.not_ready()

    # ---- one of them

    async def slo(self, window_s: float, by: str) -> object:
        problem = "no worker serves"
        for member in self._supervisor.answering:
            try:
                return msgspec.Raw((await member.link.ask("slo", [window_s, by], SLO_S)).encode())
            except LinkError as error:
                problem = str(error)
        raise HTTPException(503, f"No worker can tell: {problem}.")

    async def explain(self, request_id: str) -> Any:
        async def one(member: Member) -> Any:
            try:
                return await member.link.ask("explain", request_id)
            except LinkError:
                return None

        stories = await asyncio.gather(*map(one, self._supervisor.answering))
        found = next((story for story in stories if story is not None), None) or self._supervisor.past.of(request_id)
        return None if found is None else msgspec.Raw(found)

    # ---- the supervisor itself

    def version(self) -> VersionView:
        return version_view(self._supervisor.loaded, self._supervisor.started_unix_s)

    def authorised(self, authorization: str | None) -> bool:
        return False  # applications do not come here

    def models(self) -> list[ModelView]:
        return [ModelView(id=model.name, aliases=tuple(model.aliases)) for model in self._supervisor.loaded.settings.models]

    def config(self) -> object:
        return msgspec.Raw(self._supervisor.loaded.shown)

    async def reload(self) -> ReloadView:
        return await self._supervisor.reload()

    async def restart(self) -> RestartView:
        return await self._supervisor.restart()

    async def drain(self, instance_id: str, draining: bool) -> bool:
        return await self._supervisor.drain(instance_id, draining)


def _unheard(member: Member) -> WorkerView:
    return WorkerView(
        worker=str(member.number),
        pid=member.pid,
        state=member.state,
        ready=False,
        name="",
        instance_id=member.instance_id,
        version="",
        started_unix_s=member.started_unix_s,
        connections=0,
        in_flight=0,
        loop_lag_s=0.0,
    )
