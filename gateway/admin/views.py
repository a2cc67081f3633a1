"""What the control endpoints may ask of the running gateway, and the shapes they answer with.

`Views` is implemented by serve.py over the live objects; nothing here computes or keeps anything. The models are the admin API's schema:
durations in seconds, ratios 0..1, money in US dollars.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Annotated, Any, Protocol

from msgspec import Meta, Struct

from gateway.core.flow import SloTargets
from gateway.measure.attainment import Attainment
from gateway.measure.tally import TallyEdges
from gateway.measure.windows import Merged


class View(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value that is read, never changed."""


class ModelView(View, frozen=True, kw_only=True):
    """A model that applications may ask for."""

    id: str
    aliases: tuple[str, ...] = ()


class InstanceView(View, frozen=True, kw_only=True):
    """One engine address and what runs on it now."""

    instance_id: str
    pool: str
    tier: str
    model: str
    gpu: str
    usd_per_hour: float
    in_flight: Annotated[int, Meta(description="requests this gateway has there")]
    limit: Annotated[int, Meta(description="requests it may have there")]
    saturation_ratio: Annotated[float, Meta(description="in flight over limit, or the predictor's better knowledge; 1 is full")]
    healthy: bool
    draining: Annotated[bool, Meta(description="gets nothing new; what runs there finishes")]
    ejected_for_s: Annotated[float, Meta(description="left out after failures for this much longer")] = 0.0
    unprefilled_tokens: Annotated[int, Meta(description="prompt tokens sent there that have no first token yet")] = 0
    context_tokens: Annotated[int, Meta(description="prompt and output tokens of what runs there")] = 0


class QueueView(View, frozen=True, kw_only=True):
    """One queue: the requests of a class for a model that wait for a slot."""

    model: str
    experience_class: str
    requests: int
    bytes: int
    oldest_s: Annotated[float, Meta(description="how long the oldest has waited")]
    late: Annotated[int, Meta(description="of these, requests that can no longer meet their SLO")] = 0


class LeaseView(View, frozen=True, kw_only=True):
    """What this worker may use of one instance."""

    instance_id: str
    slots: Annotated[int, Meta(description="requests this worker may have there now")]
    in_flight: Annotated[int, Meta(description="requests it has there")]
    others_in_flight: Annotated[int, Meta(description="requests other workers have there, as they last said")]
    limit: Annotated[int, Meta(description="requests all of them together may have there")]


class QuotaView(View, frozen=True, kw_only=True):
    """One limit of one quota."""

    quota: Annotated[str, Meta(description="the key's id, or the key's id and a class: `id/class`")]
    measure: Annotated[str, Meta(description="requests or tokens (a minute), or concurrent")]
    limit: int
    remaining: Annotated[int, Meta(description="of the limit, as far as this worker knows of all")]
    used: Annotated[int, Meta(description="by this worker, in the last minute or right now")]
    wallet: Annotated[
        int | None, Meta(description="what this worker may spend until it next looks at the others; none when there are no others")
    ]


class StoreView(View, frozen=True, kw_only=True):
    """How the shared state does, by its latest answer."""

    where: Annotated[str, Meta(description="its address, without secrets")]
    connected: Annotated[bool, Meta(description="did it answer the latest call")]
    silent_s: Annotated[float | None, Meta(description="how long ago it last answered; none when it never has")]
    calls: int
    errors: Annotated[int, Meta(description="of these calls, how many came to nothing")]
    last_error: str


class SharesView(View, frozen=True, kw_only=True):
    """What this worker may use of what it shares with others."""

    state: Annotated[
        str, Meta(description="alone: nothing is shared; shared; lost: the store has not answered for longer than a lease stands")
    ]
    when_lost: Annotated[str, Meta(description="open: a fixed share goes on; closed: requests are refused until the store is back")]
    workers: Annotated[int, Meta(description="that were there at the last answer, this one included")]
    worker: Annotated[str, Meta(description="this one's name")]
    controller: Annotated[bool, Meta(description="is this the worker that does what only one may do")]
    store: Annotated[StoreView | None, Meta(description="none when nothing is shared")]
    leases: Annotated[tuple[LeaseView, ...], Meta(description="empty when nothing is shared: each limit is this worker's alone")]
    quotas: tuple[QuotaView, ...]


class ReloadView(View, frozen=True, kw_only=True):
    """What a reload did. On failure the old configuration goes on."""

    ok: bool
    changed: Annotated[tuple[str, ...], Meta(description="what is different now, one sentence each")] = ()
    problems: Annotated[tuple[str, ...], Meta(description="why the file was refused: file:line:column, what, and what was expected")] = ()


class VersionView(View, frozen=True, kw_only=True):
    """What runs here."""

    version: str
    python: str
    mode: str
    policy: str
    started_unix_s: float
    uptime_s: float
    config_hash: str = ""


class WorkerView(View, frozen=True, kw_only=True):
    """One worker process of this gateway."""

    worker: Annotated[str, Meta(description="its number, 0 and up; who takes its place has the same")]
    pid: int
    state: Annotated[
        str, Meta(description="starting, serving, silent (does not answer), or retiring: takes nothing new and ends with what it has")
    ]
    ready: Annotated[bool, Meta(description="does it take connections, and does an engine answer")]
    name: Annotated[str, Meta(description="as /admin/shares and the shared state know it")]
    instance_id: Annotated[str, Meta(description="its service.instance.id in OpenTelemetry; empty when the SDK chose one")]
    version: str
    started_unix_s: float
    connections: int
    in_flight: Annotated[int, Meta(description="requests it has on engines")]
    loop_lag_s: Annotated[float, Meta(description="how late its timers were of late, at worst")]


class LostView(View, frozen=True, kw_only=True):
    """A worker that ended without a last word."""

    worker: str
    pid: int
    ended_unix_s: float
    status: Annotated[int, Meta(description="exit status, negative for a signal")]
    missing_s: Annotated[
        float, Meta(description="at most this much of what it counted before it ended is missing; its requests in flight are lost")
    ]


class WorkersView(View, frozen=True, kw_only=True):
    """The processes of this gateway."""

    configured: int
    serving: Annotated[int, Meta(description="that take connections now")]
    restarts: Annotated[dict[str, int], Meta(description="since the gateway started: crash, upgrade")]
    changing: Annotated[str, Meta(description="what is under way: upgrade or reload, or nothing")]
    workers: tuple[WorkerView, ...]
    lost: Annotated[tuple[LostView, ...], Meta(description="the last sixteen")]


class RestartView(View, frozen=True, kw_only=True):
    """What became of the wish to replace all workers. On failure those that were there go on."""

    ok: bool
    problem: str = ""


class DrainView(View, frozen=True, kw_only=True):
    """The state of an instance after it was told to drain or to come back."""

    instance_id: str
    draining: bool


class Latency(View, frozen=True, kw_only=True):
    """Percentiles of one latency. `target_s` is there when all requests in the row were promised the same."""

    samples: int
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None
    target_s: float | None = None
    within_ratio: Annotated[float | None, Meta(description="share of samples within the target, exact")] = None


class SloRow(View, frozen=True, kw_only=True):
    """What one class, use case, pool or tenant got."""

    name: str
    experience_class: Annotated[str | None, Meta(description="when the row is a use case: the class of its requests, if it is one")] = None
    offered: Annotated[int, Meta(description="completed + refused + failed; what attainment is over")]
    completed: int
    attained: int
    attained_ratio: Annotated[float | None, Meta(description="attained over offered; none when nothing was offered")]
    attained_strict_ratio: Annotated[float | None, Meta(description="the same with the p95 of a request's own gaps instead of its TPOT")]
    burn_rate: Annotated[
        float | None, Meta(description="share that did not attain over the share that may: above 1 the promise breaks if this goes on")
    ]
    goodput_per_s: Annotated[float, Meta(description="attained requests a second")]
    missed: Annotated[dict[str, int], Meta(description="completed requests that missed: ttft, itl, e2e; one may miss several")]
    refused: Annotated[dict[str, int], Meta(description="by reason")]
    failed: Annotated[dict[str, int], Meta(description="by reason")]
    client_gone: Annotated[int, Meta(description="left by the client; not offered")]
    client_error: Annotated[int, Meta(description="the caller's own mistakes, as an engine said; not offered")]
    degraded: Annotated[int, Meta(description="took a looser class instead of a refusal")]
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    latencies: Annotated[dict[str, Latency], Meta(description="ttft, itl, tpot, e2e, queue; empty for tenants")]


class SilentView(View, frozen=True, kw_only=True):
    """A worker that fell silent without a last word: killed, or cut off from the shared state."""

    worker: str
    silent_s: float
    missing_s: Annotated[float, Meta(description="at most this much of what it counted before is missing; what it counted since is, too")]


class CountedView(View, frozen=True, kw_only=True):
    """Whose counts an answer is made of."""

    workers: Annotated[int, Meta(description="that are there now and are counted, this one included")]
    gone: Annotated[int, Meta(description="workers that are no more, but did count something in this time")]
    oldest_s: Annotated[float, Meta(description="how old the oldest word of those that are there is; 0 when this worker is alone")]
    silent: tuple[SilentView, ...] = ()
    unreachable: Annotated[str, Meta(description="why only this worker is counted although there may be others")] = ""


class SloReport(View, frozen=True, kw_only=True):
    """Attainment and latencies over the last `covered_s` seconds."""

    window_s: Annotated[float, Meta(description="what was asked for")]
    covered_s: Annotated[float, Meta(description="what the answer covers: whole windows of ten seconds or a minute, and the open one")]
    by: str
    objective_ratio: Annotated[float, Meta(description="attainment that is promised")] = 0.95
    counted: CountedView
    usd_per_hour: Annotated[float, Meta(description="what all instances cost")]
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

    def config(self) -> object:
        """The configuration in force as JSON (msgspec.Raw), defaults included, secrets redacted."""
        ...

    async def reload(self) -> ReloadView: ...

    async def drain(self, instance_id: str, draining: bool) -> bool:
        """Stop or resume giving work to an instance; False when there is none of that name."""
        ...
