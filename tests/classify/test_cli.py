"""`slo-gateway classify`: a body or rows, one answer each, and what is wrong is said without ending the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from gateway.cli.classify import command

TRANSLATE = {"model": "m", "messages": [{"role": "user", "content": "Translate into Spanish: The train leaves at nine."}]}
COMPLETE = {"model": "m", "prompt": "def add(a, b):\n    return", "suffix": "\n"}


def run(text: str, *arguments: str) -> Result:
    return CliRunner().invoke(command, ["-", *arguments], input=text)


def rows(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_body_over_many_lines_is_one_request() -> None:
    result = run(json.dumps(TRANSLATE, indent=2))
    assert result.exit_code == 0
    assert result.stdout.split()[:2] == ["translation", "deferred"]


def test_rows_are_answered_in_their_order_with_everything_there_is_to_say() -> None:
    lines = [{"endpoint": "/v1/chat/completions", "request": TRANSLATE}, {"endpoint": "/v1/completions", "request": COMPLETE, "id": "x"}]
    told = rows(run("\n".join(map(json.dumps, lines)), "--json"))
    assert [row["use_case"] for row in told] == ["translation", "code_completion"]
    for row in told:
        assert list(row) == ["use_case", "experience_class", "probability", "why", "took_s"]
        assert 0 < row["probability"] <= 1
        assert row["took_s"] > 0
    assert told[1]["why"] == "structure: suffix"


def test_the_same_rows_get_the_same_answers_in_any_order() -> None:
    lines = [
        json.dumps({"endpoint": "/v1/chat/completions", "request": {"model": "m", "messages": [{"role": "user", "content": text}]}})
        for text in ("Hello, when do you open?", "Write a poem about the sea.", "Fix my spelling: helo") * 5
    ]
    forwards, backwards = (rows(run("\n".join(order), "--json")) for order in (lines, lines[::-1]))
    assert [(row["use_case"], row["probability"]) for row in forwards] == [(row["use_case"], row["probability"]) for row in backwards[::-1]]


def test_a_wrong_row_is_told_and_the_others_are_answered() -> None:
    lines = [
        {"endpoint": "/v1/chat/completions", "request": {"messages": []}},
        {"endpoint": "/v1/nowhere", "request": TRANSLATE},
        {"endpoint": "/v1/chat/completions", "request": TRANSLATE},
    ]
    result = run("\n".join(map(json.dumps, lines)), "--json")
    told = rows(result)
    assert result.exit_code == 1
    assert "model" in told[0]["error"]
    assert "'/v1/nowhere' is none of" in told[1]["error"]
    assert told[2]["use_case"] == "translation"


def test_a_sites_configuration_decides_where_it_says_something(tmp_path: Path) -> None:
    config = {
        "models": [{"name": "m"}],
        "pools": {"p": {"tier": "cost", "gpu": "L4", "model": "m", "instances": ["http://127.0.0.1:1"]}},
        "use_cases": {"translation": {"experience_class": "interactive"}},
    }
    (tmp_path / "gateway.yaml").write_text(json.dumps(config))
    [row] = rows(run(json.dumps(TRANSLATE), "--json", "--config", str(tmp_path / "gateway.yaml")))
    assert (row["use_case"], row["experience_class"]) == ("translation", "interactive")


def test_a_file_that_is_no_model_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_text("no")
    result = run(json.dumps(TRANSLATE), "--model", str(tmp_path / "x.npz"))
    assert result.exit_code == 1
    assert "is not a model" in result.output
