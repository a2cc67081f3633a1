"""The values that flow: Request -> Tag -> Ticket -> Placement -> Outcome, and the actions the core answers with.

Each value is made in one place (named in its docstring), read in many, and knows nothing of the next. This module imports nothing of
ours but types, so every room may import it. It decides nothing.

Configuration values (targets, instance facts) are frozen: they are built once. What every request makes anew is a plain slots class,
left unmutated by habit, except where a field says who counts in it. Their constructors are written out: a generated one is interpreted
even where all else is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from gateway.core.instance import Instance
    from gateway.core.queues import Lane
    from gateway.core.reserve import Kept


class Endpoint(StrEnum):
    """The inference endpoints; the value is the GenAI operation name's short form and the metric label."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    MESSAGES = "messages"


class Mode(StrEnum):
    """`observe` tags, places and measures but never holds back or refuses."""

    ENFORCE = "enforce"
    OBSERVE = "observe"


class RefuseReason(StrEnum):
    """Why the core said no before any engine saw the request: the same word in action, body, metric label, log and test."""

    QUEUE_FULL = "queue_full"  # count of waiting requests, per class and model
    QUEUE_BYTES = "queue_bytes"  # bytes of waiting bodies
    CANNOT_MEET_SLO = "cannot_meet_slo"  # predicted miss wherever it would go
    EXPIRED = "expired"  # waited past its class's time to live
    QUOTA = "quota"  # the key's own rate, token or concurrency quota
    OVERLOADED = "overloaded"  # memory, file descriptors or loop lag: the gateway protects itself
    NO_CAPACITY = "no_capacity"  # 503: no instance serves this model, or all are down
    DRAINING = "draining"  # 503: this process is going away


class Result(StrEnum):
    """How a request ended; `attained` and `missed` are both completed ones."""

    COMPLETED = "completed"
    FAILED = "failed"
    REFUSED = "refused"
    CLIENT_GONE = "client_gone"


class FailReason(StrEnum):
    """Why a started request did not complete."""

    CONNECT = "connect"  # no connection to the instance
    CLOSED_EARLY = "closed_early"  # the engine went away before the first content
    CUT = "cut"  # the engine went away after content was sent
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105  (a reason, not a secret)
    STALLED = "stalled"  # no token for too long in mid-stream
    DEADLINE = "deadline"  # the whole request took too long
    ENGINE_ERROR = "engine_error"  # an error status or error event
    MALFORMED = "malformed"  # bytes that are not HTTP, JSON or SSE, or beyond a limit
    SLOW_READER = "slow_reader"  # the client did not read what it asked for
    INTERNAL = "internal"  # our own fault


@dataclass(frozen=True, slots=True)
class SloTargets:
    """What a user of a use case is promised, each at p95, seconds. `*_limit_s` alerts, the target is scheduled for (a range in the
    mission's table, "15-20 s", is target 15 and limit 20; without a range both are equal)."""

    ttft_s: float
    itl_s: float
    e2e_s: float
    e2e_limit_s: float


@dataclass(slots=True, init=False)
class Request:
    """What the core needs to know of a request. Made by wire/exchange from openai/body's reading, tenant and clock."""

    request_id: str
    endpoint: Endpoint
    model: str  # resolved: an alias is already replaced
    tenant: str
    stream: bool
    prompt_tokens: int  # estimated from bytes; corrected from `usage` when the engine reports it
    max_output_tokens: int | None  # what the caller allows, None = unsaid
    body_bytes: int
    arrived_at_s: float  # core clock: the request's last byte was read
    n: int  # choices asked for: each occupies a sequence of the engine's batch
    app: int  # fingerprint of the application (0 = unknown), for output lengths
    prefix_hashes: tuple[int, ...]  # keyed hashes of leading prompt blocks, for prefix-cache warmth
    fallback_models: tuple[str, ...]
    may_degrade: bool  # the caller accepts a looser class rather than a refusal

    def __init__(
        self, request_id: str, endpoint: Endpoint, model: str, tenant: str, stream: bool, prompt_tokens: int, max_output_tokens: int | None,
        body_bytes: int, arrived_at_s: float, n: int = 1, app: int = 0, prefix_hashes: tuple[int, ...] = (),
        fallback_models: tuple[str, ...] = (), may_degrade: bool = False,
    ) -> None:  # fmt: skip
        self.request_id = request_id
        self.endpoint = endpoint
        self.model = model
        self.tenant = tenant
        self.stream = stream
        self.prompt_tokens = prompt_tokens
        self.max_output_tokens = max_output_tokens
        self.body_bytes = body_bytes
        self.arrived_at_s = arrived_at_s
        self.n = n
        self.app = app
        self.prefix_hashes = prefix_hashes
        self.fallback_models = fallback_models
        self.may_degrade = may_degrade


@dataclass(slots=True, init=False)
class Tag:
    """Whose use case this is, what it is promised, and why we think so. Made by classify."""

    use_case: str
    experience_class: str
    rank: int  # 0 = tightest (instant) .. 4 = loosest (batch)
    targets: SloTargets
    tiers: tuple[str, ...]  # preferred first
    output_tokens: int  # the traffic profile's expectation
    why: str  # e.g. "header", "metadata", "key default", "structure: suffix", "learned 0.93", "fallback"
    confidence: float  # 0..1

    def __init__(
        self, use_case: str, experience_class: str, rank: int, targets: SloTargets, tiers: tuple[str, ...], output_tokens: int, why: str,
        confidence: float = 1.0,
    ) -> None:  # fmt: skip
        self.use_case = use_case
        self.experience_class = experience_class
        self.rank = rank
        self.targets = targets
        self.tiers = tiers
        self.output_tokens = output_tokens
        self.why = why
        self.confidence = confidence


@dataclass(slots=True, init=False, eq=False)
class Ticket:
    """A request that stands in line. Made by core/decide.arrived. Identity is the object: compare with `is`."""

    request: Request
    tag: Tag
    ttft_deadline_at_s: float
    e2e_deadline_at_s: float
    expected_output_tokens: float  # for load
    handle: Any  # opaque to the core: whoever submitted it finds its own way back
    queued_at_s: float
    late: bool  # set behind all that can still be saved
    tries: int  # placements that failed before any content
    tried: tuple[str, ...]  # instance ids not to try again
    degraded_from: str  # the class it asked for, when it accepted a looser one
    placement: Placement | None  # while started
    gone: bool  # no longer of interest: dropped when next seen
    model: str  # the model being looked for: the request's, or a fallback once that one cannot serve
    itl_target_s: float  # the mean gap it is scheduled for; 0 = its targets' (a caller that does not stream feels E2E only)
    latest_start_at_s: float  # after this even an idle instance would miss; < 0 = not asked yet
    expires_at_s: float  # end of its time to live in the queue
    seen_version: int  # of the fleet, when no place was found: until an instance changes, none will be; < 0 = not looked yet
    weight: float  # what keeping its promise counts for: its tenant's fair share over the share it has had (core/shares)
    worth: float  # its class's
    stake_per_s: float  # weighted likelihood that a second of delay costs it where it runs, as its policy reckons
    kept: Kept | None  # instances where this one has to pay for a class that is worth more, as last looked
    lane: Lane | None  # where it waits: core/queues' own, None = it does not
    wish: Instance | None  # the instance it would start on now, had this worker a lease on the slot
    trail: list[tuple[float, str, Any, Any]]  # what happened to it: core/trail's own

    def __init__(
        self, request: Request, tag: Tag, ttft_deadline_at_s: float, e2e_deadline_at_s: float, expected_output_tokens: float,
        handle: Any = None,
    ) -> None:  # fmt: skip
        self.request = request
        self.tag = tag
        self.ttft_deadline_at_s = ttft_deadline_at_s
        self.e2e_deadline_at_s = e2e_deadline_at_s
        self.expected_output_tokens = expected_output_tokens
        self.handle = handle
        self.queued_at_s = 0.0
        self.late, self.gone, self.tries = False, False, 0
        self.tried = ()
        self.degraded_from = self.model = ""
        self.placement = None
        self.itl_target_s = 0.0
        self.latest_start_at_s = -1.0
        self.expires_at_s = 0.0
        self.seen_version = -1
        self.weight = self.worth = 1.0
        self.stake_per_s = 0.0
        self.kept = self.lane = self.wish = None
        self.trail = []

    def slack_s(self, now_s: float) -> float:
        """Time left until the first token is due; negative when it is overdue."""
        return self.ttft_deadline_at_s - now_s


class Prediction(NamedTuple):
    """What an instance would take for one ticket, from the moment of asking, seconds."""

    ttft_s: float
    itl_s: float
    e2e_s: float
    work_s: float = 0.0  # of the engine's time, taken from everybody who streams there

    def meets(self, ticket: Ticket, now_s: float) -> bool:
        """Would it keep every promise of `ticket` when started at `now_s`?"""
        return (
            now_s + self.ttft_s <= ticket.ttft_deadline_at_s
            and self.itl_s <= (ticket.itl_target_s or ticket.tag.targets.itl_s)
            and now_s + self.e2e_s <= ticket.e2e_deadline_at_s
        )


Considered = tuple["Instance", float, float, float, float, int, float]
"""(instance, ttft_s, itl_s, e2e_s, work_s, its sequences in flight, the tightest gap promised there) as a decision looked at it: a
`Prediction` and what it was made beside, flat, for there is one for every instance of every decision."""


@dataclass(slots=True, init=False, eq=False)
class Placement:
    """A ticket on an instance, holding one slot. Made by core/decide. `output_tokens` is counted by the relay as deltas pass (reading
    it costs the core nothing, an event per token would)."""

    ticket: Ticket
    instance_id: str
    pool: str
    tier: str
    model: str  # what this instance calls the model: differs from the request's after a fallback
    started_at_s: float
    prediction: Prediction | None
    unprefilled_tokens: int  # its share of the instance's, until the first token
    first_token_at_s: float  # 0 = none yet
    output_tokens: int  # counted by the relay
    last_token_at_s: float
    features: Any  # the predictor's own note of what it looked at, for learning
    instance: Instance | None  # core/fleet's own; None once the slot is given back
    context_tokens: int  # its share of the instance's context, as last counted
    kv_tokens: int  # its share of the instance's KV cache: what is expected of it, or what it has come to
    counted_tokens: int  # as the controller last counted them; 0 = not yet
    counted_at_s: float
    held_until_s: float  # > 0 while its start waits for a batch to form

    def __init__(
        self, ticket: Ticket, instance_id: str, pool: str, tier: str, model: str, started_at_s: float, prediction: Prediction | None = None,
        unprefilled_tokens: int = 0, first_token_at_s: float = 0.0, output_tokens: int = 0, last_token_at_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.ticket = ticket
        self.instance_id = instance_id
        self.pool = pool
        self.tier = tier
        self.model = model
        self.started_at_s = started_at_s
        self.prediction = prediction
        self.unprefilled_tokens = unprefilled_tokens
        self.first_token_at_s = first_token_at_s
        self.output_tokens = output_tokens
        self.last_token_at_s = last_token_at_s
        self.features = None
        self.instance = None
        self.context_tokens = self.kv_tokens = self.counted_tokens = 0
        self.counted_at_s = self.held_until_s = 0.0


@dataclass(slots=True, init=False)
class Outcome:
    """What the user actually got. Made by wire/relay (completed, failed), or by live for what never started. Durations in seconds;
    None = did not happen or cannot be known (a non-streaming client sees E2E only)."""

    result: Result
    fail_reason: FailReason | None  # with FAILED
    refuse_reason: RefuseReason | None  # with REFUSED
    status: int  # as sent to the client; 4xx of an engine is the caller's own mistake and no miss
    queue_s: float
    ttft_s: float | None
    tpot_s: float | None  # (last - first) / (output_tokens - 1)
    itl_p95_s: float | None  # p95 of this request's own gaps
    e2e_s: float | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    tokens_estimated: bool  # no `usage` from the engine

    def __init__(
        self, result: Result, fail_reason: FailReason | None = None, refuse_reason: RefuseReason | None = None, status: int = 200,
        queue_s: float = 0.0, ttft_s: float | None = None, tpot_s: float | None = None, itl_p95_s: float | None = None,
        e2e_s: float | None = None, prompt_tokens: int = 0, cached_tokens: int = 0, output_tokens: int = 0, tokens_estimated: bool = True,
    ) -> None:  # fmt: skip
        self.result = result
        self.fail_reason = fail_reason
        self.refuse_reason = refuse_reason
        self.status = status
        self.queue_s = queue_s
        self.ttft_s = ttft_s
        self.tpot_s = tpot_s
        self.itl_p95_s = itl_p95_s
        self.e2e_s = e2e_s
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = cached_tokens
        self.output_tokens = output_tokens
        self.tokens_estimated = tokens_estimated


class EngineKind(StrEnum):
    """How an instance speaks; `openai` is any server of the protocol."""

    OPENAI = "openai"
    VLLM = "vllm"
    SGLANG = "sglang"
    TRANSFORMERS = "transformers"
    DYNAMO = "dynamo"
    REMOTE = "remote"  # an API with no batch of its own: no slots to protect but its quota


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """One engine address as configured. Made by config (or by a simulation's fleet)."""

    instance_id: str  # unique, stable over reloads: "pool/host:port"
    pool: str
    tier: str
    tier_rank: int  # 0 = premium (dearest, fastest) ..
    model: str
    gpu: str
    usd_per_hour: float
    limit_start: int  # in-flight limit at start: the tier's batch bound
    limit_min: int = 1
    limit_max: int = 256  # the controller may not go beyond
    limit_pinned: bool = False
    batch_window_s: float = 0.0  # cost tiers: how long a start may be held back to form a batch, never past slack
    batch_min: int = 1  # below this many in flight the window applies
    kv_tokens: int = 0  # KV-cache capacity in tokens, 0 = unknown
    engine: EngineKind = EngineKind.OPENAI
    engine_config: str = ""  # e.g. "w8": part of the predictor's key
    url: str = ""
    served_model: str = ""  # what the engine calls the model, "" = the same
    speed_per_s: float = 1.0  # typical requests a second of one alone, from facts: for policies that weigh by it

    @property
    def predictor_key(self) -> str:
        """Instances with the same key are expected to perform alike."""
        kind = "remote" if self.engine is EngineKind.REMOTE else self.gpu
        return f"{kind}|{self.model}|{self.engine_config}"


UNSHARED: Final = 1 << 30
"""The slots of a lease when nobody else uses the instances: the limit alone counts."""


@dataclass(frozen=True, slots=True)
class Lease:
    """How many of an instance's slots this worker may use. Made by state/slots; without one the whole limit is its own."""

    instance_id: str
    slots: int
    limit: int = 0  # the limit other workers have found for it, where this one has nothing running to judge by; 0 = its own stands
    spare: int = 0  # slots that nobody holds: one of them is only a question away


# ---- actions: what the core wants done. Plain classes, one `kind` check by type.


@dataclass(slots=True, init=False)
class Start:
    """Send this request to that instance now."""

    placement: Placement

    def __init__(self, placement: Placement) -> None:
        self.placement = placement


@dataclass(slots=True)
class Refuse:
    """Answer with an honest no. `retry_after_s`: the predicted time until it would fit; 0 with `hopeless`."""

    ticket: Ticket
    reason: RefuseReason
    retry_after_s: float = 1.0
    looser_class: str = ""  # a class that would be accepted now, "" = none
    hopeless: bool = False  # retrying is pointless: x-should-retry: false


@dataclass(slots=True)
class Degrade:
    """The ticket goes on under a looser class, as its caller accepted. Comes before its Start, in the same or a later list."""

    ticket: Ticket
    tag: Tag


@dataclass(slots=True)
class Cancel:
    """Stop this placement: its upstream connection is to be closed. The slot is already given back."""

    placement: Placement
    reason: FailReason


Action = Start | Refuse | Degrade | Cancel


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of waiting work, per (model, class)."""

    max_requests: int = 2000
    max_bytes: int = 256 * 1024 * 1024
    ttl_s: float = 0.0  # 0 = the E2E target x 2


@dataclass(frozen=True, slots=True)
class ClassPolicy:
    """How the core treats one experience class. Made by config from the catalogue."""

    name: str
    rank: int
    ceiling_ratio: float  # may use an instance only while its saturation is below this: 1.0 instant .. 0.6 batch
    tiers: tuple[str, ...]
    limits: QueueLimits = field(default_factory=QueueLimits)
    refusable: bool = True  # deferred and batch are refused for queue limits and TTL only, never for load
    targets: SloTargets | None = None  # the class's own tolerances, applied when a request is degraded into it
    worth: float = 1.0  # times what delaying its answers costs, others pay where those stream most (core/reserve)


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """Everything of the configuration that decisions depend on. Made by config; replaced whole at a reload."""

    classes: tuple[ClassPolicy, ...]  # by rank, tightest first
    mode: Mode = Mode.ENFORCE
    max_tries: int = 2  # placements of one request before it fails; the last candidate is never cut
    tenant_weights: dict[str, float] = field(default_factory=dict)  # 1.0 when absent
    trail_size: int = 2000  # decisions kept for `explain`
