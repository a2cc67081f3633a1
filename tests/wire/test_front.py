"""What a worker's connections share, asked by itself: ids, figures in heads, and what is learnt from an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import policies
from gateway.config.build import core_settings
from gateway.config.load import of_settings
from gateway.config.reading import read_as
from gateway.config.settings import Settings
from gateway.core.decide import Core
from gateway.core.flow import Endpoint, FailReason, Outcome, Placement, Request, Result, SloTargets, Tag, Ticket
from gateway.live import Live
from gateway.measure.attainment import Attainment, edges_of
from gateway.predict.prompts import PromptRatios
from gateway.wire.answers import duration
from gateway.wire.exchange import _request_ids
from gateway.wire.front import Front
from gateway.wire.upstream import Upstreams

TARGETS = SloTargets(ttft_s=1.0, itl_s=0.05, e2e_s=60.0, e2e_limit_s=60.0)


@pytest.fixture
def front() -> Iterator[Front]:
    pools = {"p": {"tier": "balanced", "model": "m", "instances": ["http://a"]}}
    loaded = of_settings(read_as(Settings, {"models": [{"name": "m"}], "pools": pools}))
    core = Core(core_settings(loaded.settings, loaded.catalog), policies.load("best_value")(Random(0)), None)
    loop = asyncio.new_event_loop()
    yield Front(loop, Live(core, lambda: 0.0), Upstreams(), Attainment(edges_of(loaded.catalog), 0.0).cell, PromptRatios(), 1)
    loop.close()


def placement_on(instance_id: str) -> Placement:
    request = Request("r", Endpoint.CHAT, "m", "t", True, 100, None, 400, 0.0)
    ticket = Ticket(request, Tag("chatbot", "interactive", 2, TARGETS, ("balanced",), 256, "test"), 1.0, 60.0, 256.0)
    return Placement(ticket, instance_id, "p", "balanced", "m", 0.0)


def test_whose_requests_fail_is_told_once_that_they_do_no_more(front: Front) -> None:
    recovered: list[str] = []
    front.on_recovered = recovered.append
    answered = Outcome(Result.COMPLETED, prompt_tokens=100, tokens_estimated=False)
    front.attempt_failed(placement_on("a"), FailReason.CONNECT)
    for instance_id in ("b", "a", "a"):
        front.completed(placement_on(instance_id), answered, 400)
    assert recovered == ["a"]


def test_an_answer_that_was_counted_teaches_how_long_prompts_are(front: Front) -> None:
    front.completed(placement_on("a"), Outcome(Result.COMPLETED, prompt_tokens=50, tokens_estimated=True), 100)
    assert front.prompts.tokens("t", "m", 1000) == 250
    front.completed(placement_on("a"), Outcome(Result.COMPLETED, prompt_tokens=50, tokens_estimated=False), 100)
    assert front.prompts.tokens("t", "m", 1000) == 500


def test_ids_of_requests_are_all_different_and_of_one_length() -> None:
    ids = [*islice(_request_ids(), 1000), *islice(_request_ids(), 1000)]
    assert len(set(ids)) == 2000
    assert {(len(each), each.isalnum()) for each in ids} == {(20, True)}


@given(st.floats(0.0, 100.0))
def test_time_in_the_queue_is_told_to_a_tenth_of_a_millisecond(seconds: float) -> None:
    told = duration(seconds)
    assert told == b"%.1f" % float(told)
    assert abs(float(told) - seconds * 1000.0) <= 0.05 + 1e-6
