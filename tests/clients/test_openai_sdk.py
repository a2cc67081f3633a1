"""The official client, sync and async, against the gateway before simulated engines: an application changes its base_url, nothing else."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import httpx
import openai
import pytest

from tests.conftest import MODEL, Place, Process, until

MESSAGES = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def gateway(shared_place: Place) -> Process:
    engines = [shared_place.engine(gpu) for gpu in ("H100", "A100")]
    return shared_place.before(*(engine.url for engine in engines))


@pytest.fixture(scope="module")
def client(gateway: Process) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "copilot"]
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_chat_is_answered_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=6)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


def test_a_chat_is_streamed_without_a_usage_nobody_asked_for(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=6, stream=True))
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) == 6
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_a_stream_tells_usage_when_asked(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=6, stream=True, stream_options=options))
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


def test_two_choices_and_tools(client: openai.OpenAI) -> None:
    two = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4, n=2)
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
    called = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4, tools=tools, tool_choice="required")
    assert len(two.choices) == 2
    assert called.choices[0].message.tool_calls[0].function.name == "look_up"


def test_completions_responses_and_embeddings(client: openai.OpenAI) -> None:
    assert client.completions.create(model=MODEL, prompt="def f(", suffix=")", max_tokens=4).choices[0].text
    assert client.responses.create(model=MODEL, input="hello", max_output_tokens=4).output_text
    kinds = [event.type for event in client.responses.create(model=MODEL, input="hello", max_output_tokens=3, stream=True)]
    assert kinds.count("response.output_text.delta") == 3
    assert len(client.embeddings.create(model=MODEL, input=["a", "b"]).data) == 2


def test_an_alias_says_what_its_requests_are(client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(model="copilot", messages=MESSAGES, max_tokens=2)
    assert answer.headers["x-slo-use-case"] == "code_completion"
    assert answer.headers["x-slo-class"] == "instant"
    assert answer.headers["x-slo-why"] == "model alias"


def test_the_answer_says_what_was_served(client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=MESSAGES, max_tokens=2, service_tier="flex", extra_headers={"x-request-id": "mine-1"}
    )
    assert answer.parse().service_tier == "flex"
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-slo-class"] == "deferred"
    assert answer.headers["x-slo-pool"] == "premium"
    assert answer.headers["server-timing"].startswith("queue;dur=")


def test_errors_are_typed_as_openai_types_them(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages="hello")  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError) as tag:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_headers={"x-slo-use-case": "chatbt"})
    assert missing.value.code == "model_not_found"
    assert wrong.value.param == "messages"
    assert "chatbot" in tag.value.message


def test_a_stream_that_is_closed_frees_its_slot(client: openai.OpenAI, gateway: Process) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=20_000, stream=True)
    next(iter(stream))
    assert gateway.in_flight() == 1
    stream.close()
    until(lambda: gateway.in_flight() == 0, what="the slot to be free")


def test_the_async_client_streams_many_at_once(gateway: Process) -> None:
    async def one(client: openai.AsyncOpenAI, number: int) -> int:
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": f"hello {number}"}], max_tokens=10, stream=True
        )
        return len([chunk async for chunk in stream if chunk.choices and chunk.choices[0].delta.content])

    async def all_of_them() -> list[int]:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client:
            return await asyncio.gather(*(one(client, number) for number in range(20)))

    assert asyncio.run(all_of_them()) == [10] * 20


def test_the_async_client_is_answered_at_every_endpoint_and_with_typed_errors(gateway: Process) -> None:
    async def everything() -> None:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == [MODEL, "copilot"]
            tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
            whole = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=6, n=2)
            called = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4, tools=tools, tool_choice="required")
            done = await client.completions.create(model=MODEL, prompt="def f(", max_tokens=4)
            said = await client.responses.create(model=MODEL, input="hello", max_output_tokens=4)
            embedded = await client.embeddings.create(model=MODEL, input=["a", "b"])
            assert [bool(choice.message.content) for choice in whole.choices] == [True, True]
            assert called.choices[0].message.tool_calls[0].function.name == "look_up"
            assert done.choices[0].text
            assert said.output_text
            assert len(embedded.data) == 2
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="nobody", messages=MESSAGES)
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(model=MODEL, messages=MESSAGES, n=0)

    asyncio.run(everything())


def test_a_task_that_is_cancelled_in_mid_stream_frees_its_slot(gateway: Process) -> None:
    async def begin_and_cancel() -> None:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client:
            begun = asyncio.Event()

            async def read() -> None:
                async for _ in await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=20_000, stream=True):
                    begun.set()

            task = asyncio.create_task(read())
            await asyncio.wait([task, asyncio.ensure_future(begun.wait())], return_when=asyncio.FIRST_COMPLETED)
            in_flight = await asyncio.to_thread(gateway.in_flight)
            assert not task.done(), task  # says what it ended with
            assert in_flight == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(until, lambda: gateway.in_flight() == 0, what="the slot to be free")

    asyncio.run(begin_and_cancel())


def test_completions_and_tool_calls_are_streamed(client: openai.OpenAI) -> None:
    texts = [chunk.choices[0].text for chunk in client.completions.create(model=MODEL, prompt="def f(", max_tokens=5, stream=True)]
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
    two = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=5, n=2, stream=True))
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, max_tokens=5, tools=tools, tool_choice="required") as stream:
        last = stream.get_final_completion()
    assert len([text for text in texts if text]) == 5
    assert {choice.index for chunk in two for choice in chunk.choices} == {0, 1}
    assert last.choices[0].message.tool_calls[0].function.name == "look_up"


def test_the_client_comes_back_when_it_was_told_to_and_is_served(place: Place) -> None:
    """By its own retries: they wait as long as the refusal says."""
    engine = place.engine()
    pool = {"tier": "premium", "gpu": "H100", "model": MODEL, "instances": [engine.url]}
    keys = [{"id": "one", "key": "${TEST_KEY}", "quota": {"concurrent": 1}}]
    gateway = place.gateway(place.config({"premium": pool}, keys=keys), env={"TEST_KEY": "gw-one"})
    seen: list[tuple[float, float, int, float]] = []  # asked at, answered at, status, seconds to wait

    def note(answer: httpx.Response) -> None:
        asked_at_s = answer.request.extensions["asked_at_s"]
        seen.append((asked_at_s, time.monotonic(), answer.status_code, float(answer.headers.get("retry-after-ms", 0)) / 1000.0))

    hooks = {"request": [lambda request: request.extensions.update(asked_at_s=time.monotonic())], "response": [note]}
    holder = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="gw-one", max_retries=0)
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="gw-one", max_retries=5, http_client=httpx.Client(event_hooks=hooks))
    stream = holder.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=20_000, stream=True)
    next(iter(stream))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.chat.completions.create, model=MODEL, messages=MESSAGES, max_tokens=2)
        until(lambda: seen, what="a refusal")
        stream.close()
        answer = asked.result()
    assert answer.choices[0].message.content
    assert [status for _, _, status, _ in seen[:-1]] == [429] * (len(seen) - 1) != []
    assert seen[-1][2] == 200
    for (_, answered_at_s, _, wait_s), (asked_at_s, *_) in pairwise(seen):
        assert wait_s > 0.0
        assert asked_at_s - answered_at_s >= wait_s * 0.99


def test_keys_are_asked_for_and_classes_held_to_them(place: Place) -> None:
    engine = place.engine()
    keys = [
        {"id": "editor", "key": "${TEST_KEY}", "use_case": "code_completion"},
        {"id": "batch", "key": "${TEST_BATCH_KEY}", "classes": ["deferred"]},
    ]
    pool = {"tier": "premium", "gpu": "H100", "model": MODEL, "instances": [engine.url]}
    config = place.config({"premium": pool}, keys=keys)
    gateway = place.gateway(config, env={"TEST_KEY": "gw-one", "TEST_BATCH_KEY": "gw-two"})
    with pytest.raises(openai.AuthenticationError) as wrong:
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="no", max_retries=0).chat.completions.create(model=MODEL, messages=MESSAGES)
    editor = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="gw-one", max_retries=0)
    batch = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="gw-two", max_retries=0)
    first = editor.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, max_tokens=2)
    asked = {"x-slo-class": "instant"}
    held = batch.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, max_tokens=2, extra_headers=asked)
    assert wrong.value.code == "invalid_api_key"
    assert first.headers["x-slo-use-case"] == "code_completion"
    assert held.headers["x-slo-class"] == "deferred"
    assert "key" in held.headers["x-slo-why"]
    assert httpx.get(f"{gateway.url}/v1/models").status_code == 401


def test_a_refused_request_is_told_when_to_come_back(place: Place) -> None:
    engine = place.engine()
    gateway = place.before(engine.url, limit=1)
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0)
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=20_000, stream=True)
    next(iter(stream))
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8, stream=True)
    stream.close()
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 120
    assert int(refused.value.response.headers["retry-after-ms"]) > 0
    assert refused.value.body["reason"] == "cannot_meet_slo"
    assert refused.value.body["looser_class"] == "deferred"


def test_a_caller_that_accepts_a_looser_class_gets_one_rather_than_a_refusal(place: Place) -> None:
    engine = place.engine()
    gateway = place.before(engine.url, limit=1)
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0)
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=20_000, stream=True)
    next(iter(stream))
    more = {"max_tokens": 4, "stream": True, "extra_headers": {"x-slo-degrade": "allow"}}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.chat.completions.with_raw_response.create, model=MODEL, messages=MESSAGES, **more)
        until(lambda: gateway.waiting() == 1, what="the other one to wait")
        stream.close()
        answer = asked.result()
    assert answer.headers["x-slo-degraded-from"] == "conversational"
    assert answer.headers["x-slo-class"] != "conversational"
    answer.http_response.close()


def test_anthropics_client_is_served_as_well(gateway: Process) -> None:
    import anthropic

    client = anthropic.Anthropic(base_url=gateway.url, api_key="any", max_retries=0)
    whole = client.messages.create(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "hello"}])
    with client.messages.stream(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "hello"}]) as stream:
        words = list(stream.text_stream)
    assert whole.content[0].text
    assert len(words) == 5
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="nobody", max_tokens=5, messages=[{"role": "user", "content": "hello"}])
