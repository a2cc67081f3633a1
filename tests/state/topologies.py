"""Real servers as they stand in production: behind TLS and ACL users, watched by Sentinels, or as a Cluster. On loopback, on free ports."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

import pytest
import redis

from tests.conftest import HANG_S, until

SLOTS = 16384
AT_ONCE = ("repl-diskless-sync-delay 0", "repl-diskless-load swapdb", "repl-ping-replica-period 1")  # replicas follow


def free_port() -> int:
    """One that nobody listens on, and that no connection of this machine will take for its own end meanwhile."""
    while True:
        port = SystemRandom().randrange(15_000, 32_000)  # below Linux' ephemeral ones
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


class Node:
    """A server process on a port of 127.0.0.1, `port_is` what. `arguments` are lines of its configuration."""

    def __init__(self, binary: str, folder: Path, *arguments: str, port_is: str = "port") -> None:
        self.port = free_port()
        self.folder = folder / f"node-{self.port}"
        self.folder.mkdir()
        lines = ["port 0", f"{port_is} {self.port}", "bind 127.0.0.1", f"dir {self.folder}", "protected-mode no"]
        lines += ['save ""', "appendonly no", *arguments]
        self.file = self.folder / "server.conf"
        self.file.write_text("\n".join(lines) + "\n")
        self.command = [binary, str(self.file)]
        self.child = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=HANG_S)

    def answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self.client().ping())
        return False

    def ready(self) -> Node:
        """Once it answers. A port that was free and is somebody else's by now is changed for another one."""

        def answers() -> bool:
            if self.child.poll() is not None:
                taken, self.port = self.port, free_port()
                self.file.write_text(self.file.read_text().replace(f"port {taken}", f"port {self.port}"))
                self.child = self._spawn()
            return self.answers()

        until(answers, what=f"the server of {self.folder} to answer")
        return self

    def pause(self) -> None:
        self.child.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()

    def begin_again(self) -> None:
        """The one that was killed is there again, and empty."""
        self.child = self._spawn()
        until(self.answers, what="the server to answer")


class Sentinel(Node):
    """Watches the server on `port` as `main`, alone, and is quick about it."""

    def __init__(self, binary: str, folder: Path, watched: Node) -> None:
        super().__init__(
            binary,
            folder,
            f"sentinel monitor main 127.0.0.1 {watched.port} 1",
            "sentinel down-after-milliseconds main 300",
            "sentinel failover-timeout main 3000",
        )

    def _spawn(self) -> subprocess.Popen[bytes]:
        self.command.append("--sentinel")
        return super()._spawn()

    def knows_a_replica(self) -> bool:
        return any(b"slave" in str(told).encode() and "down" not in told["flags"] for told in self.client().sentinel_slaves("main"))

    def main_port(self) -> int:
        return int(self.client().sentinel_get_master_addr_by_name("main")[1])


def replica_of(node: Node, binary: str, folder: Path) -> Node:
    made = Node(binary, folder, f"replicaof 127.0.0.1 {node.port}", *AT_ONCE).ready()
    until(lambda: made.client().info("replication")["master_link_status"] == "up", what="the replica to follow")
    return made


class Cluster:
    """Three masters, and a replica of the one that keeps `key`."""

    def __init__(self, binary: str, folder: Path, key: str) -> None:
        lines = ("cluster-enabled yes", "cluster-node-timeout 500", "cluster-require-full-coverage no", *AT_ONCE)
        bus = [free_port() for _ in range(4)]
        self.nodes = [Node(binary, folder, *lines, f"cluster-port {port}").ready() for port in bus]
        masters, self.replica = self.nodes[:3], self.nodes[3]
        bounds = [SLOTS * n // 3 for n in range(4)]
        for node, first, after in zip(masters, bounds, bounds[1:], strict=False):
            node.client().execute_command("CLUSTER ADDSLOTSRANGE", first, after - 1)
        for node in self.nodes[1:]:
            node.client().execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port, bus[0])
        until(lambda: all(self._knows(node) == 4 for node in self.nodes), what="the nodes to know each other")
        slot = int(masters[0].client().execute_command("CLUSTER KEYSLOT", key))
        owner = next(n for n in range(3) if slot < bounds[n + 1])
        self.owner = masters[owner]
        self.others = [node for node in masters if node is not self.owner]
        name = self.owner.client().execute_command("CLUSTER MYID").decode()
        until(lambda: self._follows(name), what="the replica to follow")
        until(lambda: self.replica.client().info("replication")["master_link_status"] == "up", what="the replica to be in step")
        until(lambda: all(self._state(node) == "ok" for node in self.nodes), what="the Cluster to stand")

    def _knows(self, node: Node) -> int:
        return int(self._info(node)["cluster_known_nodes"])

    def _state(self, node: Node) -> str:
        return self._info(node)["cluster_state"]

    def _info(self, node: Node) -> dict[str, str]:
        told = node.client().execute_command("CLUSTER INFO")
        text = told.decode() if isinstance(told, bytes) else told
        return text if isinstance(text, dict) else dict(line.split(":") for line in text.split())

    def _follows(self, name: str) -> bool:
        with contextlib.suppress(redis.ResponseError):  # it has not heard of that one yet
            self.replica.client().execute_command("CLUSTER REPLICATE", name)
            return True
        return False

    def url(self) -> str:
        # The one that will be lost comes first: whoever begins later has to get past it.
        order = [self.owner, *(node for node in self.nodes if node is not self.owner)]
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in order)

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


@dataclass(frozen=True)
class Certificates:
    """A CA of one's own and what it has signed, for 127.0.0.1."""

    ca: Path
    cert: Path
    key: Path


def certificates(folder: Path) -> Certificates:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl installed, to make certificates with")
    made = Certificates(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    names = folder / "names"
    names.write_text("subjectAltName=IP:127.0.0.1\n")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=test"]
    for arguments in (
        ["req", "-x509", *new, "-days", "2", "-keyout", folder / "ca.key", "-out", made.ca],
        ["req", *new, "-keyout", made.key, "-out", folder / "request"],
        ["x509", "-req", "-in", folder / "request", "-CA", made.ca, "-CAkey", folder / "ca.key", "-days", "2", "-extfile", names,
         "-out", made.cert],
    ):  # fmt: skip
        subprocess.run([openssl, *map(str, arguments)], check=True, capture_output=True)
    return made


class Between:
    """Passes bytes on to a server, behind TLS if there is a context, `delay_s` late, or (`hole`) not at all."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self.delay_s = 0.0
        self.hole = False
        self.port = 0
        self._to = port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(context,), daemon=True)
        self._thread.start()
        assert self._ready.wait(HANG_S)

    def _run(self, context: ssl.SSLContext | None) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        server.close()
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there, there_writer = await asyncio.open_connection("127.0.0.1", self._to)
            ways = [asyncio.ensure_future(way) for way in (self._pass_on(reader, there_writer), self._pass_on(there, writer))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            there_writer.close()
        writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if not self.hole:
                    writer.write(data)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(HANG_S)


@contextlib.contextmanager
def ending(*made: Node | Cluster | Between) -> Iterator[None]:
    try:
        yield
    finally:
        for one in made:
            one.stop() if isinstance(one, Between) else one.kill()
