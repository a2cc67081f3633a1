"""How the control endpoints answer: JSON, OpenAI-shaped errors, and work that is done in steps so that streams are not held up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

STEP_S = 0.0005  # of the loop's time at once; a token's gap is 20 ms at its tightest

ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "invalid_request_error", 405: "invalid_request_error"}


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` is plain data, a view, or lists and dicts of them."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def error(status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """An OpenAI error object."""
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return json_response({"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers)


async def unknown_path(request: Request, _: Exception) -> Response:
    return error(404, f"Invalid URL ({request.method} {shown(request.url.path)})", "unknown_url")


async def wrong_method(request: Request, raised: Exception) -> Response:
    headers = dict(raised.headers or {}) if isinstance(raised, HTTPException) else {}
    allowed = headers.get("Allow", headers.get("allow", ""))
    hint = f"; use {allowed}" if allowed else ""
    return error(405, f"Not allowed to {request.method} on {shown(request.url.path)}{hint}", "method_not_supported", headers)


async def http_error(_: Request, raised: Exception) -> Response:
    assert isinstance(raised, HTTPException)
    return error(raised.status_code, raised.detail, None, raised.headers)


async def own_fault(_: Request, __: Exception) -> Response:
    return error(500, "The gateway failed to answer this; its log has the details.", "internal_error")


HANDLERS: dict[int | type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    404: unknown_path,
    405: wrong_method,
    HTTPException: http_error,
    500: own_fault,
}


def shown(text: str) -> str:
    """What a caller sent, fit to be shown back: printable and short."""
    return "".join(char if char.isprintable() else "?" for char in text[:256])


Result = TypeVar("Result")


async def in_steps(steps: Generator[object, None, Result]) -> Result:
    """Run a generator to its end and return its result, giving way to others every STEP_S."""
    until_s = time.perf_counter() + STEP_S
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
        if time.perf_counter() >= until_s:
            await asyncio.sleep(0)
            until_s = time.perf_counter() + STEP_S
