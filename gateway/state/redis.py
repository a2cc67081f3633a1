"""The store on Redis or Valkey: one server, Sentinels or a Cluster, with TLS and ACL users, through redis-py.

redis-py's own patience (seconds of timeouts, retries with back-off) is switched off: a call has `timeout_s`, connecting included, and one
try. All keys of a deployment share a hash tag, so that a Cluster keeps them on one node and scripts may use several.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha1
from typing import Any, TypeVar

from redis.asyncio import ConnectionPool, Redis, Sentinel, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, MovedError, NoScriptError, RedisError, ResponseError

from gateway.config.state_url import StateAddress, StateKind
from gateway.state.cluster import Owner
from gateway.state.store import Arg, Health

AT_ONCE = 16  # windows read in one go, so that an answer stays small against the timeout
CONNECTIONS = 4
# Told apart from "no such key" by nobody: whatever stands under our name and is not ours is overwritten.
_FOREIGN = "WRONGTYPE"

Answer = TypeVar("Answer")


class RedisStore:
    """A store at `address`. Nothing is connected before the first call, and a lost connection is made anew by the next one."""

    def __init__(
        self,
        address: StateAddress,
        *,
        timeout_s: float = 0.1,
        password: str | None = None,
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
        verify: bool = True,
    ) -> None:
        self.health = Health(str(address))
        self._timeout_s = timeout_s
        options: dict[str, Any] = {
            "username": address.user or None,
            "password": password,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
            # What to tell servers of the library is read from the disk for every connection: most of what one costs the loop.
            "driver_info": None,
        }
        tls: dict[str, Any] = {
            "ssl_ca_certs": ca_file or None,
            "ssl_certfile": cert_file or None,
            "ssl_keyfile": key_file or None,
            "ssl_cert_reqs": "required" if verify else "none",
            "ssl_check_hostname": verify,
        }
        self._sentinel: Sentinel | None = None
        self._owner: Owner | None = None
        self._client: Any
        match address.kind:
            case StateKind.SINGLE:
                host, port = address.hosts[0]
                how = {"connection_class": SSLConnection, **tls} if address.tls else {"connection_class": Connection}
                self._client = Redis.from_pool(
                    ConnectionPool(host=host, port=port, db=address.db, max_connections=CONNECTIONS, **how, **options)
                )
            case StateKind.SOCKET:
                pool = ConnectionPool(
                    connection_class=UnixDomainSocketConnection, path=address.path, max_connections=CONNECTIONS, **options
                )
                self._client = Redis.from_pool(pool)
            case StateKind.SENTINEL:
                secure = {"ssl": True, **tls} if address.tls else {}
                # Sentinels are asked anonymously: they hold addresses only, and their users are not the server's. One after the other:
                # each gets its part of the time, so that one that says nothing leaves enough for the next, and for the server.
                part_s = timeout_s / (len(address.hosts) + 1)
                asking = {key: value for key, value in options.items() if key not in ("username", "password")}
                asking |= {"socket_timeout": part_s, "socket_connect_timeout": part_s}
                self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
                    list(address.hosts), sentinel_kwargs={**asking, **secure}, **options, **secure
                )
                self._client = self._sentinel.master_for(address.service)
            case StateKind.CLUSTER:
                # A node that says nothing leaves time to ask another one who has our keys, and then that one.
                options |= {"socket_timeout": timeout_s / 4, "socket_connect_timeout": timeout_s / 4}
                how = {"connection_class": SSLConnection, **tls} if address.tls else {"connection_class": Connection}

                def node(host: str, port: int) -> Redis:
                    return Redis.from_pool(ConnectionPool(host=host, port=port, max_connections=CONNECTIONS, **how, **options))

                self._owner = Owner(address.hosts, node)
                self._client = None

    async def get(self, key: str) -> bytes | None:
        return await self._ask(key, lambda: self._get(key))

    async def _get(self, key: str) -> bytes | None:
        try:
            value: bytes | None = await self._client.get(key)
        except ResponseError as error:
            if not str(error).startswith(_FOREIGN):
                raise
            return None
        return value

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        await self._ask(key, lambda: self._client.set(key, value, px=max(int(ttl_s * 1000), 1)))

    async def fields(self, keys: Sequence[str]) -> list[Mapping[str, bytes]]:
        found: list[Mapping[str, bytes]] = []
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            found += await self._ask(some[0], lambda some=some: self._fields(some))  # type: ignore[misc]
        return found

    async def _fields(self, keys: Sequence[str]) -> list[Mapping[str, bytes]]:
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.hgetall(key)
        found: list[Mapping[str, bytes]] = []
        for answer in await pipeline.execute(raise_on_error=False):
            if isinstance(answer, dict):
                found.append({field.decode("utf-8", "replace"): value for field, value in answer.items()})
            elif isinstance(answer, ResponseError) and str(answer).startswith(_FOREIGN):
                found.append({})
            else:
                raise answer if isinstance(answer, Exception) else RedisError("an answer of another kind")
        return found

    async def put_fields(self, key: str, fields: Mapping[str, bytes], ttl_s: float) -> int:
        return await self._ask(key, lambda: self._put_fields(key, fields, ttl_s))

    async def _put_fields(self, key: str, fields: Mapping[str, bytes], ttl_s: float) -> int:
        wrong: Exception | None = None
        for foreign in (False, True):
            pipeline = self._client.pipeline(transaction=False)
            if foreign:
                pipeline.delete(key)
            pipeline.hset(key, mapping=dict(fields))
            pipeline.pexpire(key, max(int(ttl_s * 1000), 1))
            answers = await pipeline.execute(raise_on_error=False)
            wrong = next((answer for answer in answers if isinstance(answer, Exception)), None)
            if wrong is None:
                return int(answers[-2])
            if not str(wrong).startswith(_FOREIGN):
                raise wrong
        raise wrong or RedisError("nothing was written")

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        return await self._ask(keys[0], lambda: self._run(script, keys, args))

    async def _run(self, script: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        digest = sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            return await self._client.evalsha(digest, len(keys), *keys, *args)
        except NoScriptError:
            return await self._client.execute_command("EVAL", str(script), len(keys), *keys, *args)

    async def _ask(self, key: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
        asked = None
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._owner is None:
                    answer = await call()
                else:
                    asked = self._client = await self._owner.of(key)
                    try:
                        answer = await call()
                    except MovedError as error:
                        await self._owner.moved(error)
                        asked = self._client = await self._owner.of(key)
                        answer = await call()
        except TimeoutError:
            await self._lost(asked)
            raise self.health.failed(f"no answer within {self._timeout_s * 1000:.0f} ms") from None
        except (RedisError, OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            # Not only redis-py's own: an answer that is not Redis at all ends in whatever its parser stumbled over.
            if not isinstance(error, ResponseError) or isinstance(error, ClusterDownError):
                await self._lost(asked)
            raise self.health.failed(_reason(error)) from None
        self.health.answered()
        return answer

    async def _lost(self, asked: Any) -> None:
        """Of a Cluster: the next call asks those that are left who has our keys."""
        if self._owner is not None:
            await self._owner.lost(asked)

    async def close(self) -> None:
        """Forget the connections; what is under way there is given up."""
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._owner is not None:
                    await self._owner.close()
                else:
                    await self._client.aclose()
                for sentinel in self._sentinel.sentinels if self._sentinel is not None else ():
                    await sentinel.aclose()
        except (RedisError, OSError, TimeoutError):
            pass


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return text or type(error).__name__
