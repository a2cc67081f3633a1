"""What is sent in a simulation: made from a seed with the figures asked for, or replayed from traces and the gateway's own log."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.measure.log_line import line_of
from gateway.simulate.knee import Point, shipped_catalog, simulate
from gateway.simulate.suite import load_suite
from gateway.simulate.workload import Job, Workload, jobs, trace_rows
from tests.measure.conftest import completed, placed

CATALOG = shipped_catalog()


def sent(rate: float = 20.0, span_s: float = 400.0, seed: int = 3, **more: Any) -> list[Job]:
    return jobs(Workload(**more), CATALOG, rate, span_s, seed)


def gaps(made: list[Job]) -> list[float]:
    return [after.at_s - before.at_s for before, after in pairwise(made)]


def cv(values: list[float]) -> float:
    return statistics.pstdev(values) / statistics.mean(values)


def test_the_same_seed_makes_the_same_jobs_in_order_of_arrival() -> None:
    assert sent() == sent() != sent(seed=4)
    assert all(gap >= 0 for gap in gaps(sent()))


def test_a_higher_rate_squeezes_the_same_jobs_together() -> None:
    slow, fast = sent(10.0, 100.0), sent(20.0, 50.0)
    assert [(job.use_case, job.prompt_tokens, job.output_tokens) for job in slow] == [
        (job.use_case, job.prompt_tokens, job.output_tokens) for job in fast
    ]


@pytest.mark.parametrize(("arrivals", "spread", "expected"), [("poisson", 1.0, 1.0), ("gamma", 3.0, 3.0)])
def test_arrivals_have_the_rate_and_the_burstiness_asked_for(arrivals: str, spread: float, expected: float) -> None:
    made = sent(50.0, 1_000.0, arrivals=arrivals, cv=spread)
    assert len(made) == pytest.approx(50_000, rel=0.05)
    assert cv(gaps(made)) == pytest.approx(expected, rel=0.1)


def test_lengths_are_around_the_profile_and_never_without_end() -> None:
    made = [job for job in sent() if job.use_case == "chatbot"]
    profile = CATALOG.profiles[CATALOG.use_cases["chatbot"].profile]
    assert statistics.mean(job.prompt_tokens for job in made) == pytest.approx(profile.prompt_tokens, rel=0.1)
    assert statistics.mean(job.output_tokens for job in made) == pytest.approx(profile.output_tokens, rel=0.1)
    assert max(job.output_tokens for job in made) <= 3 * profile.output_tokens


def test_mixes_tenants_surges_and_shifts_are_as_described() -> None:
    mixed = Counter(job.use_case for job in sent(mix={"chatbot": 3.0, "translation": 1.0}))
    assert mixed["chatbot"] / mixed["translation"] == pytest.approx(3.0, rel=0.1)
    tenants = Counter(job.tenant for job in sent(tenants={"loud": 10.0, "quiet": 1.0}))
    assert tenants["loud"] / tenants["quiet"] == pytest.approx(10.0, rel=0.2)
    surge = sent(surge=(100.0, 200.0, 4.0))
    assert sum(100 <= job.at_s < 200 for job in surge) == pytest.approx(4 * sum(job.at_s < 100 for job in surge), rel=0.1)
    plain, shifted = sent(), sent(shift_at_s=200.0, shift_ratio=2.0)
    pairs = [(b.output_tokens, a.output_tokens) for b, a in zip(plain, shifted, strict=True) if a.at_s >= 200.0]
    assert all(after == before * 2 for before, after in pairs)


def test_what_callers_and_classifiers_say_may_be_wrong_and_the_truth_is_kept() -> None:
    wrong = sent(classifier_error=0.1)
    assert sum(job.tagged != job.use_case for job in wrong) / len(wrong) == pytest.approx(0.1, rel=0.2)
    assert all(job.max_output_tokens and job.max_output_tokens >= job.output_tokens for job in sent(max_tokens="honest"))
    assert {job.max_output_tokens for job in sent(max_tokens="wrong")} == {4096}


# ---- replays


@pytest.mark.parametrize(("trace", "least"), [("azure_code", 0.9), ("azure_conv", 0.5), ("azure", 1.0), ("mooncake", 0.5)])
def test_a_trace_keeps_its_own_gaps_and_lengths(trace: str, least: float) -> None:
    rows = trace_rows(trace, CATALOG)
    assert rows[0].at_s == 0.0
    assert len(rows) > 3_000
    assert {row.use_case for row in rows} <= set(CATALOG.use_cases)
    assert all(row.prompt_tokens > 0 and row.output_tokens > 0 for row in rows)
    replay = sent(0.0, 200.0, trace=trace, arrivals="raw")
    lengths = {(row.prompt_tokens, row.output_tokens) for row in rows}
    assert {(job.prompt_tokens, job.output_tokens) for job in replay} <= lengths
    assert cv(gaps(sent(2.0, 600.0, trace=trace))) > least


def test_a_replay_at_a_rate_has_that_rate() -> None:
    assert len(sent(8.0, 1_000.0, trace="azure")) == pytest.approx(8_000, rel=0.25)


def test_mooncakes_conversations_come_with_what_they_share() -> None:
    rows = trace_rows("mooncake", CATALOG)
    assert all(len(row.hashes) <= row.prompt_tokens // 256 for row in rows)
    first = Counter(row.hashes[0] for row in rows if row.hashes)
    assert first.most_common(1)[0][1] > 100


def test_the_gateways_own_request_log_is_replayed(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    lines = [msgspec.json.encode(line_of(placed(), completed(), 1_700_000_000.0 + at_s)) for at_s in (4.0, 0.0, 1.5)]
    log.write_bytes(b"\n".join(lines) + b"\n")
    rows = trace_rows(str(log), CATALOG)
    assert [row.at_s for row in rows] == [0.0, 1.5, 4.0]
    assert {row.use_case for row in rows} == {"chatbot"}
    assert all(row.output_tokens == json.loads(lines[0])["output_tokens"] for row in rows)
    run = simulate(Point("1xH100", Workload(trace=str(log), arrivals="raw"), "best_value", "learning", None, 0.0, 1, 10.0, 0.0))
    assert len(run.records) > 3  # it starts over when it ends
    assert all(record.attained for record in run.records)


def test_a_replay_leaves_nobody_out_and_keeps_what_was_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    plain = json.loads(msgspec.json.encode(line_of(placed(), completed(), 1_700_000_000.0)))
    refused = {**plain, "result": "refused", "output_tokens": 0, "arrived_unix_s": 1_700_000_001.0, "max_output_tokens": 7}
    degraded = {**plain, "degraded_from": "instant", "experience_class": "deferred", "arrived_unix_s": 1_700_000_002.0}
    whole = {**plain, "stream": False, "model": "other", "arrived_unix_s": 1_700_000_003.0}
    stranger = {**plain, "use_case": "translation", "result": "refused", "output_tokens": 0, "arrived_unix_s": 1_700_000_004.0}
    log.write_text("\n".join(json.dumps(line) for line in (plain, refused, degraded, whole, stranger)))
    rows = trace_rows(str(log), CATALOG)
    assert [row.at_s for row in rows] == [0.0, 1.0, 2.0, 3.0]  # of the last one nobody knows how long an answer would have been
    assert rows[0].output_tokens == plain["output_tokens"] > 7 == rows[1].output_tokens
    assert (rows[2].experience_class, rows[2].may_degrade) == ("instant", True)
    assert (rows[3].stream, rows[3].model) == (False, "other")


def test_a_trace_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        trace_rows(str(tmp_path / "nothing.jsonl"), CATALOG)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(ValueError, match="no request in it"):
        trace_rows(str(empty), CATALOG)


# ---- suites


GOOD = """
title: small
span: 30s
workloads:
  bursty: {arrivals: gamma, cv: 3}
cases:
  - {fleet: 1xH100, workload: bursty, faults: [{kind: slow, at: 5s}]}
policies: [best_value, edf, {policy: headroom, limits: [4]}]
limits: [8, 16]
"""


def suite_of(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    return load_suite(str(path))


def test_a_suite_reads_as_it_is_written(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, GOOD)
    assert suite.span_s == 30.0
    assert suite.workload("bursty") == replace(Workload(), name="bursty", arrivals="gamma", cv=3)
    assert [entry.limits for entry in suite.entries()] == [(), (8, 16), (4,)]
    assert suite.cases[0].faults[0].fault().at_s == 5.0


@pytest.mark.parametrize("name", ["quick", "full"])
def test_the_shipped_suites_are_read(name: str) -> None:
    assert load_suite(name).cases


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("span: 30s", "span: 30", "span"),
        ("kind: slow", "kind: tired", "cases.0.faults.0.kind"),
        ("workload: bursty", "workload: calm", "names the workload 'calm'"),
        ("cv: 3", "cw: 3", "cw"),
        ("title: small", "titel: small", "titel"),
        ("cases:", "cases: [", "not YAML"),
        ("limits: [8, 16]", "limits: [0]", "limits.0"),
    ],
)
def test_a_suite_that_is_wrong_says_where(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        suite_of(tmp_path, GOOD.replace(old, new))
    assert "suite.yaml" in str(raised.value)


def test_a_suite_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="neither a file nor one of full, quick"):
        load_suite("nothing")
