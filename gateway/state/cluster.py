"""Which node of a Cluster has our keys: one, since all of them share a hash tag. It is asked as a server that stands alone would be.

A client for whole Clusters keeps a table of all 16,384 slots and makes it anew whenever a node is lost, milliseconds in which a worker's
loop does nothing else. Here one line of the table is read, when there is nobody to ask or the one we know says that it has moved.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import MovedError, RedisError

ANEW_S = 0.1
"""nodes are asked who has our keys at most this often"""
MOST_NODES = 32
"""remembered, beside the configured ones"""

Address = tuple[str, int]


class Owner:
    """Finds it. `hosts` are those to begin with; `client` makes a client of one node, connected when it is first used."""

    def __init__(self, hosts: Sequence[Address], client: Callable[[str, int], Redis]) -> None:
        self._hosts = hosts
        self._make = client
        self._nodes = list(hosts)  # whom to ask, the one asked last at the end
        self._address: Address = hosts[0]
        self._client: Redis | None = None
        self._asked_at_s = -ANEW_S
        self._why = ""
        self._asking = asyncio.Lock()

    async def of(self, key: str) -> Redis:
        """The client of the node that has `key`. RedisError when nobody says so."""
        if self._client is None:
            async with self._asking:
                if self._client is None:
                    await self._find(key_slot(key.encode()))
        assert self._client is not None
        return self._client

    async def _find(self, slot: int) -> None:
        if monotonic() - self._asked_at_s < ANEW_S:
            raise RedisError(self._why)
        self._asked_at_s = monotonic()
        self._why = "the Cluster's nodes do not answer"
        for host, port in list(self._nodes):
            # In turns: one that says nothing takes the time of a call with it, and the next call begins with another one.
            self._nodes.remove((host, port))
            self._nodes.append((host, port))
            node = self._make(host, port)
            try:
                told = await node.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
            except (RedisError, OSError) as error:
                self._why = str(error)
                continue
            finally:
                await _closed(node)
            holders: Sequence[Any] = next((range_[2:] for range_ in told if range_[0] <= slot <= range_[1]), [])
            if holders:
                addresses = [_address(holder, host) for holder in (*holders, *(holder for range_ in told for holder in range_[2:]))]
                self._use(addresses[0])
                known = dict.fromkeys((*addresses[:MOST_NODES], *self._hosts))
                self._nodes = [node for node in self._nodes if node in known] + [node for node in known if node not in self._nodes]
                return
            self._why = "no node of the Cluster has our keys"
        raise RedisError(self._why)

    async def moved(self, error: MovedError) -> None:
        """The node we asked says that another one has our keys."""
        before, address = self._client, (error.host or self._address[0], int(error.port))
        self._use(address)
        await _closed(before)

    async def lost(self, asked: Any) -> None:
        """The node behind this client does not answer."""
        if asked is not None and asked is self._client:
            self._client = None
            self._why = f"{self._address[0]}:{self._address[1]} does not answer"
            await _closed(asked)

    def _use(self, address: Address) -> None:
        self._address = address
        self._client = self._make(*address)

    async def close(self) -> None:
        client, self._client = self._client, None
        await _closed(client)


def _address(holder: Sequence[Any], asked: str) -> Address:
    """As a node tells of another one; by no name, it is where it was asked."""
    host = holder[0].decode() if isinstance(holder[0], bytes) else holder[0]
    return host or asked, int(holder[1])


async def _closed(client: Redis | None) -> None:
    if client is not None:
        with contextlib.suppress(RedisError, OSError):
            await client.aclose()
