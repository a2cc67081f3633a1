"""Admission and prediction as a caller meets them: a looser class by the key's own wish, a no at once, a warm beginning expected sooner."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import httpx
import pytest

from tests.conftest import Place, Process, chat, until

KEYS = {"patient": True, "strict": False}


@pytest.fixture(scope="module")
def gateway(shared_place: Place) -> Process:
    keys = [{"id": name, "sha256": sha256(name.encode()).hexdigest(), "degrade": degrade} for name, degrade in KEYS.items()]
    # Slow, so that a machine that stands still for a moment does not outweigh the reading of a prompt.
    return shared_place.before(shared_place.engine("H100", "--jitter", "0", "--slow", "10").url, limit=1, keys=keys)


def ask(gateway: Process, key: str, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", "x-slo-use-case": "chatbot"}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=chat(True, **more), headers=headers)


def test_a_key_that_prefers_a_looser_class_gets_one_and_another_is_refused_without_a_wait(gateway: Process) -> None:
    headers = {"authorization": "Bearer strict", "x-slo-use-case": "chatbot"}
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=chat(True, max_tokens=20_000), headers=headers),
    ):
        until(lambda: gateway.in_flight() == 1, what="the only slot to be taken")
        refused = ask(gateway, "strict")
        asked = pool.submit(ask, gateway, "patient")
        until(lambda: gateway.waiting() == 1, what="the patient one to wait")
    looser = asked.result()
    assert refused.status_code == 429
    assert refused.json()["error"]["reason"] == "cannot_meet_slo"
    told = httpx.get(f"{gateway.admin}/admin/requests/{refused.headers['x-request-id']}").json()
    assert [step["what"] for step in told["steps"]] == ["weighed", "refused"]
    assert looser.status_code == 200
    assert looser.headers["x-slo-degraded-from"] == "conversational"
    assert looser.headers["x-slo-class"] != "conversational"


def test_a_beginning_that_was_read_before_is_expected_sooner_than_another_as_long(gateway: Process) -> None:
    def expected_s(word: str) -> float:
        until(lambda: gateway.in_flight() == 0, what="the slot to be free")
        answer = ask(gateway, "strict", max_tokens=2, messages=[{"role": "user", "content": f"{word} document " * 1_000}])
        assert answer.status_code == 200
        told = httpx.get(f"{gateway.admin}/admin/requests/{answer.headers['x-request-id']}").json()
        found: float = next(step for step in told["steps"] if step["what"] == "started")["predicted"]["ttft_s"]
        return found

    expected_s("this")
    warm_s, cold_s = expected_s("this"), expected_s("that")
    assert warm_s < 0.75 * cold_s
