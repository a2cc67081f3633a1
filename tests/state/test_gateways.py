"""Gateways that share engines and quotas through one server, from outside: what an engine sees, and what clients get when it is lost."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec

from gateway.state.names import Names
from tests.conftest import MODEL, Place, Process, until
from tests.state.sharing import Server

LIMIT = 3


def gateways(place: Place, server: Server, engine: Process, **more: Any) -> list[Process]:
    state = {"url": f"unix://{server.socket}"} | more.pop("state", {})
    return [place.before(engine.url, limit=LIMIT, state=state, **more) for _ in range(2)]


def ask(gateway: Process, key: str = "any", tokens: int = 4) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens}
    headers = {"authorization": f"Bearer {key}", "x-slo-class": "batch"}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers)


def shares(gateway: Process) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(f"{gateway.admin}/admin/shares").json()
    return told


def leased(server: Server) -> int:
    """By all together, at one moment."""
    records = server.client().hgetall(Names("default").slots)
    return sum(row[0] for name, record in records.items() if name for row in msgspec.msgpack.decode(record)[1].values())


def most_in_flight(engine: Process) -> int:
    return int(httpx.get(f"{engine.url}/state").json()["most_in_flight"])


def test_an_engine_never_has_more_than_its_limit_from_all_gateways_together(place: Place, server: Server) -> None:
    engine = place.engine()
    both = gateways(place, server, engine)
    until(lambda: all(shares(gateway)["workers"] == 2 for gateway in both))
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda n: ask(both[n % 2], tokens=10).status_code, range(36)))
    assert answers == [200] * 36
    assert 2 <= most_in_flight(engine) <= LIMIT
    assert leased(server) <= LIMIT


def test_a_killed_gateways_slots_go_to_the_other(place: Place, server: Server) -> None:
    engine = place.engine()
    first, second = gateways(place, server, engine)
    until(lambda: shares(second)["workers"] == 2)
    first.child.kill()
    until(lambda: shares(second)["leases"][0]["slots"] == LIMIT)
    assert ask(second).status_code == 200


def test_a_quota_is_one_for_all_gateways(place: Place, server: Server) -> None:
    keys = [{"id": "k", "sha256": hashlib.sha256(b"k").hexdigest(), "quota": {"requests_per_minute": 10}}]
    both = gateways(place, server, place.engine(), keys=keys)
    until(lambda: all(shares(gateway)["workers"] == 2 for gateway in both))
    answers = [ask(both[n % 2], "k") for n in range(30)]
    assert 8 <= sum(answer.status_code == 200 for answer in answers) <= 10
    until(lambda: {quota["remaining"] for gateway in both for quota in shares(gateway)["quotas"]} <= {0, 1, 2})
    assert answers[-1].status_code == 429


def test_what_is_asked_of_the_server_does_not_grow_with_requests(place: Place, server: Server) -> None:
    keys = [{"id": "k", "sha256": hashlib.sha256(b"k").hexdigest(), "quota": {"requests_per_minute": 10_000, "concurrent": 100}}]
    gateway = place.before(place.engine().url, limit=64, state={"url": f"unix://{server.socket}"}, keys=keys)

    def scripts_run() -> int:
        told = server.client().info("commandstats")
        return sum(told[name]["calls"] for name in ("cmdstat_eval", "cmdstat_evalsha") if name in told)

    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    before, began_s = scripts_run(), time.monotonic()
    with ThreadPoolExecutor(8) as pool, httpx.Client(base_url=gateway.url, headers={"authorization": "Bearer k"}) as client:
        answers = pool.map(lambda _: client.post("/v1/chat/completions", json=body).status_code, range(300))
        assert list(answers) == [200] * 300
    # 34 a second for slots at most, 10 for quotas, 2 for the controller lease.
    assert scripts_run() - before <= 46 * (time.monotonic() - began_s) + 10


def test_open_goes_on_without_the_server_and_says_so(place: Place, server: Server) -> None:
    both = gateways(place, server, place.engine())
    until(lambda: all(shares(gateway)["workers"] == 2 for gateway in both))
    server.kill()
    until(lambda: all(shares(gateway)["state"] == "lost" for gateway in both))
    assert [ask(gateway).status_code for gateway in both for _ in range(4)] == [200] * 8
    assert "slo_gateway_state_shared 0" in httpx.get(f"{both[0].admin}/metrics").text
    assert sum(lease["slots"] for gateway in both for lease in shares(gateway)["leases"]) == LIMIT
    server.start()
    until(lambda: all(shares(gateway)["state"] == "shared" for gateway in both))
    assert ask(both[0]).status_code == 200


def test_closed_refuses_without_the_server_until_it_is_back(place: Place, server: Server) -> None:
    gateway = gateways(place, server, place.engine(), state={"lost": "closed"})[0]
    until(lambda: shares(gateway)["state"] == "shared")
    assert ask(gateway).status_code == 200
    server.kill()
    until(lambda: shares(gateway)["state"] == "lost")
    refused = ask(gateway)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_capacity")
    assert refused.headers["retry-after"]
    server.start()
    until(lambda: shares(gateway)["state"] == "shared")
    assert ask(gateway).status_code == 200


def test_a_gateway_starts_without_the_server(place: Place, server: Server) -> None:
    server.kill()
    gateway = gateways(place, server, place.engine())[0]
    assert shares(gateway)["state"] == "lost"
    assert ask(gateway).status_code == 200
