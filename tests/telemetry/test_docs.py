"""docs/metrics.md, the dashboard and the alert rules name what exists, and everything that exists is in docs/metrics.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ruamel.yaml import YAML

from gateway.measure.log_line import LogLine
from gateway.telemetry.instruments import METRICS, RESULTS, Metric
from gateway.telemetry.points import otlp_name

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/metrics.md").read_text()
RULES: dict[str, Any] = YAML(typ="safe").load(ROOT / "deploy/prometheus/slo_gateway.rules.yaml")
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/slo_gateway.json").read_text())


def row(metric: Metric) -> str:
    labels = " ".join(f"`{label}`" for label in metric.labels) or "none"
    return f"| `{metric.name}` | {metric.kind} | {labels} | `{otlp_name(metric)}` | {metric.about} |"


def expressions() -> list[str]:
    panels = [t["expr"] for panel in DASHBOARD["panels"] for t in panel.get("targets", ())]
    variables = [v["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    return panels + variables + [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_is_documented_as_it_is(metric: Metric) -> None:
    assert row(metric) in PAGE.splitlines()


def test_nothing_is_documented_that_does_not_exist() -> None:
    documented = re.findall(r"^\| `((?:slo_gateway|gen_ai)_\w+)`", PAGE, re.MULTILINE)
    assert sorted(documented) == sorted(metric.name for metric in METRICS)


def test_the_fields_of_the_request_log_are_documented_in_their_order() -> None:
    section = PAGE.split("## The request log")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [field.name for field in msgspec.structs.fields(LogLine)]


@pytest.mark.parametrize("expression", expressions())
def test_dashboard_and_alerts_ask_for_what_exists(expression: str) -> None:
    every: dict[str, Metric] = {}
    for metric in METRICS:
        names = [metric.name + suffix for suffix in ("_bucket", "_sum", "_count")] if metric.kind == "histogram" else [metric.name]
        every |= dict.fromkeys(names, metric)
    recorded = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
    asked = re.findall(r"\b((?:slo_gateway|gen_ai)_\w+(?::\w+)*|slo_gateway:\w+(?::\w+)*)(?:{([^}]*)})?", expression)
    assert asked
    for name, matchers in asked:
        assert name in every or name in recorded, name
        if name in every:
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert labels <= {*every[name].labels, "le", "instance", "job"}, (name, labels)
    for values in re.findall(r'result=~?"([^"]*)"', expression):
        assert set(values.split("|")) <= set(RESULTS)


def test_every_class_that_burns_its_budget_alerts() -> None:
    alerts = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
    burning = [rule for rule in alerts if "BurnRate" in rule["alert"]]
    assert {rule["labels"]["severity"] for rule in burning} == {"page", "ticket"}
    for rule in alerts:
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


def test_panels_do_not_cover_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
