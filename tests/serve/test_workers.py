"""Several workers are one gateway: one port, one set of figures, one answer, whichever of them is asked."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gateway.config.load import shipped_catalog
from gateway.simulate.workload import Workload, jobs
from tests.conftest import MODEL, Place, Process, until
from tests.serve.conftest import alive, ask, children, completed, metrics, store_of, together, told
from tests.telemetry.test_otlp import Collector


@pytest.fixture(scope="module")
def gateway(shared_place: Place) -> Process:
    log = shared_place.folder / "requests.jsonl"
    made = together(shared_place, shared_place.engine().url, telemetry={"request_log": str(log)})
    return made


@pytest.fixture(scope="module")
def answers(gateway: Process) -> list[httpx.Response]:
    """Of forty requests, each on a connection of its own."""
    got = [ask(gateway) for _ in range(40)]
    assert [answer.status_code for answer in got] == [200] * 40
    return got


def test_both_workers_serve_on_one_port_and_no_request_is_in_two(gateway: Process, answers: list[httpx.Response]) -> None:
    by_worker = [httpx.get(f"{gateway.url}/metrics") for _ in range(3)]
    assert all(answer.status_code == 200 for answer in by_worker)
    # The kernel spreads by address and port: of forty connections some went to each.
    prefixes = {answer.headers["x-request-id"][:12] for answer in answers}
    assert len(prefixes) == 2
    assert len(children(gateway.child.pid)) == 3


def test_metrics_of_all_workers_add_up_exactly_whoever_is_asked(gateway: Process, answers: list[httpx.Response]) -> None:
    for public in (False, True, True, True, True):
        found = metrics(gateway, public)
        assert found["slo_gateway_requests_total"] == 40
        assert found["slo_gateway_e2e_seconds_count"] == 40
        assert found["slo_gateway_ready"] == 1
        assert found["slo_gateway_worker_accepting"] == 2
    text = httpx.get(f"{gateway.admin}/metrics").text
    assert sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("slo_gateway_e2e") and 'le="+Inf"' in line) == 40
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))


def test_every_request_can_be_explained(gateway: Process, answers: list[httpx.Response]) -> None:
    for answer in answers:
        request_id = answer.headers["x-request-id"]
        story = httpx.get(f"{gateway.admin}/admin/requests/{request_id}").json()
        assert story["request_id"] == request_id
    assert httpx.get(f"{gateway.admin}/admin/requests/nobody").status_code == 404


def test_the_report_is_of_all_workers(gateway: Process, answers: list[httpx.Response]) -> None:
    def report() -> dict[str, Any]:
        got: dict[str, Any] = httpx.get(f"{gateway.admin}/admin/slo?window=5m").json()
        return got

    until(lambda: report()["total"]["completed"] == 40)
    assert report()["counted"]["workers"] == 2
    assert report()["counted"]["silent"] == []


def test_instances_queues_and_shares_are_told_once(gateway: Process) -> None:
    assert len(gateway.fleet()) == 1
    assert gateway.waiting() == 0
    until(lambda: httpx.get(f"{gateway.admin}/admin/shares").json()["workers"] == 2)
    shares = httpx.get(f"{gateway.admin}/admin/shares").json()
    assert (shares["state"], shares["controller"]) == ("shared", True)
    assert [lease["instance_id"] for lease in shares["leases"]] == [gateway.fleet()[0]["instance_id"]]


def test_the_workers_say_who_they_are(gateway: Process) -> None:
    workers = told(gateway)["workers"]
    assert [worker["worker"] for worker in workers] == ["0", "1"]
    assert len({worker["instance_id"] for worker in workers}) == 2
    assert {worker["state"] for worker in workers} == {"serving"}


def test_an_instance_is_drained_at_all_workers(gateway: Process) -> None:
    [instance] = [instance["instance_id"] for instance in gateway.fleet()]
    assert httpx.post(f"{gateway.admin}/admin/instances/{instance}/drain").json()["draining"]
    try:
        assert {ask(gateway).status_code for _ in range(8)} == {503}
    finally:
        assert httpx.post(f"{gateway.admin}/admin/instances/{instance}/undrain").status_code == 200
    assert {ask(gateway).status_code for _ in range(8)} == {200}
    assert httpx.post(f"{gateway.admin}/admin/instances/nobody/drain").status_code == 404


def test_the_request_log_is_one_file_of_whole_lines_that_the_simulator_replays(gateway: Process, answers: list[httpx.Response]) -> None:
    log = gateway.log.parent / "requests.jsonl"
    known = {answer.headers["x-request-id"] for answer in answers}
    until(lambda: known <= {json.loads(line)["request_id"] for line in log.read_text().splitlines()})
    assert jobs(Workload(name="again", trace=str(log)), shipped_catalog(), 0.0, 60.0, 1)


def test_the_workers_own_server_is_private_and_bounded(gateway: Process) -> None:
    command = children(gateway.child.pid)[store_of(gateway)]
    where = httpx.get(f"{gateway.admin}/admin/shares").json()["store"]["where"]
    assert where.startswith("unix://")
    assert "127.0.0.1:" not in command
    client = redis.Redis(unix_socket_path=where.removeprefix("unix://"))
    assert client.config_get("port") == {"port": "0"}
    assert client.config_get("save") == {"save": ""}
    assert int(client.config_get("maxmemory")["maxmemory"]) > 0
    assert Path(where.removeprefix("unix://")).parent.stat().st_mode & 0o777 == 0o700


def test_another_gateway_on_the_same_port_is_refused(gateway: Process, shared_place: Place) -> None:
    with pytest.raises(AssertionError, match="cannot listen"):
        shared_place.before("http://127.0.0.1:9", workers=2, listen={"port": gateway.port})


def test_the_end_leaves_nothing_behind_but_what_was_learnt(place: Place) -> None:
    learnt = place.folder / "learnt"
    gateway = together(place, place.engine().url, state={"learnt_file": str(learnt)})
    everybody = list(children(gateway.child.pid))
    with ThreadPoolExecutor(8) as callers:
        assert {answer.status_code for answer in callers.map(lambda _: ask(gateway, max_tokens=8, stream=True), range(120))} == {200}
    where = httpx.get(f"{gateway.admin}/admin/shares").json()["store"]["where"].removeprefix("unix://")
    assert completed(gateway) == 120
    assert gateway.stop(signal.SIGINT) == 0
    assert not [pid for pid in everybody if alive(pid)]
    assert not Path(where).parent.exists()
    assert len(everybody) == 3
    assert learnt.exists()


def test_each_worker_tells_its_collector_as_who_it_is(place: Place, collector: Collector) -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "20",
        "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=pod",
    }
    pool = {"tier": "premium", "model": MODEL, "instances": [place.engine().url]}
    gateway = place.gateway(place.config({"premium": pool}, workers=2, telemetry={"sample_ratio": 1.0}), env=environ)
    ids = {worker["instance_id"] for worker in told(gateway)["workers"]}
    assert {ask(gateway).status_code for _ in range(20)} == {200}
    linked: set[str] = set()
    for address in (gateway.admin, gateway.url):
        answer = httpx.get(f"{address}/metrics", headers={"accept": "application/openmetrics-text"})
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}
        samples = families["slo_gateway_e2e_seconds"].samples
        linked |= {sample.exemplar.labels["trace_id"] for sample in samples if sample.exemplar is not None}
    gateway.stop()
    assert linked
    assert linked <= {span.trace_id.hex() for span in collector.spans()}
    heard: dict[str, int] = {}
    for request in collector.metrics:
        for part in request.resource_metrics:
            [name] = [one.value.string_value for one in part.resource.attributes if one.key == "service.instance.id"]
            for scope in part.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == "slo_gateway.e2e":
                        heard[name] = sum(point.count for point in metric.histogram.data_points)
    assert set(heard) == ids
    assert sum(heard.values()) == 20


def test_readiness_is_that_of_the_whole_on_both_ports(place: Place) -> None:
    gateway = place.before("http://127.0.0.1:9", workers=2)
    for address in (gateway.admin, gateway.url, gateway.url, gateway.url):
        until(lambda address=address: httpx.get(f"{address}/readyz").status_code == 503)  # type: ignore[misc]
        assert httpx.get(f"{address}/readyz").json()["reason"] == "no engine answers"
    assert metrics(gateway)["slo_gateway_ready"] == 0


def test_one_worker_has_nobody_to_take_its_place_and_stays(place: Place) -> None:
    gateway = place.before(place.engine().url)
    gateway.child.send_signal(signal.SIGUSR2)
    until(lambda: "this gateway has one" in gateway.text())
    assert httpx.post(f"{gateway.admin}/admin/restart").status_code == 409
    assert ask(gateway).status_code == 200
    [worker] = told(gateway)["workers"]
    assert (worker["pid"], worker["state"]) == (gateway.child.pid, "serving")
