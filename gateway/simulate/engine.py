"""An OpenAI server that takes the time a GPU would: the step model of machine.py in real time, for demos, tests and load tests.

It stands in for a GPU, never for the gateway, and nothing in the gateway knows of it. Steps happen on a clock of their own, so that a
late timer delays one token and not all that follow. What it says is a row of words; how much, the request decides.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import re
import time
from random import Random
from statistics import NormalDist
from typing import Any, cast
from zlib import crc32

import msgspec

from gateway.measure.histogram import Edges, Histogram
from gateway.openai.framing import LAST_CHUNK, ChunkedBody, FramingError, Head, chunk, find_head, request_head
from gateway.simulate.machine import Machine, MachineFacts, Sequence
from gateway.simulate.wording import Wording, wording_of

MAX_BODY_BYTES = 32 * 1024 * 1024
CHARS_PER_TOKEN = 4
OUTPUT_MEDIAN, OUTPUT_SIGMA = 180.0, 0.8
# What a request may say about its own answer's length, so that a load test can replay a trace without telling a gateway in between:
# a header, or a key of the body's `metadata`, which gateways pass on.
OUTPUT_HEADER = b"x-simulated-output-tokens"
OUTPUT_KEY = "simulated_output_tokens"

_json = msgspec.json.Encoder().encode
_value = msgspec.json.Decoder().decode
_NORMAL = NormalDist()
# vLLM's buckets.
_TTFT_EDGES = Edges((0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560))
_ITL_EDGES = Edges((0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80))
_E2E_EDGES = Edges((0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680))


class Faults:
    """What is to go wrong; changed by POST /fault while it runs."""

    def __init__(self) -> None:
        self.slow_ratio = 1.0  # every step takes so many times longer
        self.stall_after_tokens = 0  # streams stop there, the connection stays
        self.die_after_tokens = 0  # the connection is cut there
        self.error_ratio = 0.0  # share of requests answered 500
        self.malformed_after_tokens = 0  # bytes that are no event
        self.silent = False  # takes requests and answers nothing

    def change(self, said: dict[str, Any]) -> None:
        """ValueError for a fault that does not exist."""
        for name, value in said.items():
            if name not in vars(self):
                raise ValueError(f"no fault {name!r}; there are {', '.join(vars(self))}")
            setattr(self, name, type(getattr(self, name))(value))


class Engine:
    """One engine: a machine and its clock."""

    def __init__(self, model: str, facts: MachineFacts, seed: int = 0, max_model_tokens: int = 131_072) -> None:
        self.model = model
        self.max_model_tokens = max_model_tokens
        self.facts = facts
        self.machine = Machine(facts, Random(seed), keep_gaps=False)  # noqa: S311
        self.faults = Faults()
        self.started_unix_s = time.time()
        self.finished = 0
        self.cancelled = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.most_in_flight = 0
        self.ttft = Histogram(_TTFT_EDGES)
        self.itl = Histogram(_ITL_EDGES)
        self.e2e = Histogram(_E2E_EDGES)
        self.cached_tokens = 0
        self.connections: set[EngineConnection] = set()
        self._loop = asyncio.get_running_loop()
        self._last_step_at_s = 0.0  # 0 = it was idle
        self._slow_ratio = 1.0

    def submit(self, sequence: Sequence) -> None:
        """A request is read: the next step sees it."""
        now_s = time.monotonic()
        machine = self.machine
        idle = math.isinf(machine.next_at_s)
        machine.submit(sequence, now_s)
        self.most_in_flight = max(self.most_in_flight, machine.in_flight)
        if idle:
            machine.run(now_s)
            machine.plan(now_s, 1)
            self._schedule()

    def _schedule(self) -> None:
        at_s = self.machine.next_at_s
        if math.isinf(at_s):
            self._last_step_at_s = 0.0
        else:
            self._loop.call_later(max(at_s - time.monotonic(), 0.0), self._step)

    def _step(self) -> None:
        machine = self.machine
        now_s = time.monotonic()
        at_s = machine.next_at_s
        if now_s < at_s - 0.0008:
            self._schedule()  # timers count in whole milliseconds, and may be early
            return
        if now_s - at_s > 1.0:
            at_s = now_s  # the process was stopped: what was missed is not made up for
        if self.faults.slow_ratio != self._slow_ratio:
            self._slow_ratio = self.faults.slow_ratio
            machine.change(self.facts.slower(1.0 / self._slow_ratio), now_s)
        first, done = machine.run(at_s)
        for sequence in itertools.chain(machine.residents(), done):
            sequence.owner.token(sequence)
        self.output_tokens = machine.emitted_tokens
        if self._last_step_at_s and machine.decoding + len(done) > len(first):
            self.itl.record(now_s - self._last_step_at_s, machine.decoding + len(done) - len(first))
        self._last_step_at_s = now_s
        for sequence in first:
            self.cached_tokens += sequence.cached_tokens
            self.prompt_tokens += sequence.prompt_tokens
            self.ttft.record(now_s - sequence.owner.arrived_at_s)
        for sequence in done:
            self.finished += 1
            self.e2e.record(now_s - sequence.owner.arrived_at_s)
            sequence.owner.over(sequence)
        machine.plan(at_s, 1)
        self._schedule()

    def metrics(self) -> str:
        """In vLLM's names."""
        machine, model = self.machine, _json(self.model).decode()
        labels = f'model_name={model},engine="0"'
        lines = []
        for name, kind, value in (
            ("num_requests_running", "gauge", len(machine.reading) + machine.decoding),
            ("num_requests_waiting", "gauge", len(machine.waiting)),
            ("kv_cache_usage_perc", "gauge", machine.kv_used_tokens / (self.facts.kv_tokens or 400_000)),
            ("prompt_tokens_total", "counter", self.prompt_tokens),
            ("generation_tokens_total", "counter", self.output_tokens),
            ("prefix_cache_queries_total", "counter", self.prompt_tokens),
            ("prefix_cache_hits_total", "counter", self.cached_tokens),
            ("num_preemptions_total", "counter", machine.preempted),
        ):
            lines.append(f"# TYPE vllm:{name} {kind}\nvllm:{name}{{{labels}}} {float(value)}\n")
        for reason, value in (("stop", self.finished), ("abort", self.cancelled)):
            lines.append(f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {float(value)}\n')
        for name, histogram in (
            ("time_to_first_token_seconds", self.ttft),
            ("inter_token_latency_seconds", self.itl),
            ("e2e_request_latency_seconds", self.e2e),
        ):
            lines.append(f"# TYPE vllm:{name} histogram\n")
            for edge_s in histogram.edges.values_s:
                lines.append(f'vllm:{name}_bucket{{{labels},le="{edge_s}"}} {float(histogram.within(edge_s))}\n')
            lines.append(f'vllm:{name}_bucket{{{labels},le="+Inf"}} {float(histogram.count)}\n')
            lines.append(f"vllm:{name}_sum{{{labels}}} {histogram.sum_s}\nvllm:{name}_count{{{labels}}} {float(histogram.count)}\n")
        return "".join(lines)


class Answer:
    """One request being answered. Owns its sequences, one per choice."""

    __slots__ = (
        "_ended",
        "_given",
        "_open",
        "_said",
        "arrived_at_s",
        "connection",
        "engine",
        "output_tokens",
        "sequences",
        "submitted",
        "wording",
    )

    def __init__(self, connection: EngineConnection, wording: Wording, prompt_tokens: int, output_tokens: int) -> None:
        self.connection = connection
        self.engine = connection.engine
        self.wording = wording
        self.arrived_at_s = time.monotonic()
        self.output_tokens = output_tokens
        self.sequences = [Sequence(self, prompt_tokens if not i else 1, output_tokens, wording.hashes) for i in range(wording.n)]
        self.submitted = False
        self._open = wording.n
        self._given = 0
        self._said: list[list[str]] = [[] for _ in range(wording.n)]
        self._ended = False

    def start(self) -> None:
        """Into the engine's queue."""
        if self.wording.stream:
            self.connection.begin_stream(self.wording.opening())
        if self.engine.facts.overhead_s:
            asyncio.get_running_loop().call_later(self.engine.facts.overhead_s, self._submit)
        else:
            self._submit()

    def _submit(self) -> None:
        if not self._ended:
            self.submitted = True
            for sequence in self.sequences:
                self.engine.submit(sequence)

    def token(self, sequence: Sequence) -> None:
        """A step has ended with a token for one of its choices."""
        if self._ended or sequence not in self.sequences:
            return
        index = self.sequences.index(sequence)
        word = self.wording.word(len(self._said[index]))
        self._said[index].append(word)
        self._given += 1
        faults = self.engine.faults
        if faults.die_after_tokens and self._given > faults.die_after_tokens:
            self.connection.die()
        elif faults.stall_after_tokens and self._given > faults.stall_after_tokens:
            return
        elif faults.malformed_after_tokens and self._given == faults.malformed_after_tokens:
            self.connection.write(b"zz\r\n{ this is no event\r\n")
        elif self.wording.stream:
            self.connection.event(self.wording.delta(index, word))

    def over(self, sequence: Sequence) -> None:
        """One of its choices is complete."""
        self._open -= 1
        if self._ended or (self.engine.faults.stall_after_tokens and self._given > self.engine.faults.stall_after_tokens):
            return
        if self.wording.stream:
            self.connection.event(self.wording.finish(self.sequences.index(sequence)))
        if self._open:
            return
        self._ended = True
        cached = self.sequences[0].cached_tokens
        if self.wording.stream:
            self.connection.end_stream(self.wording.closing(self._given, cached))
        else:
            self.connection.answer(200, self.wording.whole(["".join(words) for words in self._said], self._given, cached))

    def abandon(self) -> None:
        """The client is gone."""
        if not self._ended:
            self._ended = True
            if self.submitted:
                for sequence in self.sequences:
                    self.engine.machine.cancel(sequence, time.monotonic())
            self.engine.cancelled += 1


class EngineConnection(asyncio.Protocol):
    """A client of the engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._data = b""
        self._head: Head | None = None
        self._missing = 0
        self._parts: list[bytes] = []
        self._chunks: ChunkedBody | None = None
        self._answer: Answer | None = None
        self._taking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.engine.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.engine.connections.discard(self)
        if self._answer is not None:
            self._answer.abandon()
            self._answer = None

    def data_received(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data
        if self._answer is not None and len(self._data) > 65536:
            self.transport.abort()  # nobody sends so much before the answer
            return
        self._taking = True
        try:
            while self._data and self._answer is None and self._take():
                pass
        except FramingError as error:
            self._refuse(error.status, error.why)
            self.transport.close()
        finally:
            self._taking = False

    def _take(self) -> bool:
        """One request off the buffer; False when more has to come."""
        if self._head is None:
            end = find_head(self._data, 65536)
            if not end:
                return False
            self._head = request_head(self._data, end, max_fields=200, max_line_bytes=8192)
            self._data = self._data[end:]
            self._chunks = ChunkedBody() if self._head.length < 0 else None
            self._missing = max(self._head.length, 0)
            if self._missing > MAX_BODY_BYTES:
                raise FramingError(400, "too large")
        if self._chunks is not None:
            self._parts.append(self._chunks.feed(self._data))
            self._data = self._chunks.left
            if not self._chunks.done:
                return False
        else:
            part, self._data = self._data[: self._missing], self._data[self._missing :]
            self._missing -= len(part)
            self._parts.append(part)
            if self._missing:
                return False
        head, body = self._head, b"".join(self._parts)
        self._head, self._parts = None, []
        self._request(head, body)
        return True

    # ---- requests

    def _request(self, head: Head, body: bytes) -> None:
        path = head.target.partition(b"?")[0].decode()
        if head.method == b"GET":
            self._control(path)
        elif path == "/fault":
            try:
                self.engine.faults.change(_value(body))
                self.answer(200, _json(vars(self.engine.faults)))
            except (ValueError, TypeError, AttributeError, msgspec.DecodeError) as error:
                self._refuse(400, str(error))
        else:
            self._inference(path, head, body)

    def _control(self, path: str) -> None:
        engine = self.engine
        if path == "/health":
            self.answer(200, b"")
        elif path.startswith("/v1/models/") and path != f"/v1/models/{engine.model}":
            self._refuse(404, "the model does not exist")
        elif path.startswith("/v1/models"):
            card = {"id": engine.model, "object": "model", "created": int(engine.started_unix_s), "owned_by": "simulated"}
            card["max_model_len"] = self.engine.max_model_tokens
            self.answer(200, _json(card if path != "/v1/models" else {"object": "list", "data": [card]}))
        elif path == "/version":
            self.answer(200, b'{"version":"simulated"}')
        elif path == "/metrics":
            self.answer(200, engine.metrics().encode(), b"text/plain; version=0.0.4")
        elif path == "/state":
            told = {"in_flight": engine.machine.in_flight, "most_in_flight": engine.most_in_flight, "cancelled": engine.cancelled}
            told |= {"finished": engine.finished, "connections": len(engine.connections), "steps": engine.machine.steps}
            self.answer(200, _json(told | {"busy_s": engine.machine.busy_s}))
        else:
            self._refuse(404, "there is nothing at this path")

    def _inference(self, path: str, head: Head, body: bytes) -> None:
        engine = self.engine
        try:
            said = _value(body)
            wording = wording_of(path, said, engine.model)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            self._refuse(400, f"invalid request: {error}")
            return
        if wording is None:
            self._refuse(404, f"the model does not exist or nothing is at {path}" if path.startswith("/v1/") else "not found")
            return
        if wording.prompt_tokens > engine.max_model_tokens:
            self._refuse(400, f"the model takes {engine.max_model_tokens} tokens, the prompt has {wording.prompt_tokens}")
            return
        if engine.faults.error_ratio and engine.machine.chance.random() < engine.faults.error_ratio:
            self._refuse(500, "internal error")
            return
        if engine.faults.silent:
            return
        output_tokens = self._asked_tokens(head, said)
        if not output_tokens:
            share = (crc32(body) + 0.5) / 2**32
            output_tokens = max(round(OUTPUT_MEDIAN * math.exp(OUTPUT_SIGMA * _NORMAL.inv_cdf(share))), 1)
        if wording.most_tokens is not None:
            output_tokens = max(min(output_tokens, wording.most_tokens), 1)
        if not wording.generates:
            output_tokens = 1
        wording.hit_limit = wording.most_tokens is not None and output_tokens >= wording.most_tokens
        self._answer = Answer(self, wording, max(wording.prompt_bytes // CHARS_PER_TOKEN, 1), output_tokens)
        self._answer.start()

    @staticmethod
    def _asked_tokens(head: Head, said: dict[str, Any]) -> int:
        """How long the request wants its answer to be, beyond `max_tokens`; 0 when it does not say."""
        text: Any = head.fields.get(OUTPUT_HEADER)
        if text is None:
            metadata = said.get("metadata")
            text = metadata.get(OUTPUT_KEY) if isinstance(metadata, dict) else None
        try:
            return min(max(int(text), 0), 1_000_000) if text is not None else 0
        except (TypeError, ValueError):
            return 0

    # ---- answers

    def write(self, data: bytes) -> None:
        """Bytes as they are."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def answer(self, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
        """A whole answer."""
        self._answer = None
        head = b"HTTP/1.1 %d OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (status, content_type, len(body))
        self.write(head + body)
        self._next()

    def _next(self) -> None:
        if self._data and not self._taking:
            self.data_received(b"")

    def begin_stream(self, opening: bytes) -> None:
        """The head of a stream, and what comes before the first token."""
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        self.write(head + (chunk(opening) if opening else b""))

    def event(self, event: bytes) -> None:
        """One event."""
        if event:
            self.write(chunk(event))

    def end_stream(self, closing: bytes) -> None:
        """The end of a stream."""
        self._answer = None
        self.write((chunk(closing) if closing else b"") + LAST_CHUNK)
        self._next()

    def die(self) -> None:
        """Cut, as a process that crashed."""
        self.transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        clean = re.sub(r"[^ -~]", " ", message)[:200]
        self.answer(status, _json({"error": {"message": clean, "type": "BadRequestError", "param": None, "code": status}}))


async def serve(engine: Engine, host: str, port: int) -> asyncio.Server:
    """Listen. OSError says why it cannot."""
    return await asyncio.get_running_loop().create_server(lambda: EngineConnection(engine), host, port, backlog=4096)
