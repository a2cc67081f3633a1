"""What a gateway has learnt is still known after its restart, and a damaged file costs nothing but that."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.core.flow import InstanceSpec
from gateway.core.instance import Instance
from gateway.predict.predictor import LearningPredictor
from gateway.state.learnt_file import LearntFile
from gateway.state.warm import read
from tests.conftest import Place, Process, chat, until
from tests.predict.conftest import Bench, bench, ticket_of

__all__ = ["bench"]


def file_of(predictor: LearningPredictor, path: Path) -> LearntFile:
    return LearntFile(predictor, path)


def test_what_is_saved_is_predicted_again(bench: Callable[..., Bench], tmp_path: Path) -> None:
    made, path = bench(misjudged=2.0), tmp_path / "learnt"
    made.run(300)
    assert asyncio.run(file_of(made.predictor, path).save())
    again = LearningPredictor({}, cautious=False)
    assert file_of(again, path).begin()
    [known, *_] = made.instances.values()
    for tokens in (100, 4_000):
        mine, theirs = again.predict_idle(ticket_of(tokens), Instance(known.spec)), made.predictor.predict_idle(ticket_of(tokens), known)
        assert (mine.ttft_s, mine.itl_s) == pytest.approx((theirs.ttft_s, theirs.itl_s), rel=0.01)
    assert [file.name for file in tmp_path.iterdir()] == ["learnt"]
    assert path.stat().st_mode & 0o077 == 0


def test_who_knows_nothing_writes_nothing_over_what_was_known(tmp_path: Path) -> None:
    path = tmp_path / "learnt"
    path.write_bytes(b"precious")
    assert not asyncio.run(file_of(LearningPredictor({}), path).save())
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("content", [b"", b"{}", os.urandom(3_000)], ids=["empty", "of another kind", "garbage"])
def test_a_damaged_file_is_told_of_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    path = tmp_path / "learnt"
    path.write_bytes(content)
    predictor = LearningPredictor({})
    before = predictor.state()
    assert not file_of(predictor, path).begin()
    assert predictor.state() == before
    assert str(path) in caplog.text


def test_a_folder_that_is_not_there_costs_no_more_than_a_line_in_the_log(
    bench: Callable[..., Bench], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = bench()
    made.run(100)
    missing = file_of(made.predictor, tmp_path / "missing" / "learnt")
    assert not missing.begin()
    assert not caplog.text
    assert not asyncio.run(missing.save())
    assert "cannot be written" in caplog.text


def started(gateway: Process, prompt: str) -> dict[str, Any]:
    """A short chat with this prompt: what `explain` tells of it, and what was `predicted` for it at its start."""
    body = chat(True, max_tokens=12, messages=[{"role": "user", "content": prompt}])
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers={"x-slo-use-case": "chatbot"})
    assert answer.status_code == 200
    told: dict[str, Any] = httpx.get(f"{gateway.admin}/admin/requests/{answer.headers['x-request-id']}").json()
    return told | {"predicted": next(step for step in told["steps"] if step["what"] == "started")["predicted"]}


def test_a_gateway_that_is_started_again_predicts_as_it_had_learnt(place: Place, tmp_path: Path) -> None:
    # Four times slower than the facts of its GPU: what is predicted tells whether anything was learnt.
    engine, path = place.engine("H100", "--slow", "4", "--jitter", "0"), tmp_path / "learnt"
    pool = {"tier": "premium", "gpu": "H100", "model": "llama-8b", "instances": [engine.url], "limit": {"start": 8, "pinned": True}}
    config = place.config({"premium": pool}, mode="observe", state={"learnt_file": str(path)})
    first = place.gateway(config)
    naive = started(first, "0")["predicted"]
    numbers = count(1)

    def learnt() -> bool:
        with ThreadPoolExecutor(8) as callers:
            list(callers.map(lambda n: started(first, f"{n} " + "word " * (n % 32 * 20)), islice(numbers, 32)))
        until(lambda: first.in_flight() == 0, what="the last answer to be counted")
        now = started(first, f"{next(numbers)}")["predicted"]
        return bool(now["itl_s"] > 2.0 * naive["itl_s"] and now["ttft_s"] > 1.5 * naive["ttft_s"])

    until(learnt, what="four times slower to be learnt")
    [instance] = first.fleet()
    first.stop()
    # How slow this machine is on top has been learnt too, until the last token: what was kept is the measure, not an earlier look.
    kept = read(path.read_bytes())
    assert kept is not None
    again = started(place.gateway(config), f"{next(numbers)}")
    ticket = ticket_of(again["prompt_tokens"])
    ticket.expected_output_tokens = again["expected_output_tokens"]
    spec = InstanceSpec(instance["instance_id"], "premium", "premium", 0, "llama-8b", "H100", 0.0, 8)
    [(_, ttft_s, itl_s, *_)] = kept.consider(ticket, [Instance(spec)], 0.0)
    assert again["predicted"]["itl_s"] == pytest.approx(itl_s, rel=0.02)
    assert again["predicted"]["ttft_s"] == pytest.approx(ttft_s, rel=0.02)
    assert itl_s > 2.0 * naive["itl_s"]
    assert ttft_s > 1.5 * naive["ttft_s"]
