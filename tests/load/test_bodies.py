"""What the load tool sends: jobs in words, of the right length, saying no more of the answer than was asked for."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.load import shipped_catalog
from gateway.config.settings import Limits
from gateway.core.flow import Endpoint
from gateway.load.bodies import CHARS_PER_TOKEN, Lengths, samples, shot
from gateway.openai.body import read
from gateway.simulate.workload import Job

USE_CASES = tuple(shipped_catalog().use_cases)
ENDPOINTS = {"/v1/chat/completions": Endpoint.CHAT, "/v1/completions": Endpoint.COMPLETIONS}


def job(use_case: str, prompt_tokens: int = 512, output_tokens: int = 300) -> Job:
    return Job("1", 0.0, use_case, use_case, "tenant", prompt_tokens, output_tokens)


def test_every_use_case_has_samples_and_each_names_a_licence_that_may_ship() -> None:
    assert set(samples()) == set(USE_CASES)
    rows = [row for rows in samples().values() for row in rows]
    assert {row["licence"] for row in rows} <= {"CC0-1.0", "Apache-2.0", "MIT", "CC-BY-4.0"}
    assert all(row["source"] for row in rows)


def test_every_source_of_a_sample_is_named_in_the_notice(notice: str) -> None:
    for source in {row["source"] for rows in samples().values() for row in rows}:
        assert source.split()[0] in notice


@settings(max_examples=60, deadline=None)
@given(
    use_case=st.sampled_from(USE_CASES),
    prompt_tokens=st.integers(16, 12_000),
    output_tokens=st.integers(1, 3000),
    lengths=st.sampled_from(Lengths),
    seed=st.integers(0, 1000),
)
def test_every_body_is_one_the_gateway_reads(use_case: str, prompt_tokens: int, output_tokens: int, lengths: Lengths, seed: int) -> None:
    made = shot(job(use_case, prompt_tokens, output_tokens), "m", True, Random(seed), lengths)
    body = read(made.body, ENDPOINTS[made.path], Limits())
    assert body.model == "m"
    assert body.stream
    if lengths is Lengths.EXACT:
        assert body.max_output_tokens == output_tokens
    if lengths is Lengths.HIDDEN and body.max_output_tokens is not None:
        assert body.max_output_tokens >= output_tokens  # a cap that would cut the trace's answer is left out


@pytest.mark.parametrize("use_case", USE_CASES)
def test_a_prompt_is_filled_up_to_the_jobs_length(use_case: str) -> None:
    made = shot(job(use_case, prompt_tokens=9000), "m", True, Random(1))
    assert len(json.loads(made.body).get("prompt") or str(json.loads(made.body)["messages"])) > 9000 * CHARS_PER_TOKEN * 0.7


def test_a_hidden_length_is_where_only_a_simulated_engine_looks() -> None:
    told = json.loads(shot(job("chatbot", output_tokens=77), "m", True, Random(3), Lengths.HIDDEN).body)
    assert told["metadata"] == {"simulated_output_tokens": "77"}
    assert told.get("max_tokens") != 77


def test_the_same_seed_makes_the_same_requests() -> None:
    one, two = ([shot(job(use_case), "m", True, chance).body for use_case in USE_CASES] for chance in (Random(5), Random(5)))
    assert one == two
