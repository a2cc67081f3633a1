"""Does the promise hold, and for whom: the arithmetic of `GET /admin/slo`."""

from __future__ import annotations

import pytest

from gateway.admin.slo import GROUPS, window_s
from tests.admin.conftest import Operator
from tests.measure.conftest import SUMMARY, completed, placed


def test_a_class_attains_over_what_it_was_offered(operator: Operator) -> None:
    operator.traffic()
    report = operator.json("/admin/slo?by=experience_class&window=5m")
    rows = {row["name"]: row for row in report["rows"]}
    assert set(rows) == {"conversational", "interactive"}
    chat = rows["conversational"]
    assert (chat["offered"], chat["completed"], chat["attained"]) == (10, 9, 8)
    assert chat["attained_ratio"] == pytest.approx(0.8)
    assert chat["refused"] == {"cannot_meet_slo": 1}
    assert chat["missed"] == {"ttft": 1, "itl": 0, "e2e": 0}
    assert chat["client_gone"] == 1
    assert rows["interactive"]["failed"] == {"cut": 1}


def test_the_total_is_the_sum_of_its_rows_however_they_are_grouped(operator: Operator) -> None:
    operator.traffic()
    for by in GROUPS:
        report = operator.json(f"/admin/slo?by={by}")
        for figure in ("offered", "completed", "attained", "client_gone", "output_tokens"):
            assert sum(row[figure] for row in report["rows"]) == report["total"][figure], (by, figure)


def test_the_burn_rate_is_the_spent_share_of_the_error_budget(operator: Operator) -> None:
    operator.traffic()
    report = operator.json("/admin/slo?by=use_case")
    rows = {row["name"]: row for row in report["rows"]}
    assert report["objective_ratio"] == 0.95
    assert rows["chatbot"]["burn_rate"] == pytest.approx(0.2 / 0.05)
    assert rows["summarization_short"]["burn_rate"] == pytest.approx((1 / 3) / 0.05)


def test_with_nothing_offered_there_is_no_ratio(operator: Operator) -> None:
    report = operator.json("/admin/slo")
    assert report["rows"] == []
    assert report["total"]["attained_ratio"] is None
    assert report["total"]["burn_rate"] is None
    assert report["total"]["goodput_per_s"] == 0.0


def test_goodput_is_attained_requests_over_the_time_covered(operator: Operator) -> None:
    operator.traffic()
    report = operator.json("/admin/slo")
    assert report["total"]["goodput_per_s"] == pytest.approx(10 / report["covered_s"])


def test_percentiles_stand_beside_the_target_when_all_were_promised_the_same(operator: Operator) -> None:
    operator.traffic()
    rows = {row["name"]: row for row in operator.json("/admin/slo?by=use_case")["rows"]}
    ttft = rows["chatbot"]["latencies"]["ttft"]
    assert ttft["samples"] == 9
    assert ttft["p50_s"] == pytest.approx(0.1, rel=0.011)
    assert ttft["p95_s"] == pytest.approx(0.4, rel=0.011)
    assert ttft["target_s"] == pytest.approx(0.15)
    assert ttft["within_ratio"] == pytest.approx(8 / 9)


def test_where_promises_differ_no_target_is_shown(operator: Operator) -> None:
    operator.worker.attainment.observe(placed("cost", use_case="chatbot"), completed(), operator.views.now_s())
    other = {"use_case": "summarization_short", "experience_class": "interactive", "targets": SUMMARY}
    operator.worker.attainment.observe(placed("cost", **other), completed(), operator.views.now_s())
    [row] = operator.json("/admin/slo?by=pool")["rows"]
    assert row["latencies"]["ttft"]["target_s"] is None
    assert row["latencies"]["ttft"]["samples"] == 2


def test_a_request_that_was_never_placed_is_in_no_pool(operator: Operator) -> None:
    operator.traffic()
    rows = {row["name"]: row for row in operator.json("/admin/slo?by=pool")["rows"]}
    assert rows["(none)"]["offered"] == 1
    assert rows["premium"]["offered"] == 9


def test_tenants_are_told_apart(operator: Operator) -> None:
    operator.traffic()
    rows = {row["name"]: row for row in operator.json("/admin/slo?by=tenant")["rows"]}
    assert (rows["acme"]["offered"], rows["globex"]["offered"]) == (10, 3)


@pytest.mark.parametrize(("text", "seconds"), [("10s", 10.0), ("5m", 300.0), ("2h", 7200.0), ("7200s", 7200.0)])
def test_a_window_is_written_as_people_do(text: str, seconds: float) -> None:
    assert window_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "9s", "3h", "-5m", "5 m", "1.5h", "٣m", "9999999s", "²m"])
def test_a_window_that_is_none_is_a_400_that_says_how_to_write_it(operator: Operator, text: str) -> None:
    answer = operator.ask(f"/admin/slo?window={text}")
    assert answer.status_code == 400
    assert "window" in answer.json()["error"]["message"]


def test_an_unknown_grouping_is_a_400_that_lists_the_known_ones(operator: Operator) -> None:
    answer = operator.ask("/admin/slo?by=colour")
    assert answer.status_code == 400
    for by in GROUPS:
        assert by in answer.json()["error"]["message"]
