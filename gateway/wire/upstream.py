"""Connections to engines: opened, kept warm, lent to one request at a time, and thrown away at the first doubt.

What is said over them is relay.py's business; which instance a request goes to is the core's. Names are looked up beforehand (`resolve`),
so that no request waits for DNS.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

from gateway.core.flow import Endpoint, InstanceSpec
from gateway.wire.patience import within

PATHS: Final[dict[Endpoint, bytes]] = {
    Endpoint.CHAT: b"/v1/chat/completions",
    Endpoint.COMPLETIONS: b"/v1/completions",
    Endpoint.RESPONSES: b"/v1/responses",
    Endpoint.EMBEDDINGS: b"/v1/embeddings",
    Endpoint.MESSAGES: b"/v1/messages",
}
RESOLVE_EVERY_S: Final = 10.0


class Holder(Protocol):
    """Who has a connection: relay.Relay, or probe.py's."""

    def received(self, data: bytes) -> None: ...
    def upstream_lost(self) -> None: ...


class EngineConnection(asyncio.Protocol):
    """One connection. `holder` is whoever has it now; None while it is idle in its pool."""

    __slots__ = ("closed", "held", "holder", "idle_since_s", "paused", "transport", "upstream", "used")

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.holder: Holder | None = None
        self.idle_since_s = 0.0
        self.used = False  # has carried a request before: an engine may be closing it at this very moment
        self.closed = False
        self.paused = False  # not read while the client does not keep up
        self.held = False  # nor until the coalescer's next tick

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.upstream.open_count += 1

    def data_received(self, data: bytes) -> None:
        holder = self.holder
        if holder is not None:
            holder.received(data)
        else:
            self.abort()  # bytes that nobody asked for

    def eof_received(self) -> bool:
        return False  # connection_lost follows

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.open_count -= 1
        self.closed = True
        holder = self.holder
        if holder is not None:
            self.holder = None
            holder.upstream_lost()
        else:
            self.upstream.forget(self)

    def give_back(self, now_s: float) -> None:
        """After a clean end: ready for the next request."""
        self.holder = None
        if self.closed or self.transport.is_closing():
            return
        if self.paused or self.held:
            self.paused = self.held = False
            self.transport.resume_reading()
        self.used = True
        self.idle_since_s = now_s
        self.upstream.idle.append(self)

    # ---- whether it is read

    def pause(self) -> None:
        """Its client does not read fast enough."""
        if not self.paused:
            self.paused = True
            if not self.held:
                self.transport.pause_reading()

    def resume(self) -> None:
        """It reads again."""
        if self.paused:
            self.paused = False
            self._read_on()

    def hold(self) -> None:
        """Until `release`, the coalescer's next tick."""
        self.held = True
        if not self.paused:
            self.transport.pause_reading()

    def release(self) -> None:
        """The tick has come."""
        if self.held:
            self.held = False
            self._read_on()

    def _read_on(self) -> None:
        if not (self.paused or self.held or self.closed or self.transport.is_closing()):
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close now, whatever is under way: this is how an engine learns that nobody waits any more."""
        self.holder = None
        self.closed = True
        self.transport.abort()


class Upstream:
    """The connections of one instance."""

    def __init__(
        self,
        spec: InstanceSpec,
        loop: asyncio.AbstractEventLoop,
        *,
        api_key: str | None,
        tls: ssl.SSLContext | None,
        connect_s: float,
        idle_s: float,
        user_agent: str,
    ) -> None:
        parts = urlsplit(spec.url)
        self.spec = spec
        self.host = parts.hostname or ""
        self.tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self.port = parts.port or (443 if self.tls else 80)
        self.connect_s = connect_s
        self.idle_s = idle_s
        self.idle: list[EngineConnection] = []
        self.open_count = 0
        self.no_stream_options = False  # it answered 400 to `stream_options`, and is not asked again
        self.failures = 0  # in a row, to connect or to answer
        self._loop = loop
        self._address = self.host if _is_ip(self.host) else ""
        self._opening: set[asyncio.Task[None]] = set()
        named = f"[{self.host}]" if ":" in self.host else self.host
        host = f"{named}:{parts.port}" if parts.port else named
        fixed = f"host: {host}\r\nuser-agent: {user_agent}\r\n"
        if api_key:
            fixed += f"authorization: Bearer {api_key}\r\n"
        self._fixed = fixed.encode()
        base = self._base = parts.path.rstrip("/").encode()
        self._heads: dict[Endpoint, bytes] = {
            endpoint: b"POST " + base + path + b" HTTP/1.1\r\ncontent-type: application/json\r\n" + self._fixed
            for endpoint, path in PATHS.items()
        }
        if api_key:  # Anthropic's protocol has a field of its own
            self._heads[Endpoint.MESSAGES] += f"x-api-key: {api_key}\r\n".encode()

    def get(self, path: str) -> bytes:
        """A whole request for a page, "/health" or so."""
        return b"GET %b%b HTTP/1.1\r\n%b\r\n" % (self._base, path.encode(), self._fixed)

    def head(self, endpoint: Endpoint) -> bytes:
        """A request's head up to the fields that differ between requests; no blank line."""
        return self._heads[endpoint]

    def take(self, now_s: float) -> EngineConnection | None:
        """An idle connection, the one used last, or None. Old ones are closed: the engine may be closing them too."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.closed or connection.transport.is_closing():
                continue
            if now_s - connection.idle_since_s < self.idle_s:
                return connection
            connection.abort()
        return None

    def open(self, ready: Callable[[EngineConnection | None], Any]) -> None:
        """Open a new one and hand it to `ready`; None when that fails or takes too long."""
        task = self._loop.create_task(self._open(ready))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, ready: Callable[[EngineConnection | None], Any]) -> None:
        connection: EngineConnection | None = None
        try:
            async with within(self.connect_s):
                _, connection = await self._loop.create_connection(
                    lambda: EngineConnection(self),
                    self._address or self.host,
                    self.port,
                    ssl=self.tls,
                    server_hostname=self.host if self.tls else None,
                )
        except (OSError, TimeoutError, ssl.SSLError):
            connection = None
        ready(connection)

    def forget(self, connection: EngineConnection) -> None:
        """It is closed."""
        if connection in self.idle:
            self.idle.remove(connection)

    def sweep(self, now_s: float) -> None:
        """Close what has been idle too long."""
        idle = self.idle
        while idle and now_s - idle[0].idle_since_s >= self.idle_s:
            idle.pop(0).abort()

    def close(self) -> None:
        """Close everything that is idle; what is lent closes when it comes back."""
        self.idle_s = 0.0
        self.sweep(float("inf"))

    async def resolve(self) -> None:
        """Look its name up anew; the last good answer stays when that fails."""
        if not self.host or _is_ip(self.host):
            return
        try:
            found = await self._loop.getaddrinfo(self.host, self.port, type=1)
        except OSError:
            return
        addresses = [entry[4][0] for entry in found]
        if addresses and self._address not in addresses:
            self._address = str(addresses[0])


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Upstreams:
    """The connections of all instances, by instance id. Changed at a reload; an instance that left keeps its requests until they end."""

    def __init__(self) -> None:
        self.by_id: dict[str, Upstream] = {}

    def change(self, made: dict[str, Upstream]) -> None:
        """These are the instances now."""
        for instance_id, upstream in self.by_id.items():
            if made.get(instance_id) is not upstream:
                upstream.close()
        self.by_id = made

    def sweep(self) -> None:
        """Called a few times a second."""
        now_s = monotonic()
        for upstream in self.by_id.values():
            if upstream.idle:
                upstream.sweep(now_s)

    async def keep_resolved(self) -> None:
        """Runs for ever: looks names up again every few seconds."""
        while True:
            for upstream in list(self.by_id.values()):
                await upstream.resolve()
            await asyncio.sleep(RESOLVE_EVERY_S)
