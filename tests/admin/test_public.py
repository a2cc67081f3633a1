"""What applications and load balancers may ask of the applications' port."""

from __future__ import annotations

import pytest

from gateway.admin.public import INFERENCE_PATHS, METRICS_TYPE
from tests.admin.conftest import MODEL, Operator


def test_the_models_are_listed_as_openai_lists_them(operator: Operator) -> None:
    listed = operator.ask("/v1/models", public=True).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == [MODEL]
    assert operator.ask(f"/v1/models/{MODEL}", public=True).json() == listed["data"][0]


def test_a_model_that_is_not_there_is_a_404(operator: Operator) -> None:
    answer = operator.ask("/v1/models/no/such<model>", public=True)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_it_lives_when_it_answers(operator: Operator) -> None:
    for path in ("/health", "/livez"):
        assert operator.ask(path, public=True).json() == {"status": "ok"}


def test_it_is_not_ready_while_it_shuts_down(operator: Operator) -> None:
    operator.views.draining = True
    answer = operator.ask("/readyz", public=True)
    assert answer.status_code == 503
    assert answer.json() == {"status": "not ready", "reason": "shutting down"}


@pytest.mark.parametrize("public", [True, False])
def test_metrics_are_prometheus_text(operator: Operator, public: bool) -> None:
    operator.traffic()
    answer = operator.ask("/metrics", public=public)
    assert answer.headers["content-type"] == METRICS_TYPE
    assert "slo_gateway_requests_total{" in answer.text


@pytest.mark.parametrize("path", INFERENCE_PATHS)
def test_an_inference_path_is_posted_to(operator: Operator, path: str) -> None:
    answer = operator.ask(path, public=True)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


def test_nothing_of_the_operators_is_on_the_applications_port(operator: Operator) -> None:
    for path in ("/admin/", "/admin/fleet", "/openapi.json"):
        assert operator.ask(path, public=True).status_code == 404
