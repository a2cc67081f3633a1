"""Answers of real engines, recorded by loadtests/engines/record.py (tests/data/engines), and an engine that gives them again."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.conftest import ScriptedEngine

FOLDER = Path(__file__).parents[1] / "data" / "engines"
ENGINES = ("vllm", "dynamo", "transformers")


@dataclass(frozen=True)
class Recording:
    """One question and its answer."""

    engine: str
    case: str
    path: str
    body: Any
    pieces: tuple[bytes, ...]  # as they were read from the engine's socket
    closed: bool  # the engine closed the connection behind it

    @property
    def wire(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def head(self) -> bytes:
        return self.wire.partition(b"\r\n\r\n")[0].lower()

    @property
    def status(self) -> int:
        return int(self.head.split(b" ")[1])

    @property
    def content(self) -> bytes:
        """The body without its chunks."""
        raw = self.wire.partition(b"\r\n\r\n")[2]
        if b"transfer-encoding: chunked" not in self.head:
            return raw
        body = b""
        while raw:
            line, _, raw = raw.partition(b"\r\n")
            size = int(line, 16)
            body += raw[:size]
            raw = raw[size + 2 :]
        return body

    @property
    def streams(self) -> bool:
        return b"content-type: text/event-stream" in self.head

    @property
    def events(self) -> list[bytes]:
        return [event + b"\n\n" for event in self.content.split(b"\n\n") if event]

    @property
    def without_usage_chunk(self) -> bytes:
        return b"".join(event for event in self.events if not (b'"choices":[]' in event and b'"usage":{' in event))

    @property
    def usage(self) -> dict[str, int] | None:
        """The last usage that is told, in the engine's words."""
        values = [json.loads(event.split(b"data:")[-1]) for event in self.events if b'"usage":{' in event]
        found = [(value.get("response") or value)["usage"] for value in values if "usage" in (value.get("response") or value)]
        return found[-1] if found else None


def _long(value: Any) -> Any:
    for message in value.get("messages", ()) if value else ():
        if isinstance(message.get("content"), list):
            word, times = message["content"]
            message["content"] = word * times
    return value


@cache
def recordings(engine: str) -> dict[str, Recording]:
    found = {}
    for file in sorted((FOLDER / engine).glob("*.json")):
        kept = json.loads(file.read_text())
        pieces = tuple(text.encode("latin-1") for _, text in kept["answer"])
        found[file.stem] = Recording(engine, file.stem, kept["path"], _long(kept["body"]), pieces, kept["closed"])
    return found


class Replay(ScriptedEngine):
    """Gives what the engine gave to the same body at the same path; a question nobody asked it then is answered 599. `size` cuts the
    answer anew, `pause_s` is waited in front of the first piece that carries content."""

    def __init__(self, engine: str) -> None:
        self.known = recordings(engine)
        self.size = 0
        self.pause_s = 0.0
        self.given: list[str] = []
        pages = {r.path: r.wire for r in self.known.values() if r.body is None}
        super().__init__(self._answer, pages)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _, raw = self.requests[-1].partition(b"\r\n\r\n")
        path, body = head.split(b" ")[1].decode(), json.loads(raw)
        found = next((r for r in self.known.values() if r.path == path and r.body == body), None)
        if found is None:
            writer.write(b"HTTP/1.1 599 Unknown\r\ncontent-length: 0\r\n\r\n")
            return
        self.given.append(found.case)
        cut = self.size or len(found.wire)
        pieces = found.pieces if not self.size else [found.wire[at : at + cut] for at in range(0, len(found.wire), cut)]
        waited = False
        for piece in pieces:
            if self.pause_s and not waited and carries_content(piece):
                waited = True
                await asyncio.sleep(self.pause_s)
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if found.closed:
            writer.close()


_CONTENT = re.compile(rb'"(?:content|text|delta)":"[^"]|"tool_calls":\[\{')


def carries_content(piece: bytes) -> bool:
    """Of a piece of one of the recordings: none of them has a space behind its colons."""
    return _CONTENT.search(piece) is not None
