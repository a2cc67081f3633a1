"""The store keeps its word on memory, valkey and redis alike, and when a server does its worst it says so in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from gateway.config.state_url import parse_state_url
from gateway.state.controller import ControllerLease
from gateway.state.memory import MemoryStore
from gateway.state.names import Names
from gateway.state.redis import RedisStore
from gateway.state.store import Store, StoreError
from tests.conftest import HANG_S
from tests.state.sharing import Server, redis_binary, store_at

NAMES = Names("test")
Test = Callable[[Store], Awaitable[None]]


@pytest.fixture(params=["valkey", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["memory", "valkey", "redis"])
def on(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Test], None]]:
    """Runs a test on a store of each kind."""
    binary = redis_binary() if request.param == "redis" else ""
    if request.param == "redis" and not binary:
        pytest.skip("no redis-server installed")
    made = Server(tmp_path, binary) if request.param != "memory" else None

    def run(test: Test) -> None:
        async def whole() -> None:
            store: Store = store_at(made) if made is not None else MemoryStore()
            try:
                await test(store)
            finally:
                await store.close()

        asyncio.run(whole())

    yield run
    if made is not None:
        made.kill()


async def gone(store: Store, key: str) -> None:
    end_s = time.monotonic() + HANG_S
    while await store.get(key) is not None:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.005)


def test_a_value_is_there_until_its_time_is_over(on: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        assert await store.get("k") is None
        await store.put("k", b"\x00v", 60.0)
        assert await store.get("k") == b"\x00v"
        await store.put("k", b"w", 0.02)
        await gone(store, "k")

    on(test)


def test_fields_stand_beside_each_other_and_a_value_in_their_place_is_replaced(on: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        assert await store.put_fields("h", {"a": b"1"}, 60.0) == 1
        assert await store.put_fields("h", {"a": b"1", "b": b"2"}, 60.0) == 1
        await store.put("v", b"value", 60.0)
        assert await store.fields(["h", "none", "v"]) == [{"a": b"1", "b": b"2"}, {}, {}]
        assert await store.get("h") is None
        await store.put_fields("v", {"c": b"3"}, 60.0)
        assert await store.fields(["v"]) == [{"c": b"3"}]

    on(test)


def test_one_worker_controls_until_it_leaves_and_then_another_with_a_larger_token(on: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        one, two = (ControllerLease(store, NAMES, name, holds_s=30.0) for name in ("one", "two"))
        assert await one.renew()
        first = one.token
        assert await one.renew()
        assert one.token == first
        assert not await two.renew()
        await one.leave()
        assert not one.held()
        assert await two.renew()
        assert two.token > first

    on(test)


def test_a_controller_that_was_paused_writes_nothing_after_another_took_over(on: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        paused, heir = ControllerLease(store, NAMES, "paused", holds_s=0.8), ControllerLease(store, NAMES, "heir", holds_s=30.0)
        assert await paused.renew()
        assert await paused.put("limits", b"old", 60.0)
        end_s = time.monotonic() + HANG_S
        while not await heir.renew():
            assert time.monotonic() < end_s
            await asyncio.sleep(0.005)
        assert await heir.put("limits", b"new", 60.0)
        assert not await paused.put("limits", b"from the past", 60.0)
        assert await store.get("limits") == b"new"
        assert not await paused.renew()

    on(test)


def test_a_controller_that_could_not_renew_in_time_is_it_again_unless_another_one_is(on: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        late_s = 0.0
        late = ControllerLease(store, NAMES, "late", holds_s=0.05, clock=lambda: time.monotonic() + late_s)
        other = ControllerLease(store, NAMES, "other", holds_s=30.0)
        assert not await other.keep()  # never was
        assert await late.renew()
        late_s = 60.0
        await gone(store, NAMES.controller)
        assert not late.held()
        late_s = -60.0  # so that it stands
        assert await late.keep()
        late_s = 60.0
        await gone(store, NAMES.controller)
        assert await other.renew()
        assert not await late.keep()
        assert await other.keep()

    on(test)


def test_tokens_grow_also_when_the_server_has_lost_everything(server: Server) -> None:
    async def run() -> None:
        store = store_at(server)
        one, two = ControllerLease(store, NAMES, "one"), ControllerLease(store, NAMES, "two")
        assert await one.renew()
        await asyncio.sleep(0.002)
        server.client().flushall()
        assert await two.renew()
        assert two.token > one.token
        assert not await one.put("k", b"v", 1.0)
        assert not await one.renew()

    asyncio.run(run())


@pytest.mark.parametrize("garbage", [b"", b"x", b"\xff" * 40, b"99999999999999999999999 one", b"-1 two"])
def test_garbage_under_the_lease_ends_in_one_controller_again(server: Server, garbage: bytes) -> None:
    async def run() -> None:
        store = store_at(server)
        server.client().set(NAMES.fence, garbage)
        server.client().set(NAMES.controller, garbage, px=1000)
        workers = [ControllerLease(store, NAMES, name, holds_s=1.0) for name in ("one", "two", "three")]
        end_s = time.monotonic() + HANG_S
        while sum([await worker.renew() for worker in workers]) != 1:
            assert time.monotonic() < end_s
            await asyncio.sleep(0.005)

    asyncio.run(run())


def test_a_foreign_kind_of_key_under_the_lease_is_replaced(server: Server) -> None:
    async def run() -> None:
        store = store_at(server)
        for key in (NAMES.controller, NAMES.fence):
            server.client().lpush(key, "x")
        assert await ControllerLease(store, NAMES, "one").renew()

    asyncio.run(run())


def test_a_server_that_stopped_answering_is_given_up_in_time_and_used_again_when_it_goes_on(server: Server) -> None:
    async def run() -> None:
        store = store_at(server, 0.1)
        assert await eventually(lambda: store.put_fields("h", {"f": b"v"}, 60.0))
        server.pause()
        took_s = []
        for _ in range(3):
            began_s = time.monotonic()
            with pytest.raises(StoreError, match=r"no answer|imeout"):
                await store.get("k")
            took_s.append(time.monotonic() - began_s)
        assert min(took_s) < 1.0  # of three: this machine may stand still once
        assert not store.health.connected
        server.go_on()
        assert await eventually(lambda: store.fields(["h"])) == [{"f": b"v"}]
        assert store.health.connected
        assert store.health.errors >= 3

    asyncio.run(run())


def test_a_server_that_was_absent_killed_and_emptied_is_used_as_soon_as_it_is_there(server: Server) -> None:
    async def run() -> None:
        server.kill()
        server.socket.unlink(missing_ok=True)
        store = store_at(server)
        with pytest.raises(StoreError):
            await store.get("k")
        await asyncio.to_thread(server.start)
        lease = ControllerLease(store, NAMES, "one")
        assert await eventually(lease.renew)
        server.kill()
        assert await raises(lambda: store.put("k", b"v", 1.0)) is not None
        await asyncio.to_thread(server.start)
        # Its scripts are gone with it: they are sent again.
        assert await eventually(lease.renew)
        await store.close()

    asyncio.run(run())


def test_a_server_without_memory_left_says_so_and_nothing_else_is_raised(server: Server) -> None:
    async def run() -> None:
        store = store_at(server)
        server.client().config_set("maxmemory", "1")
        with pytest.raises(StoreError, match=r"OOM|memory"):
            await store.put("k", b"v" * 100, 60.0)
        with pytest.raises(StoreError):
            await store.put_fields("h", {"f": b"v"}, 60.0)
        assert await store.get("k") is None

    asyncio.run(run())


def test_what_is_not_redis_at_all_is_an_error_like_any_other() -> None:
    async def run() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n\x00\xff")
            writer.close()

        other = await asyncio.start_server(answer, "127.0.0.1", 0)
        store = RedisStore(parse_state_url(f"redis://127.0.0.1:{other.sockets[0].getsockname()[1]}"), timeout_s=0.5)
        with pytest.raises(StoreError):
            await store.get("k")
        with pytest.raises(StoreError):
            await store.fields(["a", "b"])
        other.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "url", ["redis://HOST", "rediss://HOST", "redis+sentinel://HOST/main", "redis+cluster://HOST", "unix:///nobody/is/here"]
)
def test_no_file_is_read_for_a_connection(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a driver says of itself to a server would be looked up in its package's metadata, every time."""

    async def run() -> None:
        store = RedisStore(parse_state_url(url.replace("HOST", "127.0.0.1:9")), timeout_s=0.2)
        for _ in range(2):
            assert await raises(lambda: store.get("k"))
        await store.close()

    monkeypatch.setattr("redis.utils.get_lib_version", lambda: pytest.fail("the package's metadata was looked up"))
    asyncio.run(run())


async def raises(call: Callable[[], Awaitable[object]]) -> StoreError | None:
    try:
        await call()
    except StoreError as error:
        return error
    return None


async def eventually(call: Callable[[], Awaitable[object]], within_s: float = HANG_S) -> object:
    """Until it neither fails nor comes to nothing."""
    end_s = time.monotonic() + within_s
    while True:
        try:
            value = await call()
            if value:
                return value
        except StoreError:
            pass
        assert time.monotonic() < end_s
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://h", "redis://h:6379"),
        ("rediss://ops@h:7/3", "rediss://h:7/3"),
        ("redis://[::1]:7", "redis://[::1]:7"),
        ("redis+sentinel://a,b:5/main", "redis+sentinel://a:26379,b:5/main"),
        ("rediss+cluster://a:1,b:2", "rediss+cluster://a:1,b:2"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
    ],
)
def test_an_address_is_read_and_shown_without_secrets(text: str, shown: str) -> None:
    assert str(parse_state_url(text)) == shown


@pytest.mark.parametrize(
    "text",
    ["h:6379", "http://h", "redis://", "redis://h:0", "redis://h:70000", "redis://h/x", "redis://a,b", "redis://u:secret@h",
     "redis+sentinel://a", "redis+cluster://a/1", "unix://relative", "redis://h?db=1"],
)  # fmt: skip
def test_a_wrong_address_is_refused_and_a_password_is_never_repeated(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_state_url(text)
    assert "secret" not in str(caught.value)
