"""What a load's results are worth: over all that were offered, by the same targets the gateway keeps."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gateway.config.load import shipped_catalog
from gateway.load.bodies import Shot
from gateway.load.client import Shown
from gateway.load.report import WIDE_COLUMNS, Report, beside, pool_shares

CATALOG = shipped_catalog()
CHAT = Shot(0.0, "/v1/chat/completions", b"{}", "chatbot", 3)


def good(ttft_s: float = 0.1, gap_s: float = 0.02, e2e_s: float = 2.0, pool: bytes = b"premium", shot: Shot = CHAT) -> Shown:
    return Shown(
        shot, 0.0, status=200, ttft_s=ttft_s, e2e_s=e2e_s, gaps_s=[gap_s] * 9, deltas=10, output_tokens=10, fields={b"x-slo-pool": pool}
    )


def report(*results: Shown) -> Report:
    made = Report(CATALOG)
    for shown in results:
        made.add(shown)
    return made


@pytest.mark.parametrize(
    ("shown", "missed"),
    [
        (good(), []),
        (good(ttft_s=0.16), ["ttft"]),
        (good(gap_s=0.03), ["itl"]),
        (good(e2e_s=8.0), ["e2e"]),
        (good(ttft_s=1, e2e_s=9), ["ttft", "e2e"]),
    ],
    ids=["kept", "late first token", "slow tokens", "late end", "two at once"],
)
def test_a_promise_is_kept_only_within_every_target(shown: Shown, missed: list[str]) -> None:
    whole = report(shown).all
    assert whole.attained == (not missed)
    assert sorted(whole.missed) == sorted(missed)


def test_refused_and_failed_requests_count_as_offered_and_missed() -> None:
    made = report(
        good(), Shown(CHAT, 0.0, status=429, e2e_s=0.01), Shown(CHAT, 0.0, status=503), Shown(CHAT, 0.0, status=500, error="status 500"),
        Shown(CHAT, 0.0, status=200, error="cut"), Shown(CHAT, 0.0, error="connect: ConnectionRefusedError"),
    )  # fmt: skip
    [chatbot, whole] = made.rows(span_s=10.0)
    assert chatbot["offered"] == whole["offered"] == 6
    assert whole["attained_ratio"] == pytest.approx(1 / 6)
    assert whole["goodput_per_s"] == pytest.approx(0.1)
    assert whole["refused"] == 2
    assert whole["failed"] == {"status 500": 1, "cut": 1, "connect: ConnectionRefusedError": 1}


def test_latencies_are_of_answers_only() -> None:
    [_, whole] = report(good(ttft_s=0.1), good(ttft_s=0.1), Shown(CHAT, 0.0, status=429, e2e_s=0.001)).rows(1.0)
    assert whole["ttft"]["samples"] == whole["e2e"]["samples"] == 2
    assert whole["ttft"]["p95_s"] == pytest.approx(0.1, rel=0.011)
    assert whole["itl"]["samples"] == 18


def test_an_answer_that_was_not_streamed_is_judged_by_its_end() -> None:
    whole = Shown(CHAT, 0.0, status=200, e2e_s=3.0, output_tokens=200)
    late = Shown(CHAT, 0.0, status=200, e2e_s=7.5, output_tokens=200)
    assert report(whole, late).all.attained == 1


def test_rows_follow_the_catalogue_and_the_whole_comes_last() -> None:
    names = list(CATALOG.use_cases)
    made = report(*[good(shot=Shot(0.0, "/v1/chat/completions", b"", name, 1)) for name in reversed(names)])
    assert [row["name"] for row in made.rows(1.0)] == [*names, "all"]


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits_its_terminal_without_cutting_a_word(width: int) -> None:
    pools = (b"balanced", b"cost", b"premium")
    results = [good(2.5, e2e_s=47.3, shot=Shot(0.0, "", b"", name, 1), pool=pool) for name in CATALOG.use_cases for pool in pools]
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(report(*results * 3).table(1.0, "What users got", width=width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert ("lost" in text) is (width < WIDE_COLUMNS)
    assert "/150ms" in text
    assert "balanced 33% cost 33% premium 33%" in text


def test_figures_stand_beside_what_was_promised_in_its_unit() -> None:
    assert beside(0.112, 0.15) == "112/150ms"
    assert beside(7.25, 7.0) == "[red]7.2/7s[/]"
    assert beside(None, 1.0) == "-"
    assert pool_shares({"premium": 1, "cost": 3}) == "cost 75% premium 25%"


def given_up(after_s: float, ttft_s: float | None) -> Shown:
    return Shown(CHAT, 0.0, status=200, error="given up", given_up_after_s=after_s, ttft_s=ttft_s)


def test_what_was_not_waited_for_is_missed_only_if_its_promise_was_broken_already() -> None:
    made = report(good(), given_up(3.0, 0.1), given_up(8.0, 0.1), given_up(0.1, None), given_up(0.2, None))
    [chatbot, whole] = made.rows(span_s=10.0)
    assert (whole["offered"], whole["unfinished"], whole["failed"]) == (3, 2, {"given up": 2})
    assert chatbot["unfinished"] == 2


def test_a_pools_price_is_shared_by_who_kept_it_busy() -> None:
    made = Report(CATALOG, {"premium": 36.0, "cost": 3.6})
    other = Shot(0.0, "/v1/chat/completions", b"{}", "translation", 3)
    for shown in (good(e2e_s=3.0), good(e2e_s=1.0, shot=other), good(e2e_s=2.0, shot=other, pool=b"cost")):
        made.add(shown)
    assert made.usd(made.use_cases["chatbot"], 100.0) == pytest.approx(0.75)
    assert made.usd(made.use_cases["translation"], 100.0) == pytest.approx(0.25 + 0.1)
    assert made.usd(made.all, 100.0) == pytest.approx(1.1)
