"""The catalogue says what the mission document's own tables say, cell by cell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.config.load import shipped_catalog

DOCUMENT = (Path(__file__).parents[1] / "data" / "traffic_and_slos.md").read_text(encoding="utf-8")
CATALOG = shipped_catalog()


def tables() -> list[list[list[str]]]:
    found: list[list[list[str]]] = []
    rows: list[list[str]] = []
    for line in [*DOCUMENT.splitlines(), ""]:
        if line.startswith("|"):
            cells = [re.sub(r"\*\*|<br>|≤", "", cell).strip() for cell in line.strip("|").split("|")]
            if not set("".join(cells)) <= set(":- "):
                rows.append(cells)
        elif rows:
            found.append(rows)
            rows = []
    return found


def table(first: str) -> list[dict[str, str]]:
    rows = next(rows for rows in tables() if rows[0][0].startswith(first))
    return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]


def seconds(text: str) -> float:
    number, unit = re.match(r"([\d.]+)\s*(ms|s)", text.strip()).groups()
    return float(number) / (1000 if unit == "ms" else 1)


def class_id(text: str) -> str:
    return text.split("(")[0].strip().lower()


def test_profiles_are_the_documents() -> None:
    said = {(int(row["Prompt Tokens"]), int(row["Output Tokens"]), row["Pattern Description"]) for row in table("Prompt Tokens")}
    assert said == {(p.prompt_tokens, p.output_tokens, p.pattern) for p in CATALOG.profiles.values()}


def test_use_cases_are_the_documents_with_ranges_and_second_classes() -> None:
    rows = table("Use Case")
    assert [row["Use Case"] for row in rows] == [use_case.title for use_case in CATALOG.use_cases.values()]
    for row, use_case in zip(rows, CATALOG.use_cases.values(), strict=True):
        profile = CATALOG.profiles[use_case.profile]
        lengths = next(value for key, value in row.items() if key.startswith("Traffic Profile"))
        assert [int(n) for n in re.findall(r"\d+", lengths)] == [profile.prompt_tokens, profile.output_tokens]
        classes = [class_id(part) for part in row["Experience Class"].split("/")]
        if classes == ["batch", "offline"]:
            classes = ["batch"]
        assert [use_case.experience_class, *([use_case.also] if use_case.also else [])] == classes
        targets = use_case.targets.slo
        assert targets.ttft_s == seconds(row["TTFT (p95)"])
        assert targets.itl_s == seconds(row["ITL (p95)"].replace("/token", ""))
        low, _, high = row["E2E (p95)"].partition("–")
        assert targets.e2e_s == seconds(low if not high else f"{low} s")
        assert targets.e2e_limit_s == (seconds(high) if high else targets.e2e_s)


def test_classes_are_the_documents() -> None:
    rows = table("Experience Class")
    for row, (name, class_) in zip(rows, CATALOG.by_rank(), strict=True):
        ttft, itl = (part.split(" ", 1)[1] for part in row["Latency Tolerance"].split("; "))
        assert class_id(row["Experience Class"].split("/")[0]) == name
        assert (class_.tolerance.ttft_s, class_.tolerance.itl_s) == (seconds(ttft), seconds(itl))


@pytest.mark.parametrize("gpu", ["A100", "H100", "L40S", "A10G", "A10", "T4"])
def test_every_gpu_of_the_document_has_its_tier(gpu: str) -> None:
    assert CATALOG.tier_of_gpu(gpu) == {"A100": "premium", "H100": "premium", "L40S": "balanced", "A10G": "balanced"}.get(gpu, "cost")


def test_a_looser_class_loosens_and_a_tighter_one_tightens() -> None:
    own = CATALOG.targets_for("chatbot")
    looser, tighter = CATALOG.targets_for("chatbot", "batch"), CATALOG.targets_for("translation", "instant")
    assert looser.ttft_s > own.ttft_s
    assert tighter.ttft_s < CATALOG.targets_for("translation").ttft_s
    assert CATALOG.targets_for("chatbot", "instant") == own
