"""A real engine behind the gateway, question for question: is what a client gets byte for byte what the engine said, is the first token
timed where it was, and do the engine's errors come out as OpenAI errors?

    python loadtests/engines/through.py http://127.0.0.1:8000 MODEL [--kind vllm|transformers|dynamo] [--rounds 3]

A tap between gateway and engine keeps the engine's bytes and when each came; the gateway's own figures are read from its request log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from record import CASES

PUBLIC = "public-name"
STRIPPED = ("stream_options",)


class Tap:
    """Between gateway and engine: passes bytes on, keeps the answer's by request id."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.asked: dict[str, list[bytes]] = {}
        self.said: dict[str, list[list[tuple[float, bytes]]]] = {}
        self.came_at_s: dict[str, float] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(self.host, self.port)
        answers: list[list[tuple[float, bytes]]] = [[]]

        async def back() -> None:
            with contextlib.suppress(ConnectionError):
                while data := await up_reader.read(1 << 20):
                    answers[-1].append((time.monotonic(), data))
                    writer.write(data)
            writer.close()

        task = asyncio.create_task(back())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                body = await reader.readexactly(int(length[1])) if length else b""
                name = re.search(rb"x-request-id: (\S+)", head)
                answers.append([])
                if name:
                    self.asked.setdefault(name[1].decode(), []).append(body)
                    self.came_at_s.setdefault(name[1].decode(), time.monotonic())
                    self.said.setdefault(name[1].decode(), []).append(answers[-1])
                up_writer.write(head + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            up_writer.close()
            task.cancel()
            writer.close()


def content(answer: list[tuple[float, bytes]]) -> tuple[int, bytes, list[tuple[float, int]]]:
    """Status, the body without its framing, and [(time, bytes of the body that had come by then)]."""
    data = b"".join(part for _, part in answer)
    head, _, raw = data.partition(b"\r\n\r\n")
    chunked = b"transfer-encoding: chunked" in head.lower()
    body, ends, at = b"", [], 0
    if not chunked:
        body = raw
    else:
        while at < len(raw):
            line, _, _ = raw[at:].partition(b"\r\n")
            size = int(line.split(b";")[0], 16)
            start = at + len(line) + 2
            body += raw[start : start + size]
            at = start + size + 2
            ends.append((len(head) + 4 + at, len(body)))
            if not size:
                break
    seen, times = 0, []
    for at_s, part in answer:
        seen += len(part)
        times.append((at_s, max((done for end, done in ends if end <= seen), default=0) if chunked else max(seen - len(head) - 4, 0)))
    return int(head.split(b" ")[1]), body, times


def is_token(event: bytes) -> bool:
    """Written apart from the gateway's own reader, by the rule alone."""
    lines = [line[5:].strip() for line in event.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data:")]
    try:
        value = json.loads(b"\n".join(lines))
    except ValueError:
        return False
    if str(value.get("type", "")).endswith(("output_text.delta", "content_block_delta", "arguments.delta", "reasoning_text.delta")):
        return True
    for choice in value.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or any(delta.get(k) for k in ("content", "reasoning", "reasoning_content", "refusal", "tool_calls")):
            return True
    return False


def first_token_at(body: bytes, times: list[tuple[float, int]]) -> float | None:
    at = 0
    while (end := body.find(b"\n\n", at)) >= 0:
        if is_token(body[at:end]):
            return next((at_s for at_s, done in times if done >= end + 2), None)
        at = end + 2
    return None


def without_usage(body: bytes) -> bytes:
    events = re.split(rb"(?<=\n\n)", body)
    return b"".join(e for e in events if not (b'"choices":[]' in e.replace(b" ", b"") and b'"usage":{' in e.replace(b" ", b"")))


async def ask(port: int, path: str, body: bytes, name: str) -> tuple[int, bytes, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    fields = f"x-slo-class: batch\r\nx-request-id: {name}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
    writer.write(f"POST {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n".encode() + body)
    data = await asyncio.wait_for(reader.read(-1), 60.0)
    writer.close()
    status, got, _ = content([(0.0, data)])
    return status, data.partition(b"\r\n\r\n")[0], got


def verdict(case: str, status: int, got: bytes, said: list[list[tuple[float, bytes]]], asked_usage: bool) -> list[str]:
    """What is wrong with it."""
    wrong = []
    if status >= 400:
        try:
            error = json.loads(got)["error"]
            shown = error if "param" in error or path_of(case) == "/v1/messages" else {}
            if not (isinstance(error["message"], str) and isinstance(error["type"], str) and shown):
                wrong.append(f"not an OpenAI error: {got!r}")
        except (ValueError, KeyError, TypeError):
            wrong.append(f"not an OpenAI error: {got!r}")
        return wrong
    _, body, _ = content(said[-1])
    expected = body if asked_usage or "stream" not in case else without_usage(body)
    if got != expected:
        wrong.append(f"bytes differ: {len(got)} against {len(expected)}")
    return wrong


def path_of(case: str) -> str:
    return CASES[case][0]


async def run(given: argparse.Namespace, folder: Path) -> int:
    host, _, port = given.url.removeprefix("http://").partition(":")
    tap = Tap(host, int(port))
    server = await asyncio.start_server(tap.serve, "127.0.0.1", 0, limit=1 << 24)
    pool = {"tier": "premium", "gpu": "H100", "model": PUBLIC, "served_model": given.model, "engine": given.kind}
    config = {
        "mode": "observe",
        "listen": {"port": 0},
        "admin": {"port": 0},
        "models": [{"name": PUBLIC}],
        "pools": {"premium": pool | {"instances": [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"]}},
        "telemetry": {"request_log": str(folder / "log.jsonl")},
        "coalesce": {"enabled": False},
    }
    (folder / "gateway.yaml").write_text(json.dumps(config))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "serve", str(folder / "gateway.yaml"), stderr=asyncio.subprocess.PIPE
    )
    assert child.stderr is not None
    line = b""
    while b"ready:" not in line:
        line = await child.stderr.readline()
        if not line:
            raise SystemExit("the gateway did not start")
    listening = int(re.search(rb"http://127\.0\.0\.1:(\d+)", line)[1])
    drain = asyncio.create_task(child.stderr.read())
    wrong, starts = 0, []
    try:
        for number in range(given.rounds):
            for case, (path, value) in CASES.items():
                if value is None or not path.startswith("/v1/"):
                    continue
                body = {k: v for k, v in value.items() if k not in STRIPPED}
                asked_usage = number % 2 == 1 and "stream_options" in value
                if asked_usage:
                    body["stream_options"] = value["stream_options"]
                if body["model"] == "MODEL":
                    body["model"] = PUBLIC
                name = f"{case}-{number}"
                status, _, got = await ask(listening, path, json.dumps(body).encode(), name)
                said = tap.said.get(name, [])
                problems = verdict(case, status, got, said, asked_usage)
                wrong += len(problems)
                starts.append((name, said, status))
                if number == 0 or problems:
                    engine_status = content(said[-1])[0] if said and said[-1] else 0
                    detail = json.loads(got)["error"] if status >= 400 and not problems else ""
                    print(f"{name:<32} engine {engine_status} x{len(said)}  client {status}  {problems or 'ok'} {detail}")
    finally:
        child.send_signal(signal.SIGTERM)
        await child.wait()
        drain.cancel()
        server.close()
    log = {row["request_id"]: row for row in map(json.loads, (folder / "log.jsonl").read_text().splitlines())}
    late = []
    for name, said, status in starts:
        if status != 200 or not said or "stream" not in name:
            continue
        _, body, times = content(said[-1])
        first_s = first_token_at(body, times)
        told_s = log[name]["ttft_s"]
        if first_s is None or told_s is None:
            print(name, "no first token on one side:", first_s, told_s)
            wrong += (first_s is None) != (told_s is None)
            continue
        # What the gateway tells begins when it had read the request, a moment before the tap saw it.
        late.append(told_s - (first_s - tap.came_at_s[name]))
    if late:
        late.sort()
        middle, least, most = (one * 1e3 for one in (late[len(late) // 2], late[0], late[-1]))
        print(f"TTFT told - TTFT at the tap: median {middle:.2f} ms, {least:.2f} to {most:.2f}, of {len(late)} streams")
    print("wrong:", wrong)
    return 1 if wrong else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--kind", default="openai")
    parser.add_argument("--rounds", type=int, default=2)
    with tempfile.TemporaryDirectory(prefix="slo-gateway-") as folder:
        code = asyncio.run(run(parser.parse_args(), Path(folder)))
    sys.exit(code)


if __name__ == "__main__":
    main()
