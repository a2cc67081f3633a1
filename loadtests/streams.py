"""A thousand streams at once, each compared byte for byte with what the engine sent; then five hundred clients that leave at random,
and how long it takes until the engine sees its connection closed.

    python loadtests/streams.py [--streams 1000] [--seconds 60] [--departures 500] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
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
    """Streams for as long as it is asked to, or until the connection closes."""
    name = b""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                continue
            body = await reader.readexactly(int(re.search(rb"content-length: (\d+)", head.lower())[1]))
            said = json.loads(body)
            name = re.search(rb"x-request-id: (\S+)", head)[1]
            seconds = float(said["user"])
            log = sent[name] = bytearray()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for number in range(max(int(seconds / GAP_S), 1)):
                data = event(name, number)
                log += data
                writer.write(b"%x\r\n%b\r\n" % (len(data), data))
                watch = asyncio.ensure_future(reader.read(1)) if seconds > 1e6 else None
                if watch is not None:
                    await watch
                    return
                await asyncio.sleep(GAP_S)
            log += b"data: [DONE]\n\n"
            writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        closed_at_s[name] = time.monotonic()
        writer.close()


def request(name: bytes, seconds: float) -> bytes:
    told = {"model": "m", "stream": True, "user": str(seconds), "messages": [{"role": "user", "content": "hello"}]}
    body = json.dumps(told | {"stream_options": {"include_usage": True}}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-request-id: %b\r\nx-slo-class: batch\r\ncontent-length: %d\r\n\r\n%b" % (
        name,
        len(body),
        body,
    )


async def whole(port: int, name: bytes, seconds: float) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(request(name, seconds))
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


async def departure(port: int, number: int, chance: random.Random) -> float | None:
    """Leave at a random moment; seconds until the engine saw it, None when it was never sent there."""
    name = b"leaves-%d" % number
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(name, 1e7 if number % 2 else 1e9))
    await asyncio.sleep(chance.random() * 0.3)
    left_s = time.monotonic()
    writer.transport.abort() if number % 3 else writer.close()
    for _ in range(400):
        await asyncio.sleep(0.005)
        if name in closed_at_s:
            return max(closed_at_s[name] - left_s, 0.0)
        if name not in sent and time.monotonic() - left_s > 0.5:
            return None
    return 9.0


def memory_kb(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


async def run(given: argparse.Namespace) -> dict[str, float]:
    server = await asyncio.start_server(engine, "127.0.0.1", 0, backlog=2048)
    at = server.sockets[0].getsockname()[1]
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        port, admin = one.getsockname()[1], two.getsockname()[1]
    pool = f"premium:H100:limit=5000=http://127.0.0.1:{at}"
    arguments = ["serve", "--port", str(port), "--admin-port", str(admin), "--model", "m", "--pool", pool, "--mode", "observe"]
    child = subprocess.Popen([sys.executable, "-m", "gateway", *arguments], stderr=subprocess.DEVNULL)
    try:
        async with httpx.AsyncClient() as client:
            for _ in range(200):
                try:
                    await client.get(f"http://127.0.0.1:{port}/livez")
                    break
                except httpx.HTTPError:
                    await asyncio.sleep(0.05)
            await whole(port, b"warm", 0.4)
            idle_kb = memory_kb(child.pid)
            tasks = [asyncio.create_task(whole(port, b"s%d" % number, given.seconds)) for number in range(given.streams)]
            await asyncio.sleep(given.seconds / 2)
            open_kb = memory_kb(child.pid)
            bodies = await asyncio.gather(*tasks)
            alike = sum(body == bytes(sent[b"s%d" % number]) for number, body in enumerate(bodies))
            chance = random.Random(1)
            took: list[float | None] = []
            for start in range(0, given.departures, 50):
                took += await asyncio.gather(*(departure(port, number, chance) for number in range(start, start + 50)))
            seen = sorted(one for one in took if one is not None)
            await asyncio.sleep(1.0)
            fleet = (await client.get(f"http://127.0.0.1:{admin}/admin/fleet")).json()
            queues = (await client.get(f"http://127.0.0.1:{admin}/admin/queues")).json()
        after_kb = memory_kb(child.pid)
        return {
            "streams": given.streams,
            "byte_identical": alike,
            "idle_mb": round(idle_kb / 1024, 1),
            "kb_per_stream": round((open_kb - idle_kb) / given.streams, 1),
            "after_mb": round(after_kb / 1024, 1),
            "departures": len(took),
            "reached_the_engine": len(seen),
            "closed_p50_ms": round(statistics.median(seen) * 1000, 1),
            "closed_p99_ms": round(seen[min(int(len(seen) * 0.99), len(seen) - 1)] * 1000, 1),
            "in_flight_left": sum(instance["in_flight"] for instance in fleet),
            "waiting_left": sum(queue["requests"] for queue in queues),
        }
    finally:
        child.terminate()
        child.wait(15)
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--departures", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    told = asyncio.run(run(given))
    print(json.dumps(told) if given.json else "\n".join(f"{name:<20}{value:>10}" for name, value in told.items()))
    sys.exit(0 if told["byte_identical"] == given.streams and not told["in_flight_left"] and not told["waiting_left"] else 1)


if __name__ == "__main__":
    main()
