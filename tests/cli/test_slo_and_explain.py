"""`slo-gateway slo` and `explain` on a gateway that serves: what people read, what scripts read, and what they exit with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import httpx
import pytest
from click.testing import CliRunner, Result

from gateway.admin.slo import GROUPS
from gateway.cli import slo
from gateway.cli.explain import REASONS
from gateway.cli.main import main
from gateway.core.flow import FailReason, RefuseReason
from tests.conftest import HANG_S, Place, chat, closed_port, until

KEY = "an-admin-key"


@dataclass
class Served:
    """A gateway that has served three requests."""

    admin: str
    ids: list[str]

    def run(self, *arguments: str, key: str = KEY) -> Result:
        return CliRunner().invoke(main, [*arguments, "--url", self.admin], env={"SLO_GATEWAY_ADMIN_KEY": key, "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def served(shared_place: Place) -> Served:
    gateway = shared_place.before(shared_place.engine().url, admin={"port": 0, "key": KEY})
    ids = []
    for use_case, stream in (("chatbot", True), ("chatbot", False), ("research_legal", True)):
        headers = {"x-slo-use-case": use_case}
        answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=chat(stream), headers=headers)
        assert answer.status_code == 200, answer.text
        ids.append(answer.headers["x-request-id"])
    made = Served(gateway.admin, ids)
    until(lambda: json.loads(made.run("slo", "--json").output)["total"]["offered"] == 3, what="three requests to be counted")
    return made


def test_slo_has_a_row_for_each_use_case_and_one_for_all(served: Served) -> None:
    shown = served.run("slo")
    assert shown.exit_code == 0
    rows = {line.split("  ")[0].strip(): line.split() for line in shown.output.splitlines()}
    assert {"chatbot", "research legal", "all"} <= set(rows)
    assert rows["chatbot"][1] == "2"
    assert rows["all"][1] == "3"


def test_slo_as_json_is_what_the_admin_api_tells(served: Served) -> None:
    told = json.loads(served.run("slo", "--json", "--by", "experience_class", "--window", "1m").output)
    assert (told["by"], told["window_s"]) == ("experience_class", 60.0)
    assert {row["name"] for row in told["rows"]} == {"conversational", "batch"}


@pytest.mark.parametrize("by", GROUPS)
def test_slo_can_be_grouped_by_whatever_the_api_can(served: Served, by: str) -> None:
    shown = served.run("slo", "--by", by)
    assert shown.exit_code == 0
    assert shown.output.startswith(by.replace("_", " "))


def test_the_groups_of_the_command_are_those_of_the_api() -> None:
    assert slo.GROUPS == GROUPS


def test_a_wide_table_fits_a_file_and_a_narrow_one_a_terminal_of_80_columns(served: Served) -> None:
    from rich.console import Console

    report = json.loads(served.run("slo", "--json").output)
    for columns in (80, 110):
        console = Console(width=columns, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(slo.page(report, columns))
        lines = console.export_text().splitlines()
        assert max(len(line.rstrip()) for line in lines) <= columns
        assert "…" not in "".join(lines)


def test_nothing_has_ended_yet_and_it_says_so() -> None:
    from rich.console import Console

    report = {"rows": [], "by": "pool", "covered_s": 3.0, "usd_per_hour": 0.0, "total": {"goodput_per_s": 0.0, "offered": 0}}
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(slo.page(report, 80))
    assert console.export_text().strip() == "No request has ended in this window."


def test_watching_goes_on_until_it_is_interrupted(served: Served) -> None:
    command = [sys.executable, "-m", "gateway", "slo", "--watch", "--json", "--url", served.admin]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "SLO_GATEWAY_ADMIN_KEY": KEY}, text=True)
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["total"]["offered"] == 3
    child.send_signal(signal.SIGINT)
    assert child.wait(HANG_S) == 130


def test_explain_tells_the_whole_story_of_a_stream(served: Served) -> None:
    shown = served.run("explain", served.ids[0])
    assert shown.exit_code == 0
    assert served.ids[0] in shown.output
    assert "Taken for chatbot (conversational) because of: header" in shown.output
    assert "Promised: first token in" in shown.output
    assert "sent to premium/" in shown.output
    assert "complete: first token in" in shown.output


def test_explain_does_not_speak_of_a_first_token_that_nobody_sees(served: Served) -> None:
    shown = served.run("explain", served.ids[1])
    assert "it does not stream" in shown.output
    assert "complete: the end in" in shown.output


def test_explain_as_json_has_what_was_predicted_and_what_came(served: Served) -> None:
    told = json.loads(served.run("explain", served.ids[2], "--json").output)
    started = next(step for step in told["steps"] if step["what"] == "started")
    assert started["predicted"]["ttft_s"] > 0
    assert told["steps"][-1]["what"] == "finished"
    assert told["steps"][-1]["got"]["e2e_s"] > 0


def test_every_reason_has_words() -> None:
    assert set(REASONS) == {reason.value for reason in (*RefuseReason, *FailReason)}


@pytest.mark.parametrize("arguments", [("explain", "never-seen"), ("explain", "../../health")])
def test_an_unknown_request_is_a_failed_check(served: Served, arguments: tuple[str, ...]) -> None:
    shown = served.run(*arguments)
    assert shown.exit_code == 1
    assert "Nothing is known of request" in shown.output


@pytest.mark.parametrize("arguments", [("slo", "--by", "colour"), ("slo", "--window", "1y"), ("explain",)])
def test_a_wrong_question_is_a_usage_error(served: Served, arguments: tuple[str, ...]) -> None:
    assert served.run(*arguments).exit_code == 2


def test_without_the_key_it_says_what_is_needed(served: Served) -> None:
    shown = served.run("slo", key="")
    assert shown.exit_code == 1
    assert "admin key is needed" in shown.output


def test_when_nobody_answers_it_exits_with_3() -> None:
    shown = CliRunner().invoke(main, ["slo", "--url", f"http://127.0.0.1:{closed_port()}"])
    assert shown.exit_code == 3
    assert "no gateway answers" in shown.output
