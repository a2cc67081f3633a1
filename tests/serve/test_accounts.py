"""Counts of several workers are one: exact, whatever their size, and never less than they were."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.config.handed import handed, taken
from gateway.config.load import load, shipped_catalog
from gateway.config.loaded import ConfigError
from gateway.config.quantities import Secret
from gateway.core.flow import Outcome, RefuseReason, Result
from gateway.measure.attainment import Attainment, CellKey, edges_of
from gateway.measure.tally import Tally
from gateway.serve.accounts import Accounts, Teller
from gateway.serve.seats import Seat
from gateway.state.blob import edges_of as listed
from gateway.telemetry.exposition import written
from gateway.telemetry.readings import READINGS
from tests.measure.conftest import completed, placed, waiting

EDGES = edges_of(shipped_catalog())


class Counter:
    """A worker that counts and tells."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.attainment, self.teller = Attainment(EDGES, 0.0), Teller()

    def serve(self, count: int = 1, ttft_s: float = 0.1) -> None:
        for _ in range(count):
            self.attainment.observe(placed(), completed(ttft_s=ttft_s), 0.0)

    def tell(self, accounts: Accounts) -> int:
        told = [one for one in self.teller.changed(self.attainment.cells) if one is not None]
        accounts.take(self.name, listed(self.attainment.edges), told)
        return len(told)


def whole(accounts: Accounts) -> Tally:
    for _ in accounts.cells():
        pass
    total = Tally(accounts.edges)
    for cell in accounts.whole.values():
        total.merge(cell.total())
    return total


def test_the_sum_is_what_one_worker_would_have_counted() -> None:
    accounts, alone = Accounts(EDGES), Counter("alone")
    workers = [Counter("a"), Counter("b"), Counter("c")]
    for number in range(300):
        ttft_s = 0.01 + number * 0.003
        workers[number % 3].serve(ttft_s=ttft_s)
        alone.serve(ttft_s=ttft_s)
    for worker in (*workers, alone):
        worker.attainment.observe(waiting(), Outcome(Result.REFUSED, refuse_reason=RefuseReason.QUOTA), 0.0)
    for worker in workers:
        worker.tell(accounts)
    sums, expected = whole(accounts), Tally(EDGES)
    for cell in alone.attainment.cells.values():
        expected.merge(cell.total())
    assert sums.completed == expected.completed == 300
    assert sums.attained == expected.attained
    assert sums.refused == {"quota": 3}
    for mine, theirs in zip(sums.histograms, expected.histograms, strict=True):
        assert (mine.counts, mine.below, mine.zeros) == (theirs.counts, theirs.below, theirs.zeros)
        assert mine.sum_s == pytest.approx(theirs.sum_s)


def test_what_has_not_changed_is_not_told_again_and_a_closed_window_counts_once() -> None:
    accounts, worker = Accounts(EDGES), Counter("a")
    worker.serve(5)
    assert [worker.tell(accounts), worker.tell(accounts)] == [1, 0]
    worker.attainment.tick(10.0)
    worker.tell(accounts)
    worker.serve(2)
    assert worker.tell(accounts) == 1
    assert whole(accounts).completed == 7


def test_what_an_ended_worker_counted_stays() -> None:
    accounts, first, second = Accounts(EDGES), Counter("a"), Counter("b")
    first.serve(5)
    second.serve(3)
    first.tell(accounts)
    second.tell(accounts)
    accounts.end("a")
    assert whole(accounts).completed == 8
    accounts.end("b")
    accounts.end("b")
    assert whole(accounts).completed == 8


def test_counts_beyond_four_thousand_million_stay_exact() -> None:
    accounts, worker = Accounts(EDGES), Counter("a")
    worker.serve()
    [cell] = worker.attainment.cells.values()
    cell.now.itl.record(0.02, times=2**33 + 1)
    worker.tell(accounts)
    assert whole(accounts).itl.count == 2**33 + 1
    assert whole(accounts).itl.within(0.02) == 2**33 + 1


def test_other_targets_leave_the_counts_as_they_are() -> None:
    accounts, worker = Accounts(EDGES), Counter("a")
    worker.serve(4)
    worker.tell(accounts)
    gone = Counter("b")
    gone.serve(2)
    gone.tell(accounts)
    accounts.end("b")
    catalog = shipped_catalog()
    chat = catalog.use_cases["chatbot"]
    changed = replace(catalog, use_cases=catalog.use_cases | {"chatbot": replace(chat, targets=replace(chat.targets, ttft_s=0.123))})
    accounts.change_edges(edges_of(changed))
    assert whole(accounts).completed == 6
    assert whole(accounts).ttft.within(0.123) == 6
    text = "".join(written(accounts.whole, lambda reading, _: accounts.samples_of(reading)))
    assert 'le="0.123"' in text


def test_readings_add_up_by_their_own_rule_and_counters_outlive_their_worker() -> None:
    accounts = Accounts(EDGES)
    rows = {metric.name: metric for metric in READINGS}
    for name, hits, oldest, healthy in (("a", 2.0, 1.5, 1.0), ("b", 3.0, 0.5, 0.0)):
        accounts.take_figures(
            name,
            {
                "slo_gateway_limit_hits_total": [(["body"], hits)],
                "slo_gateway_queue_oldest_seconds": [(["m", "batch"], oldest)],
                "slo_gateway_instance_healthy": [(["p", "t", "m", "i"], healthy)],
                "slo_gateway_connections": [([name], 7.0)],
            },
        )
    assert dict(accounts.samples_of(rows["slo_gateway_limit_hits_total"])) == {("body",): 5.0}
    assert dict(accounts.samples_of(rows["slo_gateway_queue_oldest_seconds"])) == {("m", "batch"): 1.5}
    assert dict(accounts.samples_of(rows["slo_gateway_instance_healthy"])) == {("p", "t", "m", "i"): 0.0}
    assert dict(accounts.samples_of(rows["slo_gateway_connections"])) == {("a",): 7.0, ("b",): 7.0}
    accounts.end("b")
    assert dict(accounts.samples_of(rows["slo_gateway_limit_hits_total"])) == {("body",): 5.0}
    assert dict(accounts.samples_of(rows["slo_gateway_queue_oldest_seconds"])) == {("m", "batch"): 1.5}
    assert dict(accounts.samples_of(rows["slo_gateway_connections"])) == {("a",): 7.0}


def test_a_sum_in_the_making_loses_no_cell() -> None:
    accounts, worker = Accounts(EDGES), Counter("a")
    for number in range(5):
        worker.attainment.observe(placed(use_case=f"u{number}"), completed(), 0.0)
    worker.tell(accounts)
    whole(accounts)
    worker.serve()
    worker.tell(accounts)
    making = accounts.cells()
    next(making)
    worker.attainment.observe(placed(use_case="u1"), completed(), 0.0)
    worker.tell(accounts)
    assert {CellKey(*key).use_case for key in accounts.whole} == {"chatbot", *(f"u{number}" for number in range(5))}


def test_a_configuration_is_the_same_after_it_was_handed_over(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    (tmp_path / "secret").write_text("hush")
    file.write_text(
        "models: [{name: m, aliases: {a: {use_case: chatbot}}}]\n"
        "pools: {p: {tier: premium, gpu: H100, model: m, instances: [http://a:8000], batch_window: 20ms}}\n"
        "keys: [{id: k, key: file:secret, quota: {requests_per_minute: 5, classes: {batch: {concurrent: 2}}}}]\n"
        "use_cases: {chatbot: {targets: {e2e: {target: 5s, limit: 9s}}}}\n"
        "limits: {body_bytes: 2MiB}\n"
    )
    loaded = load(file)
    (tmp_path / "secret").unlink()
    same = taken(handed(loaded))
    assert same.settings == loaded.settings
    assert same.catalog == loaded.catalog
    assert (same.digest, same.path) == (loaded.digest, loaded.path)
    assert same.settings.keys[0].key == Secret("hush")


def test_a_configuration_of_another_version_is_an_error_and_not_a_surprise() -> None:
    import msgspec

    settings, *rest = msgspec.msgpack.decode(handed(load()))
    with pytest.raises(ConfigError, match="of_tomorrow"):
        taken(msgspec.msgpack.encode([settings | {"of_tomorrow": 1}, *rest]))


def test_workers_that_do_not_live_are_followed_later_and_later() -> None:
    seat, waits = Seat(0, socket.socket()), []
    for lived_s in (20.0, 1.0, 1.0, 1.0, *[0.1] * 6, 20.0, 1.0):
        seat.left(lived_s)
        waits.append(seat.wait_s)
    seat.socket.close()
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 0.0, 0.5]
