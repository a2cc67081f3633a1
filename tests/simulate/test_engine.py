"""The simulated engine on a real socket: every endpoint, lengths, faults to order, and time kept by the step model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from gateway.simulate.engine import Engine, serve
from gateway.simulate.machine import MachineFacts
from tests.conftest import HANG_S

FAST = MachineFacts(0.3, 0, 0, 0.01, overhead_s=0.0, jitter_ratio=0.0, prefix_cache=True)
HELLO = {"model": "m", "messages": [{"role": "user", "content": "Say hello."}]}
PATHS = {
    "/v1/chat/completions": HELLO,
    "/v1/completions": {"model": "m", "prompt": "Once"},
    "/v1/responses": {"model": "m", "input": "Say hello."},
    "/v1/messages": HELLO,
}


@asynccontextmanager
async def running(facts: MachineFacts = FAST, **more: Any) -> AsyncIterator[tuple[Engine, httpx.AsyncClient]]:
    engine = Engine("m", facts, **more)
    server = await serve(engine, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        yield engine, client
    server.close()


def engine_test(test: Callable[..., Awaitable[None]], **more: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(HANG_S), running(**more) as (engine, client):
            await test(engine, client)

    asyncio.run(run())


async def events(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of a stream; "[DONE]" as that text."""
    told = []
    async with client.stream("POST", path, json=body | {"stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                told.append("[DONE]" if line == "data: [DONE]" else json.loads(line[6:]))
    return told


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.001)


def test_a_chat_stream_opens_with_the_role_tells_each_token_and_ends_with_done() -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        told = await events(client, "/v1/chat/completions", HELLO | {"max_tokens": 7})
        assert told[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [bool(e["choices"][0]["delta"].get("content")) for e in told[1:8]] == [True] * 7
        assert told[8]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
        assert told[9:] == ["[DONE]"]

    engine_test(test)


def test_usage_comes_as_a_chunk_without_choices_and_only_when_asked_for() -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        for path in ("/v1/chat/completions", "/v1/completions"):
            asked = PATHS[path] | {"max_tokens": 5}
            plain = await events(client, path, asked)
            assert not [e for e in plain if e != "[DONE]" and e.get("usage")]
            told = await events(client, path, asked | {"stream_options": {"include_usage": True}})
            assert told[-2]["choices"] == []
            assert told[-2]["usage"]["completion_tokens"] == 5
            assert told[-2]["usage"]["prompt_tokens"] > 0

    engine_test(test)


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_answer_says_as_many_tokens_as_its_stream_would(path: str) -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
        whole = (await client.post(path, json=PATHS[path] | {limit: 6})).json()
        usage = whole["usage"]
        assert usage.get("completion_tokens", usage.get("output_tokens")) == 6
        assert len(await events(client, path, PATHS[path] | {limit: 6})) >= 7

    engine_test(test)


def test_the_same_request_gets_an_answer_of_the_same_length_and_others_get_others() -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        async def tokens(text: str) -> int:
            body = {"model": "m", "messages": [{"role": "user", "content": text}]}
            return (await client.post("/v1/chat/completions", json=body)).json()["usage"]["completion_tokens"]

        first = [await tokens(f"question {i}") for i in range(6)]
        assert [await tokens(f"question {i}") for i in range(6)] == first
        assert len(set(first)) > 3

    engine_test(test, facts=MachineFacts(0.01, 0, 0, 0, overhead_s=0.0, jitter_ratio=0.0))


@pytest.mark.parametrize("how", ["header", "metadata"])
def test_a_load_test_says_how_long_an_answer_is_to_be_without_max_tokens(how: str) -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        headers = {"x-simulated-output-tokens": "9"} if how == "header" else {}
        metadata = {"metadata": {"simulated_output_tokens": "9"}} if how == "metadata" else {}
        answer = await client.post("/v1/chat/completions", json=HELLO | metadata, headers=headers)
        assert answer.json()["usage"]["completion_tokens"] == 9
        assert answer.json()["choices"][0]["finish_reason"] == "stop"

    engine_test(test)


def test_every_choice_is_a_sequence_of_its_own() -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        told = await events(client, "/v1/chat/completions", HELLO | {"n": 3, "max_tokens": 4})
        given = [e["choices"][0]["index"] for e in told[:-1] if e["choices"][0]["delta"].get("content")]
        assert sorted(given) == [0] * 4 + [1] * 4 + [2] * 4
        assert engine.most_in_flight == 3
        refused = await client.post("/v1/chat/completions", json=HELLO | {"n": 1_000_000})
        assert refused.status_code == 400

    engine_test(test)


def test_a_required_tool_is_called_by_its_name_with_arguments_that_are_json() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]

    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        asked = HELLO | {"tools": tools, "tool_choice": "required", "max_tokens": 5}
        told = await events(client, "/v1/chat/completions", asked)
        calls = [e["choices"][0]["delta"]["tool_calls"][0]["function"] for e in told[1:-2]]
        assert calls[0]["name"] == "weather"
        assert json.loads("".join(call["arguments"] for call in calls))["said"]
        assert told[-2]["choices"][0]["finish_reason"] == "tool_calls"
        [choice] = (await client.post("/v1/chat/completions", json=asked)).json()["choices"]
        assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])["said"]

    engine_test(test)


def test_the_official_client_reads_streams_responses_and_embeddings() -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        async with AsyncOpenAI(base_url=f"http://127.0.0.1:{client.base_url.port}/v1", api_key="none") as openai:
            stream = await openai.chat.completions.create(**HELLO, max_tokens=5, stream=True)  # type: ignore[call-overload]
            assert len([c async for c in stream if c.choices and c.choices[0].delta.content]) == 5
            response = await openai.responses.create(model="m", input="Say hello.", max_output_tokens=5)
            assert response.usage is not None
            assert response.usage.output_tokens == 5
            embedded = await openai.embeddings.create(model="m", input=["a", "b"])
            assert [len(row.embedding) for row in embedded.data] == [384, 384]
            assert [model.id async for model in openai.models.list()] == ["m"]

    engine_test(test)


def test_a_client_that_leaves_gives_its_place_back() -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/v1/chat/completions", json=HELLO | {"max_tokens": 100_000, "stream": True}) as answer:
            assert answer.status_code == 200
            await until(lambda: engine.machine.decoding == 1)
        await until(lambda: engine.machine.in_flight == 0)
        assert engine.cancelled == 1
        assert engine.finished == 0

    engine_test(test)


def test_requests_sent_behind_one_another_are_answered_in_order() -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        body = json.dumps(HELLO | {"max_tokens": 3}).encode()
        one = b"POST /v1/chat/completions HTTP/1.1\r\nhost: e\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(one + one + b"GET /version HTTP/1.1\r\nhost: e\r\n\r\n")
        told = await reader.readuntil(b'{"version":"simulated"}')
        assert told.count(b"HTTP/1.1 200 OK") == 3
        assert told.count(b'"completion_tokens":3') == 2
        writer.close()

    engine_test(test)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"model": "other", "messages": []}', 404),
        (b'{"model": "m"}', 400),
        (b"[" * 100_000, 400),
        (json.dumps({"model": "m", "messages": ["x" * 2000]}).encode(), 400),
    ],
    ids=["cut off", "no object", "unknown model", "no messages", "deep", "too long for the model"],
)
def test_what_it_cannot_serve_it_refuses_as_an_engine_would(body: bytes, status: int) -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/chat/completions", content=body)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]

    engine_test(test, max_model_tokens=256)


def test_a_fault_is_ordered_while_it_runs_and_taken_back() -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        assert (await client.post("/fault", json={"error_ratio": 1})).json()["error_ratio"] == 1.0
        assert (await client.post("/v1/chat/completions", json=HELLO)).status_code == 500
        await client.post("/fault", json={"error_ratio": 0})
        assert (await client.post("/v1/chat/completions", json=HELLO | {"max_tokens": 2})).status_code == 200
        unknown = await client.post("/fault", json={"melt": 1})
        assert unknown.status_code == 400
        assert "stall_after_tokens" in unknown.json()["error"]["message"]

    engine_test(test)


def test_a_stalled_stream_keeps_its_connection_and_says_no_more() -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        await client.post("/fault", json={"stall_after_tokens": 3})
        async with client.stream("POST", "/v1/chat/completions", json=HELLO | {"max_tokens": 50, "stream": True}) as answer:
            lines = answer.aiter_lines()
            tokens = 0
            while tokens < 3:
                tokens += '"content":" ' in await anext(lines)
            await until(lambda: engine.machine.in_flight == 0)
            rest = asyncio.ensure_future(anext(lines))
            await asyncio.wait([rest], timeout=0.05)
            assert not rest.done() or rest.result() == ""
            rest.cancel()

    engine_test(test)


@pytest.mark.parametrize("fault", ["die_after_tokens", "malformed_after_tokens"])
def test_a_stream_that_is_cut_or_garbled_is_no_proper_answer(fault: str) -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        await client.post("/fault", json={fault: 3})
        with pytest.raises(httpx.TransportError):
            await events(client, "/v1/chat/completions", HELLO | {"max_tokens": 50})

    engine_test(test)


def test_metrics_are_in_the_words_of_vllm() -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        await client.post("/v1/chat/completions", json=HELLO | {"max_tokens": 4})
        text = (await client.get("/metrics")).text
        for line in (
            'vllm:num_requests_running{model_name="m",engine="0"} 0.0',
            'vllm:num_requests_waiting{model_name="m",engine="0"} 0.0',
            'vllm:kv_cache_usage_perc{model_name="m",engine="0"} 0.0',
            'vllm:generation_tokens_total{model_name="m",engine="0"} 4.0',
            'vllm:request_success_total{model_name="m",engine="0",finished_reason="stop"} 1.0',
            'vllm:time_to_first_token_seconds_count{model_name="m",engine="0"} 1.0',
            'vllm:inter_token_latency_seconds_count{model_name="m",engine="0"} 3.0',
            'vllm:e2e_request_latency_seconds_bucket{model_name="m",engine="0",le="+Inf"} 1.0',
        ):
            assert line in text

    engine_test(test)


def test_a_prompt_seen_before_is_read_from_the_prefix_cache() -> None:
    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        long = {"model": "m", "messages": [{"role": "user", "content": "word " * 4000}], "max_tokens": 2}
        first = (await client.post("/v1/chat/completions", json=long)).json()["usage"]
        again = (await client.post("/v1/chat/completions", json=long)).json()["usage"]
        assert first["prompt_tokens_details"]["cached_tokens"] == 0
        assert again["prompt_tokens_details"]["cached_tokens"] > 0.8 * again["prompt_tokens"]

    engine_test(test)


def test_its_clock_is_the_step_models_however_late_timers_are() -> None:
    facts = MachineFacts(2.0, 0.1, 0, 0, overhead_s=0.0, jitter_ratio=0.0)

    async def test(engine: Engine, client: httpx.AsyncClient) -> None:
        asked = [client.post("/v1/chat/completions", json=HELLO | {"max_tokens": 40}) for _ in range(8)]
        answers = await asyncio.gather(*asked)
        assert [a.json()["usage"]["completion_tokens"] for a in answers] == [40] * 8
        machine = engine.machine
        assert facts.step_s(1, 0) * machine.steps <= machine.busy_s <= facts.step_s(8, 0) * machine.steps

    engine_test(test, facts=facts)
