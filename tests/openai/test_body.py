"""Bodies are read for the fields that decide, edited in place, and refused when two readers could understand them differently."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.settings import Limits
from gateway.core.flow import Endpoint
from gateway.openai.body import MAX_BLOCKS, read, with_service_tier
from gateway.openai.errors import ApiError

LIMITS = Limits()
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def chat(**more: Any) -> bytes:
    return json.dumps(CHAT | more).encode()


def body(raw: bytes, endpoint: Endpoint = Endpoint.CHAT):
    return read(raw, endpoint, LIMITS)


def read_or_refused(raw: bytes, endpoint: Endpoint):
    try:
        return body(raw, endpoint)
    except ApiError as error:
        if error.status != 400:
            raise
        return None


def sent(made, model: str | None = None, usage: bool | None = True) -> bytes:
    return b"".join(bytes(part) for part in made.for_engine(model, usage))


@pytest.mark.parametrize("size", [10, 20_000])
def test_what_decides_is_read(size: int) -> None:
    raw = chat(stream=True, max_tokens=7, n=2, service_tier="flex", metadata={"slo_use_case": "chatbot"}, padding="x" * size)
    made = body(raw)
    assert (made.model, made.stream, made.max_output_tokens, made.n, made.service_tier) == ("m", True, 7, 2, "flex")
    assert made.slo_use_case == "chatbot"
    assert made.text_bytes == len(json.dumps(CHAT["messages"]))


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"   ", "invalid_json"),
        (b"[]", "invalid_json"),
        (b"null", "invalid_json"),
        (b'{"model":"m"', "invalid_json"),
        (b"\xef\xbb\xbf" + chat(), "invalid_json"),
        (chat() + b"x", "invalid_json"),
        (b'{"model":"m","messages":[],"\xff":1}', "invalid_json"),
        (b'{"model":"m","messages":[],"temperature":NaN}', "invalid_json"),
        (b'{"model":"m","messages":[],"temperature":-Infinity}', "invalid_json"),
        (chat() + chat(), "invalid_json"),
        (chat(messages=[{"role": "user", "content": "\ud800"}]), "invalid_json"),
        (b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b'{"model":"m","messages":[],"model":"n"}', "duplicate_key"),
        (b'{"model":"m","messages":[],"mod\\u0065l":"n"}', "duplicate_key"),
        (b'{"messages":[],"model":"m","messages":[]}', "duplicate_key"),
        (b'{"model":"m","messages":[],"metadata":{"slo_class":"a","slo_class":"b"}}', "duplicate_key"),
        (b'{"messages":[]}', "missing_required_parameter"),
        (b'{"model":"m"}', "missing_required_parameter"),
        (chat(model=""), "missing_required_parameter"),
        (chat(model=3), "invalid_value"),
        (chat(model="x" * 300), "invalid_value"),
        (b'{"model":"\xff","messages":[]}', "invalid_value"),
        (b'{"model":"\\ud800","messages":[]}', "invalid_json"),
        (chat(messages="hello"), "invalid_value"),
        (chat(stream="yes"), "invalid_value"),
        (chat(max_tokens=-1), "invalid_value"),
        (chat(max_tokens=1.5), "invalid_value"),
        (chat(max_tokens=10**40), "invalid_value"),
        (chat(n=0), "invalid_value"),
        (chat(n=17), "invalid_value"),
        (chat(stream_options=3), "invalid_value"),
        (chat(service_tier=["flex"]), "invalid_value"),
    ],
)
def test_what_is_wrong_is_400_and_never_repeated(raw: bytes, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        body(raw)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert "hello" not in caught.value.message


@pytest.mark.parametrize(
    "raw",
    [
        chat(temperature=1e300, seed=10**400),
        b'{"model":"m","messages":[],"x":1e999}',
        b'{"model":"m","messages":[],"x":%b}' % (b"7" * 5000),
        b'{"model":"m","messages":[],"x":"\xff\xfe"}',  # the engine's 400 is told as 400
        b'{"model":"m","messages":[{"role":"user","content":%b}]}' % (b"[" * 900 + b"]" * 900),
        chat(logit_bias={"a": "\ud83d\ude00"}),
        b' {\n "model" : "m" ,\t"messages" : [ ] }\r\n',
        b'{"mod\\u0065l":"m","messages":[]}',
    ],
)
def test_what_only_the_engine_can_judge_goes_on_unchanged(raw: bytes) -> None:
    assert sent(body(raw)) == raw


def of_text(*content: str, **more: Any):
    return body(chat(messages=[{"role": "system", "content": text} for text in content], **more))


def test_prompts_that_begin_alike_share_hashes_as_far_as_they_do() -> None:
    one, other = of_text("a" * 3000 + "b" * 3000).prefix_hashes, of_text("a" * 3000 + "c" * 3000).prefix_hashes
    assert len(one) == len(other) == 5
    assert one[:2] == other[:2]
    assert not set(one[2:]) & set(other[2:])
    alike = of_text("a" * 30_000).prefix_hashes  # whose blocks say the same: each stands for all that comes before it, too
    assert len(set(alike)) == len(alike) == MAX_BLOCKS
    assert of_text("short").prefix_hashes == ()


@pytest.mark.parametrize("unusual", [{"metadata": {}}, {"padding": "x" * 70_000}])
def test_a_body_is_understood_alike_at_a_glance_and_key_by_key(unusual: dict[str, Any]) -> None:
    glanced, read_whole = of_text("You are terse." * 300, "hi", n=2), of_text("You are terse." * 300, "hi", n=2, **unusual)
    for name in ("app", "prefix_hashes", "text_bytes", "model", "n", "stream", "max_output_tokens", "plain"):
        assert getattr(glanced, name) == getattr(read_whole, name), name
    assert bytes(glanced.prompt) == bytes(read_whole.prompt)


def test_usage_is_asked_for_in_streams_that_did_not_say() -> None:
    assert json.loads(sent(body(chat(stream=True)))) == CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    with_options = chat(stream=True, stream_options={"other": 1})
    assert json.loads(sent(body(with_options)))["stream_options"] == {"other": 1, "include_usage": True}
    assert body(chat(stream=True, stream_options={"include_usage": False})).include_usage is False
    assert sent(body(chat())) == chat()


def test_a_models_name_is_replaced_where_it_stands_and_nowhere_else() -> None:
    raw = b'{"messages":[{"role":"user","content":"\\"model\\":\\"m\\""}], "model" : "m", "stream":true}'
    made = sent(body(raw), "served/name")
    assert made.startswith(b'{"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"\\"model\\":\\"m\\""}]')
    assert json.loads(made)["model"] == "served/name"


def test_other_endpoints_have_their_own_fields() -> None:
    done = body(b'{"model":"m","prompt":"def f(","suffix":")","best_of":3,"max_tokens":4}', Endpoint.COMPLETIONS)
    responses = body(b'{"model":"m","input":"hi","instructions":"be brief","max_output_tokens":9,"stream":true}', Endpoint.RESPONSES)
    embedded = body(b'{"model":"m","input":["a","b"]}', Endpoint.EMBEDDINGS)
    message = body(b'{"model":"m","max_tokens":5,"system":"s","messages":[]}', Endpoint.MESSAGES)
    assert (done.n, done.has_suffix, done.max_output_tokens) == (3, True, 4)
    assert (responses.stream, responses.max_output_tokens, responses.include_usage) == (True, 9, True)
    assert (embedded.stream, embedded.max_output_tokens) == (False, 1)
    assert message.max_output_tokens == 5


def test_the_tier_that_was_served_is_told_in_the_answer() -> None:
    assert json.loads(with_service_tier(b'{"id":1,"service_tier":null}', "flex")) == {"id": 1, "service_tier": "flex"}
    assert json.loads(with_service_tier(b'{"id":1}', "default")) == {"service_tier": "default", "id": 1}
    assert with_service_tier(b"no json", "flex") == b"no json"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ("model", "messages", "stream", "n", "max_tokens", "metadata", "stream_options", "service_tier", "tools", "prompt", "input", "é")
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, JSON, max_size=8), st.sampled_from(list(Endpoint)), st.sampled_from((None, (", ", ": "), (" ,\n", " :\t"))))
def test_any_json_is_read_or_refused_with_400(value: dict, endpoint: Endpoint, separators: tuple[str, str] | None) -> None:
    raw = json.dumps(value, separators=separators, ensure_ascii=False).encode("utf-8", "surrogatepass")
    made = read_or_refused(raw, endpoint)
    if made is None:
        return
    assert made.model == value["model"]
    assert json.loads(sent(made, "other"))["model"] == "other"
    back = json.loads(sent(made, "other"))
    assert {k: v for k, v in back.items() if k not in ("model", "stream_options")} == {
        k: v for k, v in value.items() if k not in ("model", "stream_options")
    }


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes_are_refused_without_a_fault_of_ours(raw: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        body(raw)
    assert caught.value.status == 400
