"""Where shared state is, read from one line: a single server, a socket, Sentinels or a Cluster. Connecting is state/redis.py's business."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

GRAMMAR = "redis://[USER@]HOST[:PORT][/DB], rediss:// for TLS, redis+sentinel://HOST:PORT,.../SERVICE, redis+cluster://HOST:PORT,... or unix://PATH"
_URL = re.compile(
    r"(?P<scheme>redis|rediss)(?:\+(?P<kind>sentinel|cluster))?://(?:(?P<user>[^/@:]*)(?P<password>:[^/@]*)?@)?(?P<hosts>[^/@?#]+)(?:/(?P<path>[^/?#]*))?"
)
_HOST = re.compile(r"(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>\d{1,5}))?")
_PORTS = {None: 6379, "cluster": 6379, "sentinel": 26379}


class StateKind(Enum):
    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"
    SOCKET = "socket"


@dataclass(frozen=True, slots=True)
class StateAddress:
    """A place for shared state. `service` is what Sentinels call the server, `path` the socket's."""

    kind: StateKind
    hosts: tuple[tuple[str, int], ...] = ()
    user: str = ""
    tls: bool = False
    db: int = 0
    service: str = ""
    path: str = ""

    def __str__(self) -> str:
        if self.kind is StateKind.SOCKET:
            return f"unix://{self.path}"
        kind = "" if self.kind is StateKind.SINGLE else f"+{self.kind.value}"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"redis{'s' if self.tls else ''}{kind}://{hosts}" + (
            f"/{self.service}" if self.service else f"/{self.db}" if self.db else ""
        )


def parse_state_url(text: str) -> StateAddress:
    """ValueError says what was expected; it never repeats a password."""
    if text.startswith("unix://"):
        path = text.removeprefix("unix://")
        if not path.startswith("/"):
            raise ValueError("an absolute path after unix://")
        return StateAddress(StateKind.SOCKET, path=path)
    match = _URL.fullmatch(text)
    if match is None:
        raise ValueError(GRAMMAR)
    if match["password"]:
        raise ValueError("no password in the address; write it as `password: ${ENVIRONMENT_VARIABLE}` beside it")
    kind = match["kind"]
    hosts = []
    for one in match["hosts"].split(","):
        host = _HOST.fullmatch(one)
        port = int(host["port"] or _PORTS[kind]) if host is not None else 0
        if host is None or not 0 < port < 65536:
            raise ValueError(GRAMMAR)
        hosts.append((host["host"].strip("[]"), port))
    path = match["path"] or ""
    if kind is None and len(hosts) > 1:
        raise ValueError("one address, or redis+sentinel:// or redis+cluster:// for several")
    if kind == "sentinel" and not path:
        raise ValueError("the name Sentinels know the server by, as redis+sentinel://HOST:PORT,.../SERVICE")
    if kind == "cluster" and path not in ("", "0"):
        raise ValueError("no database: a Cluster has only one")
    if kind is None and path and not (path.isascii() and path.isdecimal() and len(path) < 5):
        raise ValueError("a database by its number, as redis://HOST/2")
    return StateAddress(
        StateKind(kind or "single"),
        tuple(hosts),
        match["user"] or "",
        match["scheme"] == "rediss",
        int(path) if kind is None and path else 0,
        path if kind == "sentinel" else "",
    )
