"""What the control endpoints may ask of the running gateway, and the shapes they answer with.

`Views` is implemented by serve.py over the live objects; nothing here computes or keeps anything. The models are the admin API's schema:
durations in seconds, ratios 0..1, money in US dollars.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from gateway.core.flow import SloTargets
from gateway.measure.attainment import Attainment
from gateway.measure.tally import TallyEdges
from gateway.measure.windows import Merged


class View(BaseModel):
    """A value that is read, never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelView(View):
    """A model that applications may ask for."""

    id: str
    aliases: tuple[str, ...] = ()


class InstanceView(View):
    """One engine address and what runs on it now."""

    instance_id: str
    pool: str
    tier: str
    model: str
    gpu: str
    usd_per_hour: float
    in_flight: int = Field(description="requests this gateway has there")
    limit: int = Field(description="requests it may have there")
    saturation_ratio: float = Field(description="in flight over limit, or the predictor's better knowledge; 1 is full")
    healthy: bool
    draining: bool = Field(description="gets nothing new; what runs there finishes")
    ejected_for_s: float = Field(default=0.0, description="left out after failures for this much longer")
    unprefilled_tokens: int = Field(default=0, description="prompt tokens sent there that have no first token yet")
    context_tokens: int = Field(default=0, description="prompt and output tokens of what runs there")


class QueueView(View):
    """One queue: the requests of a class for a model that wait for a slot."""

    model: str
    experience_class: str
    requests: int
    bytes: int
    oldest_s: float = Field(description="how long the oldest has waited")
    late: int = Field(default=0, description="of these, requests that can no longer meet their SLO")


class LeaseView(View):
    """What this worker may use of one instance."""

    instance_id: str
    slots: int = Field(description="requests this worker may have there now")
    in_flight: int = Field(description="requests it has there")
    others_in_flight: int = Field(description="requests other workers have there, as they last said")
    limit: int = Field(description="requests all of them together may have there")


class QuotaView(View):
    """One limit of one quota."""

    quota: str = Field(description="the key's id, or the key's id and a class: `id/class`")
    measure: str = Field(description="requests or tokens (a minute), or concurrent")
    limit: int
    remaining: int = Field(description="of the limit, as far as this worker knows of all")
    used: int = Field(description="by this worker, in the last minute or right now")
    wallet: int | None = Field(description="what this worker may spend until it next looks at the others; none when there are no others")


class StoreView(View):
    """How the shared state does, by its latest answer."""

    where: str = Field(description="its address, without secrets")
    connected: bool = Field(description="did it answer the latest call")
    silent_s: float | None = Field(description="how long ago it last answered; none when it never has")
    calls: int
    errors: int = Field(description="of these calls, how many came to nothing")
    last_error: str


class SharesView(View):
    """What this worker may use of what it shares with others."""

    state: str = Field(description="alone: nothing is shared; shared; lost: the store has not answered for longer than a lease stands")
    when_lost: str = Field(description="open: a fixed share goes on; closed: requests are refused until the store is back")
    workers: int = Field(description="that were there at the last answer, this one included")
    worker: str = Field(description="this one's name")
    controller: bool = Field(description="is this the worker that does what only one may do")
    store: StoreView | None = Field(description="none when nothing is shared")
    leases: tuple[LeaseView, ...] = Field(description="empty when nothing is shared: each limit is this worker's alone")
    quotas: tuple[QuotaView, ...]


class ReloadView(View):
    """What a reload did. On failure the old configuration goes on."""

    ok: bool
    changed: tuple[str, ...] = Field(default=(), description="what is different now, one sentence each")
    problems: tuple[str, ...] = Field(default=(), description="why the file was refused: file:line:column, what, and what was expected")


class VersionView(View):
    """What runs here."""

    version: str
    python: str
    mode: str
    policy: str
    started_unix_s: float
    uptime_s: float
    config_hash: str = ""


class WorkerView(View):
    """One worker process of this gateway."""

    worker: str = Field(description="its number, 0 and up; who takes its place has the same")
    pid: int
    state: str = Field(description="starting, serving, silent (does not answer), or retiring: takes nothing new and ends with what it has")
    ready: bool = Field(description="does it take connections, and does an engine answer")
    name: str = Field(description="as /admin/shares and the shared state know it")
    instance_id: str = Field(description="its service.instance.id in OpenTelemetry; empty when the SDK chose one")
    version: str
    started_unix_s: float
    connections: int
    in_flight: int = Field(description="requests it has on engines")
    loop_lag_s: float = Field(description="how late its timers were of late, at worst")


class LostView(View):
    """A worker that ended without a last word."""

    worker: str
    pid: int
    ended_unix_s: float
    status: int = Field(description="exit status, negative for a signal")
    missing_s: float = Field(description="at most this much of what it counted before it ended is missing; its requests in flight are lost")


class WorkersView(View):
    """The processes of this gateway."""

    configured: int
    serving: int = Field(description="that take connections now")
    restarts: dict[str, int] = Field(description="since the gateway started: crash, upgrade")
    changing: str = Field(description="what is under way: upgrade or reload, or nothing")
    workers: tuple[WorkerView, ...]
    lost: tuple[LostView, ...] = Field(description="the last sixteen")


class RestartView(View):
    """What became of the wish to replace all workers. On failure those that were there go on."""

    ok: bool
    problem: str = ""


class DrainView(View):
    """The state of an instance after it was told to drain or to come back."""

    instance_id: str
    draining: bool


class Latency(View):
    """Percentiles of one latency. `target_s` is there when all requests in the row were promised the same."""

    samples: int
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None
    target_s: float | None = None
    within_ratio: float | None = Field(default=None, description="share of samples within the target, exact")


class SloRow(View):
    """What one class, use case, pool or tenant got."""

    name: str
    experience_class: str | None = Field(default=None, description="when the row is a use case: the class of its requests, if it is one")
    offered: int = Field(description="completed + refused + failed; what attainment is over")
    completed: int
    attained: int
    attained_ratio: float | None = Field(description="attained over offered; none when nothing was offered")
    attained_strict_ratio: float | None = Field(description="the same with the p95 of a request's own gaps instead of its TPOT")
    burn_rate: float | None = Field(
        description="share that did not attain over the share that may: above 1 the promise breaks if this goes on"
    )
    goodput_per_s: float = Field(description="attained requests a second")
    missed: dict[str, int] = Field(description="completed requests that missed: ttft, itl, e2e; one may miss several")
    refused: dict[str, int] = Field(description="by reason")
    failed: dict[str, int] = Field(description="by reason")
    client_gone: int = Field(description="left by the client; not offered")
    client_error: int = Field(description="the caller's own mistakes, as an engine said; not offered")
    degraded: int = Field(description="took a looser class instead of a refusal")
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    latencies: dict[str, Latency] = Field(description="ttft, itl, tpot, e2e, queue; empty for tenants")


class SilentView(View):
    """A worker that fell silent without a last word: killed, or cut off from the shared state."""

    worker: str
    silent_s: float
    missing_s: float = Field(description="at most this much of what it counted before is missing; what it counted since is, too")


class CountedView(View):
    """Whose counts an answer is made of."""

    workers: int = Field(description="that are there now and are counted, this one included")
    gone: int = Field(description="workers that are no more, but did count something in this time")
    oldest_s: float = Field(description="how old the oldest word of those that are there is; 0 when this worker is alone")
    silent: tuple[SilentView, ...] = ()
    unreachable: str = Field(default="", description="why only this worker is counted although there may be others")


class SloReport(View):
    """Attainment and latencies over the last `covered_s` seconds."""

    window_s: float = Field(description="what was asked for")
    covered_s: float = Field(description="what the answer covers: whole windows of ten seconds or a minute, and the open one")
    by: str
    objective_ratio: float = Field(0.95, description="attainment that is promised")
    counted: CountedView
    usd_per_hour: float = Field(description="what all instances cost")
    rows: tuple[SloRow, ...]
    total: SloRow


class OtherCounts(Protocol):
    """What other workers have counted."""

    def counted(self) -> CountedView: ...

    def merging(self, merged: Merged, edges: TallyEdges) -> Generator[None, None, None]:
        """Add it to an answer, in small steps."""
        ...


class Counting(Protocol):
    """What a report is made of; serve/views.WorkerViews is one."""

    attainment: Attainment

    def now_s(self) -> float:
        """The core's clock."""
        ...

    def fleet(self) -> list[InstanceView]: ...

    def targets(self, use_case: str, experience_class: str) -> SloTargets | None:
        """What a use case is promised in a class; None when the catalogue no longer knows them."""
        ...


class Views(Protocol):
    """The running gateway, as the control endpoints see it: one worker, or all of them (serve/whole.py)."""

    async def look(self, openmetrics: bool = False) -> None:
        """Ask whoever must be asked, for exemplars too if `metrics` is to have them; what is not async below then tells of this moment.
        At once when this process is all there is."""
        ...

    async def slo(self, window_s: float, by: str) -> object:
        """A SloReport, or the same as plain JSON data (msgspec.Raw)."""
        ...

    async def workers(self) -> WorkersView: ...

    async def restart(self) -> RestartView:
        """Put new workers in the place of all, one after the other; returns when it is done."""
        ...

    def version(self) -> VersionView: ...

    def authorised(self, authorization: str | None) -> bool:
        """May a caller with this Authorization header see the models? True for all when no keys are configured."""
        ...

    def models(self) -> list[ModelView]: ...

    def not_ready(self) -> str:
        """Why no traffic should be sent here now, "" when it should: draining, or no instance that could serve."""
        ...

    def metrics(self, openmetrics: bool = False) -> Iterator[str]:
        """The text of /metrics in pieces, each made in well under a millisecond; as OpenMetrics with exemplars."""
        ...

    def fleet(self) -> list[InstanceView]: ...

    def queues(self) -> list[QueueView]: ...

    def shares(self) -> SharesView: ...

    async def explain(self, request_id: str) -> dict[str, Any] | None:
        """The decisions about one request (core/trail), None when it is unknown or forgotten."""
        ...

    def config(self) -> dict[str, Any]:
        """The configuration in force, defaults included, secrets redacted."""
        ...

    async def reload(self) -> ReloadView: ...

    async def drain(self, instance_id: str, draining: bool) -> bool:
        """Stop or resume giving work to an instance; False when there is none of that name."""
        ...
