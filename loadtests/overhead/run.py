"""What the gateway itself costs: CPU time per request, per stream and per chunk, beside nginx, windows in turn, one run.

CPU is utime + stime of the process tree over exact windows, so that it hardly moves with what else the machine does; still, compare only
figures of one run. Core 0 is the gateway's, core 1 carries the fake engine and the load. Needs Linux and two cores; without nginx its
column is left out.

    python loadtests/overhead/run.py [--seconds 3] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHUNKS = 64
PROMPTS = {"json_2k": 2_000, "json_40k": 40_000, "json_1m": 1_000_000}
ANSWER = json.dumps(
    {
        "id": "c", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 40}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 500, "completion_tokens": 40, "total_tokens": 540},
    }
).encode()  # fmt: skip
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'


class FakeEngine(asyncio.Protocol):
    """Answers at once: JSON, or a burst of 64 events."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.data, self.need = transport, bytearray(), -1

    def data_received(self, data: bytes) -> None:
        self.data += data
        while True:
            if self.need < 0:
                end = self.data.find(b"\r\n\r\n")
                if end < 0:
                    return
                head = bytes(self.data[:end]).lower()
                at = head.find(b"content-length:")
                self.need = end + 4 + (int(head[at + 15 :].split(b"\r\n")[0]) if at >= 0 else 0)
            if len(self.data) < self.need:
                return
            streams = b'"stream":true' in self.data[: self.need] or b'"stream": true' in self.data[: self.need]
            del self.data[: self.need]
            self.need = -1
            if streams:
                chunk = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
                head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                self.transport.write(head + chunk * CHUNKS + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
            else:
                self.transport.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
                )


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def engine_process(port: int) -> int:
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, {1 % os.cpu_count()})
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        async def serve() -> None:
            server = await asyncio.get_running_loop().create_server(FakeEngine, "127.0.0.1", port, backlog=1024)
            await server.serve_forever()

        import uvloop

        uvloop.run(serve())
        os._exit(0)
    return pid


async def load(port: int, body: bytes, seconds: float, connections: int) -> int:
    """A closed loop; how many answers came."""
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
    end_s = time.monotonic() + seconds
    done = 0

    async def one() -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        while time.monotonic() < end_s:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"not a good answer: {head[:200]!r}")
            at = head.lower().find(b"content-length:")
            if at >= 0:
                await reader.readexactly(int(head[at + 15 :].split(b"\r\n")[0]))
            else:
                await reader.readuntil(b"0\r\n\r\n")
            done += 1
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return done


def cpu_s(pid: int) -> float:
    """Of a process and its children."""
    total = 0.0
    tick = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(entry.name) == pid or int(fields[1]) == pid:
                total += (int(fields[11]) + int(fields[12])) / tick
    return total


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def start(name: str, port: int, upstream: int, folder: Path) -> subprocess.Popen[bytes]:
    if name == "nginx":
        (folder / "nginx.conf").write_text(
            f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;\n"
            "events { worker_connections 4096; }\n"
            "http { access_log off; client_body_buffer_size 2m; client_max_body_size 8m; proxy_buffering off;\n"
            f"client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
            f"upstream e {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000; }}\n"
            f"server {{ listen 127.0.0.1:{port}; keepalive_requests 1000000;\n"
            'location / { proxy_pass http://e; proxy_http_version 1.1; proxy_set_header connection ""; } } }\n'
        )
        command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    else:
        pool = f"premium:H100:limit=20000=http://127.0.0.1:{upstream}"
        command = [sys.executable, "-m", "gateway", "serve", "--port", str(port), "--admin-port", "0", "--model", "m", "--pool", pool]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.sched_setaffinity(child.pid, {0})
    for _ in range(400):
        try:
            socket.create_connection(("127.0.0.1", port), 0.1).close()
            return child
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"{name} did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    names = [name for name in ("nginx", "slo-gateway") if name != "nginx" or shutil.which("nginx")]
    message = {"model": "m", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ""}]}
    bodies = {}
    for name, size in PROMPTS.items():
        message["messages"][1]["content"] = "hello " * (size // 6)
        bodies[name] = json.dumps(message).encode()
    message["messages"][1]["content"] = "hello " * 300
    bodies["burst_64"] = json.dumps(message | {"stream": True}).encode()
    upstream = free_port()
    engine = engine_process(upstream)
    children: dict[str, subprocess.Popen[bytes]] = {}
    ports: dict[str, int] = {}
    seen: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in names:
                ports[name] = free_port()
                children[name] = start(name, ports[name], upstream, Path(folder))
            os.sched_setaffinity(0, {1 % os.cpu_count()})
            idle_mb = rss_mb(children["slo-gateway"].pid)
            for round_ in range(given.rounds + 1):
                for what, body in bodies.items():
                    for name in names:
                        print(f"\rround {round_}/{given.rounds} {what} {name}      ", end="", file=sys.stderr, flush=True)
                        before_s = cpu_s(children[name].pid)
                        count = asyncio.run(load(ports[name], body, given.seconds if round_ else 0.5, 8 if len(body) > 10_000 else 32))
                        if round_:  # the first one warms up
                            seen.setdefault((what, name), []).append((cpu_s(children[name].pid) - before_s) / count * 1e6)
            print(file=sys.stderr)
        finally:
            for child in children.values():
                child.terminate()
            os.kill(engine, signal.SIGKILL)
            for child in children.values():
                child.wait(10)
    rows = {what: {name: statistics.median(seen[what, name]) for name in names} for what in bodies}
    if given.json:
        print(json.dumps({"cpu_us": rows, "idle_mb": idle_mb}))
        return
    print(f"{'CPU us each':<12}" + "".join(f"{name:>14}" for name in names) + ("         ratio" if len(names) > 1 else ""))
    for what, row in rows.items():
        ratio = f"{row['slo-gateway'] / row['nginx']:>13.1f}x" if "nginx" in row else ""
        print(f"{what:<12}" + "".join(f"{row[name]:>14.0f}" for name in names) + ratio)
    print(f"idle memory {idle_mb:.0f} MB")


if __name__ == "__main__":
    main()
