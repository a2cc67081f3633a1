"""What gateway.yaml may say: every key, its default and its meaning. One field is one key; docs/config.md is made from this file.

An attribute ends in `_s` where the YAML writes a duration (`connect: 500ms` is `connect_s`). Whether names lead anywhere is checked in
config/load.py, since that needs the whole file; how mistakes are told is config/mistakes.py's business.
Defaults of limits and timeouts come from what peers ship and what they suffered from; each says what it protects.
"""

from __future__ import annotations

from dataclasses import field
from enum import StrEnum
from typing import Annotated

from gateway.config.catalog import E2e
from gateway.config.quantities import (
    SOME,
    Bytes,
    ConfigModel,
    Count,
    Factor,
    Flag,
    Judged,
    Money,
    Name,
    Port,
    PositiveCount,
    PositiveSeconds,
    Ratio,
    Rule,
    Seconds,
    Secret,
    Text,
)
from gateway.config.state_url import parse_state_url
from gateway.core.flow import EngineKind, Mode

KIB, MIB = 1024, 1024**2


class Listen(ConfigModel):
    """Where applications connect."""

    host: Text = "127.0.0.1"
    """address to bind; `0.0.0.0` is every interface"""
    port: Port = 8080
    """port to bind; 0 picks a free one"""


class Admin(ConfigModel):
    """Where operators look and steer: metrics, explain, reload."""

    host: Text = "127.0.0.1"
    """address to bind; keep it away from applications"""
    port: Port = 8081
    """port to bind; 0 picks a free one"""
    key: Secret | None = None
    """bearer key for `/admin/*`; needed as soon as the address is not loopback"""


class Alias(ConfigModel):
    """Another name for a model, which may also say what its requests are."""

    use_case: Name | None = None
    """requests under this name are this use case"""
    experience_class: Name | None = None
    """requests under this name are of this class"""


class Model(ConfigModel):
    """A model that applications may ask for."""

    name: Name
    """what applications write as `model`"""
    aliases: dict[Name, Alias] = field(default_factory=dict)
    """other names for it; `{}` after a name when it is nothing but a name"""
    fallbacks: tuple[Name, ...] = ()
    """models to use instead when no instance of this one can serve, in this order"""


class Limit(ConfigModel):
    """Requests in flight on one instance. The controller moves the limit between `min` and `max`."""

    start: PositiveCount | None = None
    """the limit to begin with; the tier's when left out"""
    min: PositiveCount = 1
    """never below"""
    max: PositiveCount = 256
    """never above"""
    pinned: Flag = False
    """true: stays at `start`"""


class Upstream(ConfigModel):
    """How to reach a pool's engines when plain HTTP is not enough."""

    api_key: Secret | None = None
    """sent to the engines as a bearer key, instead of the application's own"""
    ca_file: Text = ""
    """certificates to trust for `https://` engines; the system's when left out"""
    cert_file: Text = ""
    """the gateway's own certificate, where engines ask for one"""
    key_file: Text = ""
    """the private key of `cert_file`"""
    verify: Flag = True
    """false: accept any certificate"""


class Pool(ConfigModel):
    """Instances of one model on one kind of GPU."""

    tier: Name
    """premium, balanced or cost"""
    gpu: Annotated[str, Rule(max_length=64)] = ""
    """such as H100 or A10; predictions begin from what is known of it, and are learnt from nothing when left out"""
    model: Name
    """one of `models`"""
    served_model: Text = ""
    """what the engines call the model; the same when left out"""
    engine: EngineKind = EngineKind.OPENAI
    """what the engines are: vllm, sglang, transformers, dynamo, remote (somebody's API) or openai (anything of the protocol)"""
    engine_config: Annotated[str, Rule(max_length=64)] = ""
    """a word for how they are set up, such as w8 or tp2; pools with the same gpu, model and word are expected to perform alike"""
    usd_per_hour: Money | None = None
    """price of one instance; the list price of `gpu` when left out, 0 when that is unknown"""
    instances: Annotated[tuple[Text, ...], SOME]
    """base addresses of the engines, without `/v1`"""
    limit: Limit = Limit()
    """requests in flight on one instance"""
    batch_window_s: Annotated[Seconds, Rule(le=10.0)] | None = None
    """how long a start may be held back so that several start together, never past what a promise allows; the tier's when left out"""
    batch_min: PositiveCount | None = None
    """at this many in flight nothing is held back; the tier's when left out"""
    kv_tokens: Count = 0
    """tokens that fit into one instance's KV cache; 0 when unknown"""
    upstream: Upstream = Upstream()
    """keys and certificates for the engines"""


class QuotaLimits(ConfigModel):
    """How much is allowed; what is left out is not limited."""

    requests_per_minute: PositiveCount | None = None
    """requests in any minute"""
    tokens_per_minute: PositiveCount | None = None
    """prompt and output tokens in any minute: by estimate when a request is taken, by what it came to when it is over"""
    concurrent: PositiveCount | None = None
    """requests at the same time, waiting ones included"""

    def limits_anything(self) -> bool:
        """Is any of the three there?"""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None or self.concurrent is not None


class Quota(QuotaLimits):
    """What a key may use. 429 beyond, with the time after which it fits."""

    classes: dict[Name, QuotaLimits] = field(default_factory=dict)
    """limits for its requests of one class, which count beside those of the key"""


class Key(ConfigModel):
    """Who may use the gateway. `slo-gateway keys new` makes one."""

    id: Name
    """how logs and the admin pages name it"""
    sha256: Annotated[str, Rule(pattern=r"^[0-9a-f]{64}$")] | None = None
    """the key's SHA-256, so that the file holds no secret"""
    key: Secret | None = None
    """the key itself, as `${ENV}` or `file:PATH`; exactly one of `key` and `sha256`"""
    tenant: Name | None = None
    """who shares and is shared with: queues are fair between tenants; the id when left out"""
    classes: tuple[Name, ...] = ()
    """classes it may use; all when left out. A looser class than these is always allowed"""
    use_case: Name | None = None
    """what its requests are when they do not say"""
    experience_class: Name | None = None
    """the class of its requests when they do not say"""
    degrade: Flag = False
    """true: its requests rather take a looser class than a refusal"""
    quota: Quota | None = None
    """how much it may use; without limit when left out"""
    weight: Factor = 1.0
    """its tenant's share of a contended queue, against 1 for others"""


class TargetsChange(ConfigModel):
    """New targets; those left out stay as they are."""

    ttft_s: PositiveSeconds | None = None
    """last byte of the request read to first content token sent, p95"""
    itl_s: PositiveSeconds | None = None
    """gap between two tokens, p95"""
    e2e: E2e | None = None
    """last byte of the request read to last byte sent, p95: a duration, or `{target, limit}`"""


class UseCaseChange(ConfigModel):
    """A change to a use case of the catalogue, or a new one (which needs `profile`, `experience_class` and all three targets)."""

    title: Text | None = None
    """name for people"""
    profile: Name | None = None
    """how long its prompts and answers are"""
    experience_class: Name | None = None
    """the class it gets"""
    also: Name | None = None
    """a second class that a request may ask for"""
    targets: TargetsChange | None = None
    """its own promise"""


class QueueChange(ConfigModel):
    """New bounds of waiting work; those left out stay as they are."""

    max_requests: PositiveCount | None = None
    """requests that may wait, for each model"""
    max_bytes: Bytes | None = None
    """bytes of request bodies that may wait, for each model"""
    ttl_s: Seconds | None = None
    """how long a request may wait at most; `0` is twice its E2E target"""


class ClassChange(ConfigModel):
    """A change to an experience class of the catalogue."""

    tolerance: TargetsChange | None = None
    """the class's own promise"""
    ceiling: Ratio | None = None
    """its work starts on an instance only while that is less saturated than this"""
    worth: Factor | None = None
    """how many times over others pay for delaying its answers and those who come for one, where they stream most; above 1 keeps up to
    a third of alike instances for it while it is busy"""
    tiers: Annotated[tuple[Name, ...], SOME] | None = None
    """preferred first"""
    refusable: Flag | None = None
    """false: it waits rather than being told to come back"""
    queue: QueueChange | None = None
    """bounds of waiting work"""


class Costs(ConfigModel):
    """What it costs to take a request for another use case than it is, on any scale. The verdict has the least expected cost."""

    wrong: Money = 1.0
    """of any mistake"""
    looser: Money = 0.5
    """and for each class too loose, which users feel"""
    tighter: Money = 0.1
    """and for each class too tight, which only costs money"""
    pairs: dict[Name, dict[Name, Money]] = field(default_factory=dict)
    """costs of your own: `{code_completion: {research_legal: 10}}` is what it costs to treat the first as the second"""


class Classify(ConfigModel):
    """Whose use case a request is when it does not say."""

    learned: Flag = True
    """false: only what the request says itself and its shape decide"""
    model: Text = ""
    """a model that `slo-gateway train` made, relative to this file; the one that comes with the gateway when left out"""
    shadow: Text = ""
    """another model, which is asked too but never obeyed; metrics tell where the two differ"""
    second_opinion: Flag = False
    """true: a sentence model reads some requests of each application afterwards, for those that follow; needs the `embeddings` extra"""
    remembered: PositiveCount = 20_000
    """applications whose use case is remembered, the ones met last"""
    confidence_floor: Ratio = 0.25
    """below this the learned answer is not trusted and the fallback stands"""
    fallback: Name = "chatbot"
    """the use case when nothing else decides"""
    costs: Costs = Costs()
    """what a mistake costs"""


class Limits(ConfigModel):
    """What a client may send at most. Each has a metric that counts how often it was hit."""

    request_line_bytes: Bytes = 8 * KIB
    """request line; 414 beyond"""
    header_bytes: Bytes = 16 * KIB
    """all header fields together; 431 beyond"""
    header_count: PositiveCount = 100
    """header fields; 431 beyond"""
    body_bytes: Bytes = 8 * MIB
    """request body; 413 beyond, before it is read"""
    json_depth: Annotated[int, Rule(strict=True, ge=4, le=512)] = 64
    """nesting of the body's JSON; 400 beyond"""
    model_chars: PositiveCount = 256
    """characters of a model's name or a key; 400 beyond"""
    choices: PositiveCount = 16
    """`n` of one request; 400 beyond"""
    connections: Count = 0
    """open client connections, an equal share for each worker; 0 is 80 % of what a process may open"""
    connections_per_ip: PositiveCount = 256
    """open connections of one address, at one worker"""
    connections_per_key: PositiveCount = 1024
    """requests of one key at the same time, at one worker"""
    write_buffer_soft_bytes: Bytes = 64 * KIB
    """unread answer of one client at which the engine is no longer read"""
    write_buffer_hard_bytes: Bytes = 1 * MIB
    """unread answer of one client at which the request is given up"""
    sse_line_bytes: Bytes = 1 * MIB
    """one line of an engine's stream; beyond it the engine is taken for broken"""


class Timeouts(ConfigModel):
    """How long to wait for what."""

    header_s: PositiveSeconds = 5.0
    """from a connection's first byte to the end of its header; 408 beyond"""
    body_base_s: PositiveSeconds = 10.0
    """for a request body, however small"""
    body_per_mib_s: Seconds = 1.0
    """and this much more for each MiB of it"""
    keep_alive_s: PositiveSeconds = 75.0
    """an idle client connection is closed after this"""
    connect_s: PositiveSeconds = 0.5
    """to reach an engine; then the next instance"""
    probe_s: PositiveSeconds = 0.8
    """for an engine to say how it is, which it is asked every second; twice in a row longer, and it is left out until it answers"""
    first_token_factor: Factor = 3.0
    """a first token is overdue after this many times its target"""
    first_token_min_s: PositiveSeconds = 10.0
    """but never sooner than this"""
    stall_factor: Factor = 20.0
    """a stream has stalled after this many times its ITL target without a token"""
    stall_min_s: PositiveSeconds = 5.0
    """but never sooner than this"""
    request_factor: Factor = 2.0
    """a request is given up after this many times its E2E target"""
    head_hold_s: PositiveSeconds = 15.0
    """without a first token, the answer's head and a comment are sent after this, so that proxies in between do not give up"""
    upstream_idle_s: PositiveSeconds = 3.0
    """an idle engine connection is closed after this: sooner than engines do"""
    drain_s: Seconds = 95.0
    """after SIGTERM, running streams may go on this long"""
    drain_grace_s: Seconds = 3.0
    """after SIGTERM, new requests are still taken this long, until load balancers have noticed"""
    slow_reader_s: PositiveSeconds = 30.0
    """a client that reads nothing of a full buffer for this long is given up"""


class Telemetry(ConfigModel):
    """What is written down. Prompts and answers never are."""

    request_log: Text = ""
    """file for one JSON line a request, which the simulator can replay; none when left out"""
    request_log_max_bytes: Bytes = 100 * MIB
    """at this size the file is moved to `.1` and begun anew"""
    sample_ratio: Ratio = 0.01
    """share of requests that get a span; those that miss their SLO always do"""


class Coalesce(ConfigModel):
    """Reading loose streams a little less often, which saves the gateway half their CPU."""

    enabled: Flag = True
    """false: every chunk is passed on as it comes"""
    tick_s: Annotated[PositiveSeconds, Rule(le=0.1)] = 0.03
    """the longest a chunk may wait; never the first token, never a stream whose gaps near its target"""
    classes: tuple[Name, ...] = ("deferred", "batch")
    """classes whose streams are read this way"""


class StateLost(StrEnum):
    """What holds when shared state cannot be reached."""

    OPEN = "open"
    CLOSED = "closed"


def _state_url(url: str) -> None:
    if url:
        parse_state_url(url)


class State(ConfigModel):
    """What several workers and replicas share: in-flight limits, what users got, quotas, what was learnt."""

    url: Annotated[Text, Judged(_state_url)] = ""
    """Redis or Valkey, such as `redis://HOST:PORT` (docs/state.md has Sentinels, Clusters and TLS); none: one worker keeps it to itself,
    several share a server that is started for them"""
    deployment: Annotated[str, Rule(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "default"
    """gateways with the same word share; others on the same server are not touched"""
    password: Secret | None = None
    """of the server, or of the user in `url`"""
    timeout_s: Annotated[Seconds, Rule(ge=0.01, le=5.0)] = 0.1
    """for one call, connecting included; there is no second try, and no request ever waits for it"""
    lost: StateLost = StateLost.OPEN
    """when it cannot be reached for longer than leases stand: `open` goes on with a fixed share of each limit, `closed` starts nothing"""
    ca_file: Text = ""
    """certificates to trust; the system's when left out"""
    cert_file: Text = ""
    """the gateway's own certificate, where the server asks for one"""
    key_file: Text = ""
    """the private key of `cert_file`"""
    verify: Flag = True
    """false: accept any certificate"""
    learnt_file: Text = ""
    """file that keeps what was learnt over restarts where there is no `url` to keep it; none when left out"""


class Settings(ConfigModel):
    """Everything in gateway.yaml."""

    mode: Mode = Mode.ENFORCE
    """`observe` classifies, places and measures, but never holds back or refuses: how to start"""
    policy: Annotated[str, Rule(pattern=r"^[a-z][a-z0-9_]*$")] = "best_value"
    """the scheduling policy: the name of a file in gateway/policies"""
    workers: Annotated[int, Rule(strict=True, ge=1, le=64)] = 1
    """processes that serve, on one port and as one gateway (docs/workers.md); a core each is enough"""
    listen: Listen = Listen()
    """where applications connect"""
    admin: Admin = Admin()
    """where operators look and steer"""
    models: Annotated[tuple[Model, ...], SOME]
    """what applications may ask for"""
    pools: Annotated[dict[Name, Pool], SOME]
    """the GPUs that serve it"""
    keys: tuple[Key, ...] = ()
    """who may use the gateway; everybody when left out"""
    catalog: Text = ""
    """a catalogue of your own, relative to this file; the one that comes with the gateway when left out"""
    use_cases: dict[Name, UseCaseChange] = field(default_factory=dict)
    """changes to use cases of the catalogue, and new ones"""
    classes: dict[Name, ClassChange] = field(default_factory=dict)
    """changes to experience classes of the catalogue"""
    classify: Classify = Classify()
    """whose use case a request is when it does not say"""
    limits: Limits = Limits()
    """what a client may send at most"""
    timeouts: Timeouts = Timeouts()
    """how long to wait for what"""
    telemetry: Telemetry = Telemetry()
    """what is written down"""
    coalesce: Coalesce = Coalesce()
    """reading loose streams a little less often"""
    state: State = State()
    """what several workers and replicas share"""
    allow_addresses: tuple[Text, ...] = ()
    """engine hosts that are otherwise refused: link-local and cloud metadata addresses"""

    def model_of(self, name: str) -> Model | None:
        """The model that an application means by a name or an alias; None when nobody does."""
        return next((model for model in self.models if model.name == name or name in model.aliases), None)
