"""The official client meets a quota: its headers, its refusal, and what it does then."""

from __future__ import annotations

import contextlib
import hashlib

import httpx
import openai
import pytest

from tests.conftest import MODEL, Place, Process

MESSAGES = [{"role": "user", "content": "Say hello."}]
LIMITS = {
    "two": {"requests_per_minute": 2},
    "tokens": {"tokens_per_minute": 400},
    "one-batch": {"classes": {"batch": {"requests_per_minute": 1}}},
    "free": None,
}


@pytest.fixture(scope="module")
def gateway(shared_place: Place) -> Process:
    keys = [
        {"id": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} | ({"quota": quota} if quota else {})
        for name, quota in LIMITS.items()
    ]
    return shared_place.before(shared_place.engine().url, keys=keys)


def client(gateway: Process, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


def test_a_client_sees_what_is_left_and_then_when_to_come_back(gateway: Process) -> None:
    chat = client(gateway, "two").chat.completions
    left = []
    for _ in range(2):
        answer = chat.with_raw_response.create(model=MODEL, messages=MESSAGES, max_tokens=2)
        left.append(answer.headers["x-ratelimit-remaining-requests"])
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
    assert left == ["1", "0"]
    with pytest.raises(openai.RateLimitError) as caught:
        chat.create(model=MODEL, messages=MESSAGES, max_tokens=2, stream=True)
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.type == "requests"
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 61
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_tokens_are_settled_by_usage_whether_streamed_or_not(gateway: Process) -> None:
    chat = client(gateway, "tokens").chat.completions
    used = 0
    for _ in range(2):
        used += chat.create(model=MODEL, messages=MESSAGES, max_tokens=40).usage.total_tokens
    options = {"include_usage": True}
    chunks = list(chat.create(model=MODEL, messages=MESSAGES, max_tokens=40, stream=True, stream_options=options))
    used += chunks[-1].usage.total_tokens
    rows = {(row["quota"], row["measure"]): row for row in httpx.get(f"{gateway.admin}/admin/shares").json()["quotas"]}
    assert rows["tokens", "tokens"]["remaining"] == 400 - used


def test_a_request_larger_than_the_quota_is_not_to_be_sent_again(gateway: Process) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        client(gateway, "tokens").chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 2000}], max_tokens=4)
    assert caught.value.type == "tokens"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_class_has_a_quota_of_its_own(gateway: Process) -> None:
    chat = client(gateway, "one-batch").chat.completions
    batch = {"x-slo-class": "batch"}
    chat.create(model=MODEL, messages=MESSAGES, max_tokens=2, extra_headers=batch)
    with pytest.raises(openai.RateLimitError):
        chat.create(model=MODEL, messages=MESSAGES, max_tokens=2, extra_headers=batch)
    assert chat.create(model=MODEL, messages=MESSAGES, max_tokens=2).choices


def test_a_key_without_a_quota_sees_no_such_headers(gateway: Process) -> None:
    answer = client(gateway, "free").chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, max_tokens=2)
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


def test_metrics_tell_who_was_refused(gateway: Process) -> None:
    for _ in range(4):
        with contextlib.suppress(openai.RateLimitError):
            client(gateway, "two").chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=2)
    text = httpx.get(f"{gateway.admin}/metrics").text
    assert 'slo_gateway_quota_refused_total{quota="two",measure="requests"}' in text
