"""What a simulated engine writes: the JSON and events of each endpoint around a row of words. No sockets."""

from __future__ import annotations

import base64
import itertools
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgspec

_json = msgspec.json.Encoder().encode
_WORDS = (
    " the", " gateway", " keeps", " its", " promise", " to", " every", " reader", ",", " and", " a", " token",
    " comes", " when", " it", " was", " due", ".", " Then", " another", " one", " follows", " in", " time",
)  # fmt: skip
_ids = itertools.count(1)
BLOCK_BYTES = 1024
MAX_BLOCKS = 64
MAX_CHOICES = 128
DIMENSIONS = 384
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages")


class Wording(ABC):
    """One request's answer in words."""

    generates = True

    def __init__(self, said: dict[str, Any], prompt: Any, most_tokens: Any) -> None:
        self.model = str(said.get("model", ""))
        self.stream = said.get("stream") is True
        n = said.get("n")
        self.n = 1 if n is None else n
        if not isinstance(n, int | None) or not 1 <= self.n <= MAX_CHOICES:
            raise ValueError(f"n: 1 to {MAX_CHOICES}")
        self.most_tokens: int | None = most_tokens if isinstance(most_tokens, int) and not isinstance(most_tokens, bool) else None
        options = said.get("stream_options")
        self.wants_usage = isinstance(options, dict) and options.get("include_usage") is True
        raw = _json(prompt)
        self.prompt_bytes = max(len(raw) - 16, 4)
        blocks = min(len(raw) // BLOCK_BYTES, MAX_BLOCKS)
        self.hashes = tuple(itertools.accumulate((hash(raw[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]) for i in range(blocks)), _chained))
        self.prompt_tokens = max(self.prompt_bytes // 4, 1)
        self.hit_limit = False
        self.id = f"{next(_ids):08x}"
        self.created = int(time.time())

    def word(self, index: int) -> str:
        """The next token's text."""
        return _WORDS[index % len(_WORDS)]

    def opening(self) -> bytes:
        return b""

    def delta(self, choice: int, word: str) -> bytes:
        """The event of one token; nothing where nothing is streamed."""
        return b""

    def finish(self, choice: int) -> bytes:
        return b""

    def closing(self, output_tokens: int, cached_tokens: int) -> bytes:
        return b""

    @abstractmethod
    def whole(self, texts: list[str], output_tokens: int, cached_tokens: int) -> bytes:
        """The answer that is not streamed."""

    def usage(self, output_tokens: int, cached_tokens: int) -> dict[str, Any]:
        """As OpenAI's chat tells it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": self.prompt_tokens + output_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        }


def _chained(so_far: int, block: int) -> int:
    return hash((so_far, block))


def _event(value: Any) -> bytes:
    return b"data: " + _json(value) + b"\n\n"


def _tool_called(tools: Any, choice: Any) -> str:
    """The function it calls: the one `tool_choice` names, the first one when one is required, else none."""
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        return str(choice["function"].get("name", ""))
    if choice == "required" and isinstance(tools, list) and tools and isinstance(tools[0], dict):
        function = tools[0].get("function")
        return str(function.get("name", "tool")) if isinstance(function, dict) else "tool"
    return ""


class Chat(Wording):
    """/v1/chat/completions; calls a function when `tool_choice` makes it."""

    def __init__(self, said: dict[str, Any]) -> None:
        if not isinstance(said.get("messages"), list):
            raise ValueError("messages: an array is needed")
        super().__init__(said, said["messages"], said.get("max_completion_tokens", said.get("max_tokens")))
        self.tool = _tool_called(said.get("tools"), said.get("tool_choice"))
        head = f'data: {{"id":"chatcmpl-{self.id}","object":"chat.completion.chunk","created":{self.created},"model":'
        begin = head.encode() + _json(self.model)
        self._heads = [begin + b',"choices":[{"index":%d,"delta":' % choice for choice in range(self.n)]
        self._called: set[int] = set()

    def _chunk(self, choice: int, delta: Any, reason: str | None = None) -> bytes:
        return b"%b%b%b%b}]}\n\n" % (self._heads[choice], _json(delta), b',"logprobs":null,"finish_reason":', _json(reason))

    def opening(self) -> bytes:
        return b"".join(self._chunk(i, {"role": "assistant", "content": ""}) for i in range(self.n))

    def delta(self, choice: int, word: str) -> bytes:
        if self.tool:
            call: dict[str, Any] = {"index": 0, "function": {"arguments": word}}
            if choice not in self._called:
                self._called.add(choice)
                call |= {"id": f"call_{self.id}_{choice}", "type": "function"}
                call["function"] = {"name": self.tool, "arguments": '{"said": "' + word}
            return self._chunk(choice, {"tool_calls": [call]})
        return b'%b{"content":"%b"},"logprobs":null,"finish_reason":null}]}\n\n' % (self._heads[choice], word.encode())

    def finish(self, choice: int) -> bytes:
        if self.tool:
            end = {"tool_calls": [{"index": 0, "function": {"arguments": '"}'}}]}
            return self._chunk(choice, end) + self._chunk(choice, {}, "tool_calls")
        return self._chunk(choice, {}, "length" if self.hit_limit else "stop")

    def closing(self, output_tokens: int, cached_tokens: int) -> bytes:
        usage = b""
        if self.wants_usage:
            told = {"id": f"chatcmpl-{self.id}", "object": "chat.completion.chunk", "created": self.created, "model": self.model}
            usage = _event(told | {"choices": [], "usage": self.usage(output_tokens, cached_tokens)})
        return usage + b"data: [DONE]\n\n"

    def whole(self, texts: list[str], output_tokens: int, cached_tokens: int) -> bytes:
        choices = []
        for index, text in enumerate(texts):
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if self.tool:
                call = {
                    "id": f"call_{self.id}_{index}",
                    "type": "function",
                    "function": {"name": self.tool, "arguments": _json({"said": text}).decode()},
                }
                message = {"role": "assistant", "content": None, "tool_calls": [call]}
            reason = "tool_calls" if self.tool else "length" if self.hit_limit else "stop"
            choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": reason})
        told = {"id": f"chatcmpl-{self.id}", "object": "chat.completion", "created": self.created, "model": self.model}
        return _json(told | {"choices": choices, "usage": self.usage(output_tokens, cached_tokens)})


class Completions(Wording):
    """/v1/completions."""

    def __init__(self, said: dict[str, Any]) -> None:
        if "prompt" not in said:
            raise ValueError("prompt: is needed")
        super().__init__(said, [said["prompt"], said.get("suffix")], said.get("max_tokens"))

    def _chunk(self, choice: int, text: str, reason: str | None) -> bytes:
        told = {"id": f"cmpl-{self.id}", "object": "text_completion", "created": self.created, "model": self.model}
        return _event(told | {"choices": [{"index": choice, "text": text, "logprobs": None, "finish_reason": reason}]})

    def delta(self, choice: int, word: str) -> bytes:
        return self._chunk(choice, word, None)

    def finish(self, choice: int) -> bytes:
        return self._chunk(choice, "", "length" if self.hit_limit else "stop")

    def closing(self, output_tokens: int, cached_tokens: int) -> bytes:
        usage = b""
        if self.wants_usage:
            told = {"id": f"cmpl-{self.id}", "object": "text_completion", "created": self.created, "model": self.model}
            usage = _event(told | {"choices": [], "usage": self.usage(output_tokens, cached_tokens)})
        return usage + b"data: [DONE]\n\n"

    def whole(self, texts: list[str], output_tokens: int, cached_tokens: int) -> bytes:
        reason = "length" if self.hit_limit else "stop"
        choices = [{"index": i, "text": text, "logprobs": None, "finish_reason": reason} for i, text in enumerate(texts)]
        told = {"id": f"cmpl-{self.id}", "object": "text_completion", "created": self.created, "model": self.model}
        return _json(told | {"choices": choices, "usage": self.usage(output_tokens, cached_tokens)})


class Responses(Wording):
    """/v1/responses."""

    def __init__(self, said: dict[str, Any]) -> None:
        super().__init__(said, [said.get("input"), said.get("instructions")], said.get("max_output_tokens"))
        self.n = 1
        self._said: list[str] = []
        self._sequence = itertools.count()

    def _typed(self, kind: str, **more: Any) -> bytes:
        told = {"type": kind, "sequence_number": next(self._sequence)} | more
        return f"event: {kind}\n".encode() + _event(told)

    def _response(self, text: str | None, output_tokens: int, cached_tokens: int) -> dict[str, Any]:
        output: list[Any] = []
        if text is not None:
            part = {"type": "output_text", "text": text, "annotations": []}
            output = [{"type": "message", "id": f"msg_{self.id}", "status": "completed", "role": "assistant", "content": [part]}]
        usage = {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": cached_tokens},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt_tokens + output_tokens,
        }
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.created,
            "status": "in_progress" if text is None else "completed",
            "model": self.model,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": None if text is None else usage,
        }

    def opening(self) -> bytes:
        return self._typed("response.created", response=self._response(None, 0, 0))

    def delta(self, choice: int, word: str) -> bytes:
        self._said.append(word)
        where = {"item_id": f"msg_{self.id}", "output_index": 0, "content_index": 0}
        return self._typed("response.output_text.delta", delta=word, logprobs=[], **where)

    def closing(self, output_tokens: int, cached_tokens: int) -> bytes:
        return self._typed("response.completed", response=self._response("".join(self._said), output_tokens, cached_tokens))

    def whole(self, texts: list[str], output_tokens: int, cached_tokens: int) -> bytes:
        return _json(self._response(texts[0], output_tokens, cached_tokens))


class Embeddings(Wording):
    """/v1/embeddings."""

    generates = False

    def __init__(self, said: dict[str, Any]) -> None:
        if "input" not in said:
            raise ValueError("input: is needed")
        super().__init__(said, said["input"], 1)
        self.stream, self.n = False, 1
        asked = said["input"]
        # A list of numbers is one text as tokens.
        self.inputs = len(asked) if isinstance(asked, list) and asked and not isinstance(asked[0], int) else 1
        dimensions = said.get("dimensions", DIMENSIONS)
        if not isinstance(dimensions, int) or not 1 <= dimensions <= 4096:
            raise ValueError("dimensions: 1 to 4096")
        self.dimensions = dimensions
        self.base64 = said.get("encoding_format") == "base64"

    def _vector(self, index: int) -> list[float] | str:
        vector = [((index * 31 + i * 17) % 101 - 50) / 500 for i in range(self.dimensions)]
        return base64.b64encode(struct.pack(f"<{self.dimensions}f", *vector)).decode() if self.base64 else vector

    def whole(self, texts: list[str], output_tokens: int, cached_tokens: int) -> bytes:
        data = [{"object": "embedding", "index": i, "embedding": self._vector(i)} for i in range(self.inputs)]
        usage = {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}
        return _json({"object": "list", "data": data, "model": self.model, "usage": usage})


class Messages(Wording):
    """/v1/messages."""

    def __init__(self, said: dict[str, Any]) -> None:
        if not isinstance(said.get("messages"), list):
            raise ValueError("messages: an array is needed")
        super().__init__(said, [said["messages"], said.get("system")], said.get("max_tokens"))
        self.n = 1

    def _typed(self, kind: str, **more: Any) -> bytes:
        return f"event: {kind}\n".encode() + _event({"type": kind} | more)

    def _message(self, content: list[Any], reason: str | None, output_tokens: int) -> dict[str, Any]:
        usage = {"input_tokens": self.prompt_tokens, "output_tokens": output_tokens}
        told = {"id": f"msg_{self.id}", "type": "message", "role": "assistant", "model": self.model, "content": content}
        return told | {"stop_reason": reason, "stop_sequence": None, "usage": usage}

    def opening(self) -> bytes:
        started = self._typed("message_start", message=self._message([], None, 0))
        return started + self._typed("content_block_start", index=0, content_block={"type": "text", "text": ""})

    def delta(self, choice: int, word: str) -> bytes:
        return self._typed("content_block_delta", index=0, delta={"type": "text_delta", "text": word})

    def closing(self, output_tokens: int, cached_tokens: int) -> bytes:
        reason = "max_tokens" if self.hit_limit else "end_turn"
        stopped = self._typed("content_block_stop", index=0)
        told = self._typed("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage={"output_tokens": output_tokens})
        return stopped + told + self._typed("message_stop")

    def whole(self, texts: list[str], output_tokens: int, cached_tokens: int) -> bytes:
        return _json(self._message([{"type": "text", "text": texts[0]}], "max_tokens" if self.hit_limit else "end_turn", output_tokens))


_KINDS: dict[str, Callable[[dict[str, Any]], Wording]] = dict(
    zip(ENDPOINTS, (Chat, Completions, Responses, Embeddings, Messages), strict=True)
)


def wording_of(path: str, said: Any, model: str) -> Wording | None:
    """For one request; None when there is no such path or model. ValueError says what is wrong with it."""
    made = _KINDS.get(path)
    if made is None:
        return None
    if not isinstance(said, dict):
        raise ValueError("a JSON object is needed")
    if said.get("model") != model:
        return None
    wording: Wording = made(said)
    return wording
