"""A hundred thousand inputs that nobody sane would send: no answer of 5xx, and memory stays where it was.

python loadtests/hostile.py [--inputs 100000] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

SEEDS = [
    {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 3},
    {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "h\u00e9"}]}],
        "n": 2,
        "metadata": {"slo_class": "batch"},
    },
    {"model": "m", "prompt": ["a", [1, 2]], "suffix": "b", "stream_options": {"include_usage": True}},
    {"model": "m", "input": "x" * 3000, "service_tier": "flex"},
]
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages", "/v1/models", "/metrics", "/nothing"]
ODD = [b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"{", b"[" * 500, b'"', b"\\u", b"NaN", b"1e999", b"9" * 400, b"null", b"\r\n", b"\r\n\r\n"]
FIELDS = [
    b"x-slo-class: nonsense", b"x-slo-ttft-ms: -5", b"transfer-encoding: chunked", b"content-length: 5", b"expect: 100-continue",
    b"upgrade: h2c", b"connection: upgrade", b"host: b", b"x: " + b"y" * 9000, b"content-encoding: gzip", b"x-request-id: \xff\xfe",
    b"traceparent: 00-zz", b": empty", b"a b: c", b"authorization: Bearer " + b"z" * 500, b"x-slo-use-case: chatbot",
    b"cookie: " + b"k" * 17000,
]  # fmt: skip


def hostile(chance: random.Random) -> bytes:
    """One input."""
    body = json.dumps(chance.choice(SEEDS)).encode()
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(body) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            body = body[:at] + chance.choice(ODD) + body[at:]
        elif kind == 1:
            body = body[:at] + body[at + chance.randrange(9) :]
        elif kind == 2:
            body = body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :]
        else:
            body = body.replace(b'"model"', chance.choice([b'"mod\\u0065l"', b'"model":1,"model"', b'"Model"']), 1)
    method = chance.choice(["POST", "POST", "POST", "GET", "PUT", "get", "CONNECT", "P\x01ST"])
    head = f"{method} {chance.choice(PATHS)} HTTP/{chance.choice(['1.1', '1.1', '1.1', '1.0', '2.0', '1.1 '])}\r\n".encode()
    fields = [b"host: a"] if chance.random() < 0.95 else []
    fields += [chance.choice(FIELDS) for _ in range(chance.choice([0, 0, 1, 2]))]
    if chance.random() < 0.9:
        fields.append(b"content-length: %d" % (len(body) + chance.choice([0, 0, 0, 0, -3, 7])))
    data = head + b"\r\n".join(fields) + b"\r\n\r\n" + body
    if chance.random() < 0.1:
        data = data[: chance.randrange(len(data))]
    if chance.random() < 0.05:
        data = chance.randbytes(chance.randrange(1, 300))
    return data


async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers everything well."""
    body = b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            if length:
                await reader.readexactly(int(length[1]))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def send(port: int, data: bytes, chance: random.Random, told: Counter[int]) -> None:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        told[-1] += 1
        return
    try:
        cut = chance.randrange(len(data) + 1) if chance.random() < 0.3 else len(data)
        writer.write(data[:cut])
        if cut < len(data):
            await asyncio.sleep(0)
            writer.write(data[cut:])
        if chance.random() < 0.8:
            writer.write_eof()
        answer = await asyncio.wait_for(reader.read(65536), 0.1)
        match = re.match(rb"HTTP/1\.1 (\d+) ", answer)
        told[int(match[1]) if match else 0] += 1
    except (OSError, TimeoutError):
        told[0] += 1
    finally:
        writer.transport.abort()


def memory_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1048576


async def run(given: argparse.Namespace) -> int:
    server = await asyncio.start_server(engine, "127.0.0.1", 0, backlog=1024)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    pool = f"premium:H100:limit=5000=http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    arguments = ["serve", "--port", str(port), "--admin-port", "0", "--model", "m", "--pool", pool]
    child = subprocess.Popen([sys.executable, "-m", "gateway", *arguments], stderr=subprocess.PIPE)
    chance, told = random.Random(given.seed), Counter[int]()
    try:
        for _ in range(200):
            await asyncio.sleep(0.02)
            try:
                socket.create_connection(("127.0.0.1", port), 0.1).close()
                break
            except OSError:
                continue
        before_mb = 0.0
        began_s = time.monotonic()
        for start in range(0, given.inputs, 100):
            if start == min(5_000, given.inputs // 10):
                before_mb = memory_mb(child.pid)  # once every path has been walked
            await asyncio.gather(*(send(port, hostile(chance), chance, told) for _ in range(100)))
            if start % 5000 == 0:
                print(f"\r{start:>7} {time.monotonic() - began_s:4.0f} s", end="", file=sys.stderr, flush=True)
        await asyncio.sleep(0.5)
        after_mb = memory_mb(child.pid)
    finally:
        child.terminate()
        _, log = await asyncio.get_running_loop().run_in_executor(None, child.communicate)
        server.close()
    print(file=sys.stderr)
    faults = sum(count for status, count in told.items() if status >= 500 and status != 503)
    raised = log.count(b"Traceback")
    print(dict(sorted(told.items())))
    print(f"inputs {sum(told.values())}, 5xx {faults}, refused for want of capacity {told[503]}, exceptions logged {raised}")
    print(f"memory {before_mb:.1f} -> {after_mb:.1f} MB")
    if raised:
        print(log[log.index(b"Traceback") :][:4000].decode(errors="replace"), file=sys.stderr)
    return 0 if not faults and not raised and after_mb - before_mb <= 16 else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
