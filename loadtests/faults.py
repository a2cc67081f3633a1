"""What the state of many gateways is on, and what happens to it while they serve: each fault of replicas.py's rows, done to a real server.

Knows nothing of gateways or load.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis

from gateway.state.names import Names
from tests.state.topologies import AT_ONCE, Between, Cluster, Node, Sentinel, replica_of

LASTS_S = 10.0
NAMES = Names("default")


@dataclass
class Servers:
    """What the state is on, and how to reach it."""

    url: str
    main: Node | None = None
    between: Between | None = None
    sentinel: Sentinel | None = None
    cluster: Cluster | None = None
    more: list[Node | Between | Cluster] = field(default_factory=list)

    @property
    def node(self) -> Node:
        assert self.main is not None
        return self.main

    def stop(self) -> None:
        for one in (self.main, self.between, self.sentinel, self.cluster, *self.more):
            if one is not None:
                one.stop() if isinstance(one, Between) else one.kill()


def one(binary: str, folder: Path) -> Servers:
    node = Node(binary, folder).ready()
    return Servers(f"redis://127.0.0.1:{node.port}", node)


def nobody(binary: str, folder: Path) -> Servers:
    node = Node(binary, folder).ready()
    node.kill()
    return Servers(f"redis://127.0.0.1:{node.port}", node)


def reached_through(binary: str, folder: Path) -> Servers:
    node = Node(binary, folder).ready()
    between = Between(node.port)
    return Servers(f"redis://127.0.0.1:{between.port}", node, between)


def watched(binary: str, folder: Path) -> Servers:
    node = Node(binary, folder, *AT_ONCE).ready()
    second = replica_of(node, binary, folder)
    sentinel = Sentinel(binary, folder, node).ready()
    while not sentinel.knows_a_replica():
        time.sleep(0.1)
    return Servers(f"redis+sentinel://127.0.0.1:{sentinel.port}/main", node, sentinel=sentinel, more=[second])


def clustered(binary: str, folder: Path) -> Servers:
    cluster = Cluster(binary, folder, NAMES.slots)
    return Servers(cluster.url(), cluster=cluster)


# ---- what happens to it; each returns when it is over.


def stopped(servers: Servers) -> None:
    servers.node.pause()
    time.sleep(LASTS_S)
    servers.node.child.send_signal(signal.SIGCONT)


def replaced(servers: Servers) -> None:
    servers.node.kill()
    time.sleep(3.0)
    servers.node.begin_again()


def emptied(servers: Servers) -> None:
    for _ in range(3):
        servers.node.client().flushall()
        time.sleep(LASTS_S / 3)


def garbage(servers: Servers) -> None:
    client = servers.node.client()
    for n in range(10):
        for key in client.scan_iter():
            with contextlib.suppress(redis.ResponseError):  # they write there too
                if n % 2:
                    client.delete(key)
                    client.lpush(key, "x")
                elif client.type(key) == b"hash":
                    for name in client.hkeys(key):
                        client.hset(key, name, b"\xff\xfe")
                else:
                    client.set(key, b"\xff" * 100)
        time.sleep(LASTS_S / 10)


def full(servers: Servers) -> None:
    servers.node.client().config_set("maxmemory", "1")
    time.sleep(LASTS_S)
    servers.node.client().config_set("maxmemory", "0")


def far(servers: Servers) -> None:
    assert servers.between is not None
    servers.between.delay_s = 0.1  # each way
    time.sleep(LASTS_S)
    servers.between.delay_s = 0.0


def swallowed(servers: Servers) -> None:
    assert servers.between is not None
    servers.between.hole = True
    time.sleep(LASTS_S)
    servers.between.hole = False


def failed_over(servers: Servers) -> None:
    sentinel = servers.sentinel
    assert sentinel is not None
    servers.node.kill()
    while sentinel.main_port() == servers.node.port:
        time.sleep(0.05)


def node_lost(servers: Servers) -> None:
    cluster = servers.cluster
    assert cluster is not None
    cluster.owner.kill()
    while cluster.replica.client().info("replication")["role"] != "master":
        time.sleep(0.05)


def begun(servers: Servers) -> None:
    """It was not there when the gateways began, and is now."""
    time.sleep(LASTS_S)
    servers.node.begin_again()


@dataclass(frozen=True)
class Row:
    made: Callable[[str, Path], Servers] | None
    fault: Callable[[Servers], None] | None = None


ROWS = {
    "alone": Row(None),
    "shared": Row(one),
    "absent": Row(nobody, begun),
    "sigstop": Row(one, stopped),
    "sigkill": Row(one, replaced),
    "flushall": Row(one, emptied),
    "garbage": Row(one, garbage),
    "200 ms": Row(reached_through, far),
    "black hole": Row(reached_through, swallowed),
    "maxmemory": Row(one, full),
    "sentinel": Row(watched, failed_over),
    "cluster": Row(clustered, node_lost),
}
