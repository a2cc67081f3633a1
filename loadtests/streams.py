"""A thousand streams at once, each compared byte for byte with what the engine sent; then five hundred clients that leave at random, at
every stage of a request, and how long it takes until the engine sees its connection closed. Before, in between and after: the gateway's
memory, as its share of what processes use together (PSS). With --idle only that of one that has just begun, what it is made of, and how
long it took to be ready.

    python loadtests/streams.py [--streams 1000] [--seconds 60] [--departures 500] [--json]
    python loadtests/streams.py --idle [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

GAP_S = 0.2
sent: dict[bytes, bytearray] = {}
closed_at_s: dict[bytes, float] = {}


def event(name: bytes, number: int) -> bytes:
    word = f"{name.decode()}-{number} " + "\u00e9\U0001f600"[number % 2] * (number % 7)
    told = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word}}]}
    return b"data: " + json.dumps(told, ensure_ascii=number % 3 == 0).encode() + b"\n\n"


async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Streams for as long as it is asked to, or says nothing or little until the connection closes."""
    name = b""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                continue
            body = await reader.readexactly(int(re.search(rb"content-length: (\d+)", head.lower())[1]))
            asked = json.loads(body)["user"]
            name = re.search(rb"x-request-id: (\S+)", head)[1]
            log = sent[name] = bytearray()
            if asked == "silence":
                await reader.read(1)
                return
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            if asked == "words":
                left = asyncio.ensure_future(reader.read(1))
                while not left.done():
                    data = event(name, 1)
                    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
                    await asyncio.wait([left], timeout=0.02)
                left.exception()  # a reset is an end like any other
                return
            for number in range(max(int(float(asked) / GAP_S), 1)):
                data = event(name, number)
                log += data
                writer.write(b"%x\r\n%b\r\n" % (len(data), data))
                await asyncio.sleep(GAP_S)
            log += b"data: [DONE]\n\n"
            writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
            name = b""
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        pass
    finally:
        closed_at_s[name] = time.monotonic()
        writer.close()


def request(name: bytes, asked: str, model: str = "m", stream: bool = True) -> bytes:
    told = {"model": model, "stream": stream, "user": asked, "messages": [{"role": "user", "content": "hello"}]}
    body = json.dumps(told | ({"stream_options": {"include_usage": True}} if stream else {})).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-request-id: %b\r\nx-slo-class: batch\r\ncontent-length: %d\r\n\r\n%b" % (
        name,
        len(body),
        body,
    )


async def whole(port: int, name: bytes, seconds: float) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(request(name, str(seconds)))
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return head
    body = bytearray()
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        data = await reader.readexactly(size + 2)
        if not size:
            writer.close()
            return bytes(body)
        body += data[:-2]


STAGES = ("in the head", "in the body", "in the queue", "in prefill", "in prefill, not streamed", "in the stream")


async def departure(port: int, number: int, chance: random.Random) -> tuple[str, float | None]:
    """Leave at a random moment of a stage: which, and the seconds until the engine saw it; None when it was never sent there."""
    name, stage = b"leaves-%d" % number, STAGES[number % len(STAGES)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = request(
        name, "words" if stage == "in the stream" else "silence", "narrow" if stage == "in the queue" else "m", stage != STAGES[4]
    )
    body_at = raw.index(b"\r\n\r\n") + 4
    if stage == "in the head":
        raw = raw[: chance.randrange(1, body_at - 1)]
    elif stage == "in the body":
        raw = raw[: chance.randrange(body_at, len(raw) - 1)]
    writer.write(raw)
    if stage == "in the stream":
        await reader.readuntil(b"content")
    await asyncio.sleep(chance.random() * 0.3)
    left_s = time.monotonic()
    writer.transport.abort() if chance.random() < 0.5 else writer.close()
    for _ in range(600):
        await asyncio.sleep(0.005)
        if name in closed_at_s:
            return stage, max(closed_at_s[name] - left_s, 0.0)
        if name not in sent and time.monotonic() - left_s > 0.5:
            return stage, None
    return stage, 9.0


def proportional_kb(pid: int) -> int:
    """A process's memory; what others use too counts in part."""
    return int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])


def made_of_mb(pid: int) -> dict[str, float]:
    """What a process's memory is made of."""
    kb = dict.fromkeys(("interpreter", "c_library", "libraries_changed", "libraries", "other"), 0)
    group = changed = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if mapped := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)", line):
            name = mapped[1]
            group = {"": "interpreter", "[heap]": "c_library"}.get(name, "libraries" if name.startswith("/") else "other")
            changed = "libraries_changed" if group == "libraries" else group
        elif line.startswith("Pss:"):
            kb[group] += int(line.split()[1])
        elif line.startswith("Private_Dirty:"):
            kb[group] -= int(line.split()[1])
            kb[changed] += int(line.split()[1])
    return {f"idle_{name}_mb": round(value / 1024, 1) for name, value in kb.items()}


def idle() -> dict[str, float]:
    """One worker with one pool, as a line of arguments starts it, five times: the median."""
    given = [
        "--port",
        "0",
        "--admin-port",
        "0",
        "--model",
        "m",
        "--pool",
        "premium:H100:limit=1200=http://127.0.0.1:9",
        "--mode",
        "observe",
    ]
    told: list[dict[str, float]] = []
    for _ in range(5):
        began_s = time.monotonic()
        child = subprocess.Popen([sys.executable, "-m", "gateway", "serve", *given], stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        next(line for line in child.stderr if "ready:" in line)
        ready_s = round(time.monotonic() - began_s, 2)
        time.sleep(1.5)  # its first ticks and probes
        told.append({"ready_s": ready_s, "idle_mb": round(proportional_kb(child.pid) / 1024, 1), **made_of_mb(child.pid)})
        child.terminate()
        child.wait(15)
    return {name: statistics.median(one[name] for one in told) for name in told[0]}


class Gateway:
    """One, before the engine of this process. The model `narrow` has a place for one request only."""

    def __init__(self, engine_url: str, mode: str, folder: Path) -> None:
        pool = {"tier": "premium", "gpu": "H100", "instances": [engine_url]}
        config = {
            "mode": mode,
            "listen": {"port": 0},
            "admin": {"port": 0},
            "models": [{"name": "m"}, {"name": "narrow"}],
            "pools": {
                "premium": pool | {"model": "m", "limit": {"start": 5000, "max": 5000, "pinned": True}},
                "narrow": pool | {"model": "narrow", "limit": {"start": 1, "pinned": True}},
            },
        }
        file = folder / f"{mode}.yaml"
        file.write_text(json.dumps(config))
        self.child = subprocess.Popen([sys.executable, "-m", "gateway", "serve", str(file)], stderr=subprocess.PIPE, text=True)
        assert self.child.stderr is not None
        line = next(line for line in self.child.stderr if "ready:" in line)
        public, self.admin = (word.rstrip(",").removesuffix("/v1").removesuffix("/admin/") for word in line.split() if "://" in word)
        self.port = int(public.rsplit(":", 1)[1])

    def memory_kb(self) -> int:
        return proportional_kb(self.child.pid)

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.child.pid}/fd").iterdir()))

    def stop(self) -> None:
        self.child.kill()
        self.child.wait(15)


async def streams(given: argparse.Namespace, gateway: Gateway) -> dict[str, float]:
    await whole(gateway.port, b"warm", 0.4)
    idle_kb = gateway.memory_kb()
    tasks = [asyncio.create_task(whole(gateway.port, b"s%d" % number, given.seconds)) for number in range(given.streams)]
    await asyncio.sleep(given.seconds / 2)
    open_kb = gateway.memory_kb()
    bodies = await asyncio.gather(*tasks)
    await asyncio.sleep(1.0)
    after_kb = gateway.memory_kb()
    await asyncio.sleep(9.0)
    return {
        "streams": given.streams,
        "byte_identical": sum(body == bytes(sent[b"s%d" % number]) for number, body in enumerate(bodies)),
        "idle_mb": round(idle_kb / 1024, 1),
        "kb_per_stream": round((open_kb - idle_kb) / given.streams, 1),
        "after_1_s_mb": round(after_kb / 1024, 1),
        "after_10_s_mb": round(gateway.memory_kb() / 1024, 1),
    }


async def departures(given: argparse.Namespace, gateway: Gateway) -> dict[str, float]:
    _, holder = await asyncio.open_connection("127.0.0.1", gateway.port)
    holder.write(request(b"holder", "words", "narrow"))
    while b"holder" not in sent:
        await asyncio.sleep(0.01)
    chance, took = random.Random(1), []
    before = gateway.open_files()
    for start in range(0, given.departures, 50):
        took += await asyncio.gather(*(departure(gateway.port, n, chance) for n in range(start, min(start + 50, given.departures))))
    holder.close()
    async with httpx.AsyncClient() as client:
        for _ in range(100):
            fleet = (await client.get(f"{gateway.admin}/admin/fleet")).json()
            queues = (await client.get(f"{gateway.admin}/admin/queues")).json()
            in_flight, waiting = sum(one["in_flight"] for one in fleet), sum(one["requests"] for one in queues)
            if not in_flight and not waiting:
                break
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        metrics = (await client.get(f"{gateway.admin}/metrics")).text
        connections = float(re.search(r"^slo_gateway_connections(?:{[^}]*})? (\S+)", metrics, re.MULTILINE)[1])
    told: dict[str, float] = {"departures": len(took)}
    seen = sorted(one for _, one in took if one is not None)
    for stage in STAGES:
        told[f"left {stage}"] = sum(1 for at, _ in took if at == stage)
        told[f"reached the engine, {stage}"] = sum(1 for at, one in took if at == stage and one is not None)
    return told | {
        "closed_p50_ms": round(statistics.median(seen) * 1000, 1),
        "closed_p99_ms": round(seen[min(int(len(seen) * 0.99), len(seen) - 1)] * 1000, 1),
        "closed_max_ms": round(seen[-1] * 1000, 1),
        "never_closed": sum(1 for name in sent if name.startswith(b"leaves") and name not in closed_at_s),
        "in_flight_left": in_flight,
        "waiting_left": waiting,
        "client_connections_left": connections,
        "files_more_than_before": gateway.open_files() - before,
    }


async def run(given: argparse.Namespace, folder: Path) -> dict[str, float]:
    server = await asyncio.start_server(engine, "127.0.0.1", 0, backlog=2048)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    told: dict[str, float] = {}
    for mode, part in (("observe", streams), ("enforce", departures)):
        gateway = Gateway(url, mode, folder)
        try:
            told |= await part(given, gateway)
        finally:
            gateway.stop()
    server.close()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--departures", type=int, default=500)
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.idle:
        told = idle()
        print(json.dumps(told) if given.json else "\n".join(f"{name:<45}{value:>10}" for name, value in told.items()))
        return
    with tempfile.TemporaryDirectory(prefix="slo-gateway-") as folder:
        told = asyncio.run(run(given, Path(folder)))
    print(json.dumps(told) if given.json else "\n".join(f"{name:<45}{value:>10}" for name, value in told.items()))
    left = ("never_closed", "in_flight_left", "waiting_left", "client_connections_left")
    sys.exit(0 if told["byte_identical"] == given.streams and not any(told[name] for name in left) else 1)


if __name__ == "__main__":
    main()
