"""The operator's port: every endpoint answers, to those who may ask, and is described as it is."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gateway.admin.control import ENDPOINTS
from gateway.core.flow import Endpoint, Request
from tests.admin.conftest import KEY, MODEL, Operator
from tests.measure.conftest import waiting

INSTANCE = "premium/127.0.0.1:9"
GUARDED = [(e.method, re.sub(r"{\w+}", "x", e.path)) for e in ENDPOINTS]


class Waiting:
    """Whoever is told of a ticket's fate."""

    def __init__(self) -> None:
        self.started_at: Any = None

    def started(self, placement: Any) -> None:
        self.started_at = placement


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("sent", [None, "", "another", KEY + "x", KEY[:-1]])
def test_without_the_key_nothing_under_admin_is_told_or_done(operator: Operator, method: str, path: str, sent: str | None) -> None:
    answer = operator.ask(path, method, key=KEY, sent=sent)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_admin_key"
    assert not operator.worker.drained


@pytest.mark.parametrize("path", ["/health", "/livez", "/metrics", "/admin/", "/openapi.json"])
def test_health_metrics_and_the_page_need_no_key(operator: Operator, path: str) -> None:
    assert operator.ask(path, key=KEY).status_code == 200


def test_with_the_key_it_answers(operator: Operator) -> None:
    assert operator.ask("/admin/fleet", key=KEY, sent=KEY).status_code == 200


def test_the_fleet_lists_every_instance(operator: Operator) -> None:
    fleet = operator.json("/admin/fleet")
    assert [i["instance_id"] for i in fleet] == [INSTANCE, "premium/127.0.0.1:19", "cost/127.0.0.1:29"]
    assert {i["gpu"] for i in fleet} == {"H100", "L4"}


def test_a_drained_instance_gets_nothing_new_until_it_is_brought_back(operator: Operator) -> None:
    told = operator.ask(f"/admin/instances/{INSTANCE}/drain", "POST").json()
    assert told == {"instance_id": INSTANCE, "draining": True}
    [shown] = [i for i in operator.json("/admin/fleet") if i["instance_id"] == INSTANCE]
    assert shown["draining"]
    operator.ask(f"/admin/instances/{INSTANCE}/undrain", "POST")
    [shown] = [i for i in operator.json("/admin/fleet") if i["instance_id"] == INSTANCE]
    assert not shown["draining"]


def test_draining_what_is_not_there_is_a_404(operator: Operator) -> None:
    answer = operator.ask("/admin/instances/premium/nobody/drain", "POST")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_instance"


def test_explain_tells_why_a_request_went_where_it_went(operator: Operator) -> None:
    worker = operator.worker
    request = Request("req-7", Endpoint.CHAT, MODEL, "acme", True, 512, 256, 2048, operator.views.now_s())
    ticket = worker.live.ticket(request, waiting().tag, Waiting())
    worker.live.submit(ticket)
    story = operator.json("/admin/requests/req-7")
    assert (story["use_case"], story["why"]) == ("chatbot", "header")
    assert story["steps"][0]["what"] in ("started", "queued")
    assert story["targets"]["ttft_s"] == pytest.approx(0.15)


def test_explain_of_an_unknown_request_is_a_404(operator: Operator) -> None:
    answer = operator.ask("/admin/requests/never-seen")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_request"


def test_the_configuration_in_force_is_shown_without_its_secrets(operator: Operator) -> None:
    shown = operator.json("/admin/config")
    assert shown["models"][0]["name"] == MODEL


def test_a_reload_without_a_file_is_refused_and_says_so(operator: Operator) -> None:
    answer = operator.ask("/admin/reload", "POST")
    assert answer.status_code == 422
    assert not answer.json()["ok"]
    assert answer.json()["problems"]


def test_the_version_says_what_runs(operator: Operator) -> None:
    version = operator.json("/admin/version")
    assert (version["mode"], version["policy"]) == ("enforce", operator.worker.loaded.settings.policy)


def test_the_page_may_run_nothing_from_elsewhere(operator: Operator) -> None:
    page = operator.ask("/admin/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)=[\"']https?:", page.text)


def test_home_leads_to_the_page(operator: Operator) -> None:
    for path in ("/", "/admin"):
        assert operator.ask(path).headers["location"] == "/admin/"


def test_an_unknown_path_is_an_openai_error(operator: Operator) -> None:
    answer = operator.ask("/admin/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_wrong_method_says_which_is_right(operator: Operator) -> None:
    answer = operator.ask("/admin/reload")
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]


# ---- the description


def resolved(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    target: dict[str, Any] = whole["components"]["schemas"][reference.rsplit("/", 1)[1]]
    return target


def test_every_path_is_described_and_every_description_is_a_path(operator: Operator) -> None:
    described = operator.json("/openapi.json")
    paths = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    assert {(e.method, e.path) for e in ENDPOINTS} <= paths
    for method, path in paths:
        answer = operator.ask(re.sub(r"{\w+}", "x", path), method)
        assert answer.status_code != 405
        assert answer.json()["error"]["code"] != "unknown_url" if answer.status_code == 404 else True


def test_every_reference_of_the_description_leads_somewhere(operator: Operator) -> None:
    described = operator.json("/openapi.json")
    for reference in re.findall(r'"#/components/schemas/(\w+)"', operator.ask("/openapi.json").text):
        assert reference in described["components"]["schemas"]


def test_answers_have_the_fields_that_are_described(operator: Operator) -> None:
    operator.traffic()
    described = operator.json("/openapi.json")
    for path in ("/admin/slo", "/admin/fleet", "/admin/version"):
        answer = operator.json(path)
        schema = described["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        if schema.get("type") == "array":
            schema, answer = schema["items"], answer[0]
        assert set(answer) == set(resolved(schema, described)["properties"])
