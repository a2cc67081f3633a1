"""Ask a real engine every question of CASES and keep its answers, byte for byte and piece by piece, in FOLDER/CASE.json.

    python loadtests/engines/record.py http://127.0.0.1:8000 MODEL tests/data/engines/vllm [--only CASE]

The bodies are what the gateway sends: with the usage it asks for where a client did not. tests/faults/test_recorded_engines.py replays
the files. Chance varies what an engine writes, so a new recording has new bytes, but the same habits.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Say hello."}]
LOOK_UP = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}}
LONG = "many words "
USAGE = {"stream_options": {"include_usage": True}}


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "MODEL", "messages": HELLO, "max_tokens": 12} | more


CASES: dict[str, tuple[str, Any]] = {
    "chat_stream": (CHAT, USAGE | chat(stream=True)),
    "chat_stream_without_options": (CHAT, chat(stream=True)),
    "chat_stream_two_choices": (CHAT, USAGE | chat(stream=True, n=2)),
    "chat_stream_long_prompt": (CHAT, USAGE | chat(stream=True, messages=[{"role": "user", "content": LONG * 1200}])),
    "chat_stream_tool": (CHAT, USAGE | chat(stream=True, max_tokens=48, tools=[LOOK_UP], tool_choice="required")),
    "chat_whole": (CHAT, chat()),
    "chat_whole_tool": (CHAT, chat(max_tokens=48, tools=[LOOK_UP], tool_choice="required")),
    "chat_without_max_tokens": (CHAT, {"model": "MODEL", "messages": HELLO}),
    "completions_stream": ("/v1/completions", USAGE | {"model": "MODEL", "prompt": "def f(", "max_tokens": 8, "stream": True}),
    "completions_whole": ("/v1/completions", {"model": "MODEL", "prompt": "def f(", "max_tokens": 8}),
    "responses_stream": ("/v1/responses", {"model": "MODEL", "input": "hello", "max_output_tokens": 8, "stream": True}),
    "responses_whole": ("/v1/responses", {"model": "MODEL", "input": "hello", "max_output_tokens": 8}),
    "embeddings": ("/v1/embeddings", {"model": "MODEL", "input": ["a", "b"]}),
    "messages_stream": ("/v1/messages", {"model": "MODEL", "messages": HELLO, "max_tokens": 8, "stream": True}),
    "messages_whole": ("/v1/messages", {"model": "MODEL", "messages": HELLO, "max_tokens": 8}),
    "wrong_model": (CHAT, chat(model="nobody")),
    "wrong_value": (CHAT, chat(temperature="hot")),
    "wrong_value_stream": (CHAT, USAGE | chat(temperature="hot", stream=True)),
    "wrong_messages": (CHAT, chat(messages=[{"role": "user"}])),
    "too_long": (CHAT, chat(messages=[{"role": "user", "content": LONG * 6000}])),
    "too_long_stream": (CHAT, USAGE | chat(messages=[{"role": "user", "content": LONG * 6000}], stream=True)),
    "unknown_field": (CHAT, chat(never_heard_of_it=1)),
    "tools_unconfigured": (CHAT, chat(tools=[LOOK_UP], tool_choice="auto")),
    "models": ("/v1/models", None),
    "health": ("/health", None),
    "version": ("/version", None),
    "metrics": ("/metrics", None),
}
# Of a page of metrics only what a gateway may look for is kept: the rest is long and says nothing.
KEPT_METRICS = (
    "cache_config_info",
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage",
    "dynamo_frontend_inflight",
    "dynamo_frontend_model",
)
QUIET_S = 20.0


def ask(host: str, port: int, path: str, body: Any) -> tuple[list[tuple[float, bytes]], bool]:
    """[(milliseconds after the request was sent, bytes)], and whether the engine closed the connection."""
    raw = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    with socket.create_connection((host, port), timeout=QUIET_S) as sock:
        sock.sendall(head.encode() + raw)
        began_s, parts, whole = time.monotonic(), [], b""
        while not complete(whole):
            data = sock.recv(1 << 20)
            if not data:
                return parts, True
            parts.append((round((time.monotonic() - began_s) * 1000.0, 1), data))
            whole += data
        sock.settimeout(0.3)
        try:
            return parts, sock.recv(1) == b""
        except TimeoutError:
            return parts, False


def complete(data: bytes) -> bool:
    head, blank, body = data.partition(b"\r\n\r\n")
    if not blank:
        return False
    head = head.lower()
    if b"\r\ntransfer-encoding: chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    at = head.find(b"\r\ncontent-length: ")
    return at >= 0 and len(body) >= int(head[at + 18 :].split(b"\r\n")[0])


def trimmed(parts: list[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    _, _, body = b"".join(data for _, data in parts).partition(b"\r\n\r\n")
    lines = [line for line in body.split(b"\n") if any(kept.encode() in line for kept in KEPT_METRICS)][:60]
    text = b"\n".join(lines) + b"\n"
    return [(0.0, b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n" % len(text) + text)]


def short(value: Any) -> Any:
    """A body as it is kept: how often LONG was said rather than all of it."""
    if value is None or "messages" not in value:
        return value
    said = [m | {"content": [LONG, len(m["content"]) // len(LONG)]} if LONG in m.get("content", "") else m for m in value["messages"]]
    return value | {"messages": said}


def named(value: Any, model: str) -> Any:
    return {**value, "model": model} if value is not None and value["model"] == "MODEL" else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", default=[])
    given = parser.parse_args()
    host, _, port = given.url.removeprefix("http://").partition(":")
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, (path, value) in CASES.items():
        if given.only and name not in given.only:
            continue
        body = named(value, given.model)
        try:
            parts, closed = ask(host, int(port), path, body)
        except (OSError, TimeoutError) as error:
            print(f"{name}: {error!r}", file=sys.stderr)
            continue
        if name == "metrics":
            parts = trimmed(parts)
        kept = {"path": path, "body": short(body), "closed": closed, "answer": [[ms, data.decode("latin-1")] for ms, data in parts]}
        (given.folder / f"{name}.json").write_text(json.dumps(kept, indent=0) + "\n")
        first = parts[0][1].split(b"\r\n")[0].decode() if parts else "nothing"
        print(
            f"{name:<30}{first:<34}{len(parts):>4} pieces {sum(len(d) for _, d in parts):>7} bytes  {parts[-1][0] if parts else 0:>8.1f} ms"
        )


if __name__ == "__main__":
    main()
