"""What real engines said, said again through the gateway: vLLM, Dynamo and transformers serve, each with its own habits."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from gateway.core.flow import EngineKind
from gateway.engines.discovery import discover
from tests.conftest import HANG_S, MODEL, Place, Process, until
from tests.faults.recorded import ENGINES, Recording, Replay, recordings

ASKED = [r for engine in ENGINES for r in recordings(engine).values() if r.body is not None and r.body["model"] != "nobody"]
ANSWERED = [r for r in ASKED if r.status == 200 and r.case != "chat_stream_without_options"]
REFUSED = [r for r in ASKED if r.status != 200]


class Stage:
    """One recorded engine behind a gateway."""

    def __init__(self, engine: str, place: Place) -> None:
        self.replay = Replay(engine)
        self.log = place.folder / f"{engine}.jsonl"
        served = recordings(engine)["chat_stream"].body["model"]
        pool = {"tier": "premium", "gpu": "H100", "model": MODEL, "served_model": served, "engine": engine, "instances": [self.replay.url]}
        more: dict[str, Any] = {"mode": "observe", "telemetry": {"request_log": str(self.log)}, "coalesce": {"enabled": False}}
        self.gateway: Process = place.gateway(place.config({"premium": pool}, **more))

    def ask(self, recording: Recording, usage: bool | None = True, name: str = "x") -> tuple[int, bytes]:
        """As a client would ask, who says or does not say whether it wants usage."""
        body = {key: value for key, value in recording.body.items() if key != "stream_options"} | {"model": MODEL}
        if usage is not None and "stream_options" in recording.body:
            body["stream_options"] = {"include_usage": usage}
        with httpx.stream("POST", f"{self.gateway.url}{recording.path}", json=body, headers={"x-request-id": name}) as answer:
            return answer.status_code, b"".join(answer.iter_raw())

    def logged(self, name: str) -> dict[str, Any]:
        def line() -> dict[str, Any] | None:
            rows = [json.loads(row) for row in self.log.read_text().splitlines()] if self.log.exists() else []
            return next((row for row in rows if row["request_id"] == name), None)

        found: dict[str, Any] = until(line, what=f"{name} in the request log")
        return found


@pytest.fixture(scope="module")
def stages(shared_place: Place) -> Iterator[dict[str, Stage]]:
    made = {engine: Stage(engine, shared_place) for engine in ENGINES}
    yield made
    for stage in made.values():
        stage.replay.stop()


def named(recording: Recording) -> str:
    return f"{recording.engine}-{recording.case}"


@pytest.mark.parametrize("size", [0, 1, 7, 1 << 20], ids=["as it came", "byte by byte", "in sevens", "at once"])
@pytest.mark.parametrize("recording", ANSWERED, ids=named)
def test_what_the_engine_said_arrives_byte_for_byte(stages: dict[str, Stage], recording: Recording, size: int) -> None:
    if size == 1 and len(recording.wire) > 4000:
        pytest.skip("as many turns of the loop as bytes")
    stage = stages[recording.engine]
    stage.replay.size, stage.replay.pause_s = size, 0.0
    asked = stage.ask(recording, usage=True)
    unasked = stage.ask(recording, usage=None)
    assert asked == (200, recording.content)
    assert unasked == (200, recording.without_usage_chunk if recording.streams else recording.content)


@pytest.mark.parametrize("engine", ENGINES)
def test_tokens_are_the_engines_own_count_though_the_client_did_not_ask(stages: dict[str, Stage], engine: str) -> None:
    stage = stages[engine]
    stage.replay.size, stage.replay.pause_s = 0, 0.0
    told = [r for r in ANSWERED if r.engine == engine and r.streams and r.usage]
    for recording in told:
        stage.ask(recording, usage=None, name=recording.case)
    for recording in told:
        line, usage = stage.logged(recording.case), recording.usage
        assert usage is not None
        assert (line["result"], line.get("tokens_estimated")) == ("completed", None)
        assert line["output_tokens"] == usage.get("completion_tokens", usage.get("output_tokens"))
        assert line["prompt_tokens"] == usage.get("prompt_tokens", usage.get("input_tokens"))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_role_chunk_or_a_created_event_before_the_prefill_is_no_first_token(stages: dict[str, Stage], engine: str) -> None:
    stage, pause_s = stages[engine], 0.15
    stage.replay.size, stage.replay.pause_s = 0, pause_s
    took_s = {}
    streamed = [r for r in ANSWERED if r.engine == engine and r.streams and r.body.get("stream")]
    for recording in streamed:
        began_s = time.monotonic()
        stage.ask(recording, name=f"{recording.case}-late")
        took_s[recording.case] = time.monotonic() - began_s
    for recording in streamed:
        assert pause_s <= stage.logged(f"{recording.case}-late")["ttft_s"] <= took_s[recording.case], recording.case


@pytest.mark.parametrize("recording", REFUSED, ids=named)
def test_every_no_of_an_engine_is_an_openai_error(stages: dict[str, Stage], recording: Recording) -> None:
    stage = stages[recording.engine]
    stage.replay.size, stage.replay.pause_s = 0, 0.0
    status, body = stage.ask(recording)
    error = json.loads(body)["error"]
    if recording.status == 500:
        assert (status, error["type"], error["code"]) == (502, "upstream_error", "engine_error")
        return
    assert status == recording.status
    if recording.path == "/v1/messages":
        assert error["type"] == "not_found_error"
        return
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert isinstance(error["code"], str)
    assert error["message"]
    if status == 404:
        assert (error["code"], error["param"]) == ("model_not_found", "model")
    if recording.case.startswith("too_long"):
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
        assert "8192 tokens" in error["message"]
    if recording.engine == "vllm" and recording.case.startswith("wrong_value"):
        assert error["param"] == "temperature"
        assert error["message"] == "Input should be a valid number, unable to parse string as a number"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_official_client_reads_every_engine(stages: dict[str, Stage], engine: str) -> None:
    stage, known = stages[engine], recordings(engine)
    stage.replay.size, stage.replay.pause_s = 0, 0.0
    client = openai.OpenAI(base_url=f"{stage.gateway.url}/v1", api_key="any", max_retries=0)
    body = known["chat_stream"].body | {"model": MODEL}
    del body["stream_options"]
    chunks = list(client.chat.completions.create(**body))
    whole = client.chat.completions.create(**(known["chat_whole"].body | {"model": MODEL}))
    wrong = known["unknown_field"]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    told = [json.loads(e[6:]) for e in known["chat_stream"].events if b"[DONE]" not in e]
    assert said == "".join(value["choices"][0]["delta"].get("content") or "" for value in told if value["choices"])
    assert whole.choices[0].message.content == json.loads(known["chat_whole"].content)["choices"][0]["message"]["content"]
    if wrong.status != 200:
        kind = openai.BadRequestError if wrong.status == 400 else openai.UnprocessableEntityError
        with pytest.raises(kind) as caught:
            client.chat.completions.create(**(known["chat_whole"].body | {"model": MODEL}), extra_body={"never_heard_of_it": 1})
        assert "never_heard_of_it" in caught.value.message


@pytest.mark.parametrize("engine", ["dynamo", "transformers"])
def test_an_engine_that_refuses_unknown_fields_is_asked_without_stream_options(place: Place, engine: str) -> None:
    """Both refuse what they do not know, each with its own status; here as if stream_options were such a field."""
    known = recordings(engine)
    refusal = known["unknown_field"].wire.replace(b"never_heard_of_it", b"stream_options   ")
    answer = known["chat_stream_without_options"]
    replay = Replay(engine)

    async def strict(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(refusal if b"stream_options" in replay.requests[-1] else answer.wire)
        await writer.drain()

    replay.script = strict
    gateway = place.before(replay.url)
    bodies = [
        httpx.post(f"{gateway.url}{answer.path}", json=answer.body | {"model": MODEL}, headers={"x-slo-class": "batch"}).content
        for _ in range(3)
    ]
    replay.stop()
    assert bodies == [answer.content] * 3
    assert len([request for request in replay.requests if b"stream_options" in request]) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_is_found_healthy_by_the_page_it_has(stages: dict[str, Stage], engine: str) -> None:
    stage = stages[engine]
    until(lambda: stage.replay.looked_at.count("/health") >= 3, what="three probes")
    assert [instance["healthy"] for instance in stage.gateway.fleet()] == [True]


def test_what_engines_say_of_themselves_is_understood(stages: dict[str, Stage]) -> None:
    vllm, dynamo, transformers = (asyncio.run(discover(stages[engine].replay.url, HANG_S)) for engine in ENGINES)
    assert (vllm.kind, vllm.models, vllm.version, vllm.kv_tokens) == (EngineKind.VLLM, ("m",), "0.32.0", 1048576)
    assert (dynamo.kind, dynamo.models) == (EngineKind.DYNAMO, ("m",))
    assert dynamo.kv_tokens > 0
    assert "500" in transformers.problem
