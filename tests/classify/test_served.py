"""A gateway that runs: what nobody tagged gets its class, the answer says why, and what was seen is on /metrics without a word of it."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.conftest import MODEL, Place, Process

SECRET = "Zanzibarquist"


@pytest.fixture(scope="module")
def gateway(shared_place: Place) -> Process:
    pools = {"p": {"tier": "premium", "gpu": "H100", "model": MODEL, "instances": [shared_place.engine().url]}}
    return shared_place.gateway(shared_place.config(pools, keys=[], mode="observe"))


def ask(gateway: Process, path: str = "/v1/chat/completions", **request: Any) -> httpx.Response:
    answer = httpx.post(f"{gateway.url}{path}", json={"model": MODEL, "max_tokens": 2, **request})
    assert answer.status_code == 200, answer.text
    return answer


def said(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def test_each_request_gets_the_class_of_what_it_asks(gateway: Process) -> None:
    for text, use_case, experience_class in (
        ("Translate into Spanish: The train leaves at nine from platform two.", "translation", "deferred"),
        ("Hello, when do you open on Sundays?", "chatbot", "conversational"),
        ("Write a Python function that merges two sorted lists, with unit tests.", "code_generation", "interactive"),
    ):
        answer = ask(gateway, **said(text))
        assert (answer.headers["x-slo-use-case"], answer.headers["x-slo-class"]) == (use_case, experience_class)
        assert answer.headers["x-slo-why"].startswith("learned")


def test_what_was_seen_is_counted_and_never_told(gateway: Process) -> None:
    ask(gateway, **said(f"Write a short story about {SECRET}, who collects clocks."))
    text = httpx.get(f"{gateway.admin}/metrics").text
    looks = re.search(r'slo_gateway_classified_total\{[^}]*source="look"\} (\d+)', text)
    assert looks is not None
    assert int(looks[1]) >= 1
    assert "slo_gateway_classify_drift_ratio" in text
    assert SECRET not in text
    assert SECRET.lower() not in gateway.text().lower()


def test_odd_messages_reach_the_engine_all_the_same(gateway: Process) -> None:
    for messages in (
        [],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}],
    ):
        answer = httpx.post(f"{gateway.url}/v1/chat/completions", json={"model": MODEL, "messages": messages, "max_tokens": 2})
        assert answer.status_code in (200, 400)
        assert "x-slo-use-case" in answer.headers or answer.status_code == 400
