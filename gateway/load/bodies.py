"""Requests to send: jobs of a mix or a trace (simulate/workload.py), worded by labelled samples that ship with the gateway.

A sample is cut or filled up to the job's prompt length with text of other samples; NOTICE names their source.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any

import msgspec

from gateway.simulate.engine import OUTPUT_KEY
from gateway.simulate.workload import Job

CHARS_PER_TOKEN = 4
DOCUMENT = "{{document}}"
_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Shot:
    """One request to send, and what it is."""

    at_s: float
    path: str
    body: bytes
    use_case: str
    output_tokens: int


@cache
def samples() -> dict[str, list[dict[str, Any]]]:
    """use case -> labelled requests."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (files("gateway.load") / "samples.jsonl").read_bytes().splitlines():
        row = msgspec.json.decode(line)
        found.setdefault(row["use_case"], []).append(row)
    return found


@cache
def _filler() -> str:
    messages = [m for rows in samples().values() for row in rows for m in row["request"].get("messages", ())]
    texts = [m["content"] for m in messages if isinstance(m.get("content"), str) and len(m["content"]) > 400]
    return "\n\n".join(texts)


def _filled(text: str, chars: int, chance: Random) -> str:
    """`text` with its document in place, about `chars` long in all."""
    filler = _filler()
    missing = max(chars - len(text), 0)
    if DOCUMENT in text:
        start = chance.randrange(len(filler))
        document = (filler[start:] + filler * (missing // len(filler) + 1))[: max(missing, 200)]
        return text.replace(DOCUMENT, document, 1).replace(DOCUMENT, "")
    return text


class Lengths(StrEnum):
    """How an engine learns how long an answer is to be."""

    EXACT = "exact"  # `max_tokens`, which everybody in between sees too
    HIDDEN = "hidden"  # a key of `metadata` that only simulated engines read: a gateway has to guess, as with real traffic
    FREE = "free"  # the engine decides


def shot(job: Job, model: str, stream: bool, chance: Random, lengths: Lengths = Lengths.EXACT) -> Shot:
    """A job in words."""
    known = samples()
    row = chance.choice(known.get(job.use_case) or known["chatbot"])
    request = msgspec.json.decode(_json(row["request"]))
    request["model"] = model
    request["stream"] = stream
    said = request.pop("max_completion_tokens", None) or request.pop("max_tokens", None) or 0
    request.pop("max_tokens", None)
    request.pop("n", None)
    if lengths is Lengths.EXACT:
        request["max_tokens"] = job.output_tokens
    elif said and (lengths is Lengths.FREE or said >= job.output_tokens):
        request["max_tokens"] = said
    if lengths is Lengths.HIDDEN:
        request["metadata"] = {OUTPUT_KEY: str(job.output_tokens)}
    _lengthen(request, job.prompt_tokens * CHARS_PER_TOKEN, chance)
    return Shot(job.at_s, row["endpoint"], _json(request), job.use_case, job.output_tokens)


def _lengthen(request: dict[str, Any], chars: int, chance: Random) -> None:
    """Documents put in their places, and text before a prompt that is too short for the job."""
    if isinstance(request.get("prompt"), str):
        has = len(request["prompt"])
        if has < chars * 0.8:
            request["prompt"] = _filled(DOCUMENT, chars - has, chance) + "\n" + request["prompt"]
        return
    messages = [m for m in request.get("messages", ()) if isinstance(m.get("content"), str)]
    for message in messages:
        message["content"] = _filled(message["content"], chars, chance)
    has = sum(len(m["content"]) for m in messages)
    if messages and has < chars * 0.8:
        last = messages[-1]
        last["content"] = _filled(DOCUMENT, chars - has, chance) + "\n\n" + last["content"]
