"""Every error a caller can see, as an OpenAI error object (or Anthropic's on /v1/messages): one table of our own kinds, the wording of
refusals, and what engines' many ways of saying no become.

Nothing a caller wrote is ever repeated here: names of fields are ours, never values. Status lines and sockets are wire's.
"""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from gateway.core.flow import Endpoint, FailReason, Refuse, RefuseReason

Headers = tuple[tuple[bytes, bytes], ...]

INVALID: Final = "invalid_request_error"
SERVER: Final = "server_error"
RATE: Final = "rate_limit_error"
UPSTREAM: Final = "upstream_error"

# SDKs ignore a Retry-After above two minutes and come back at once instead.
MAX_RETRY_AFTER_S: Final = 120.0
_ENGINE_MESSAGE_CHARS: Final = 512
NO_RETRY: Final[Headers] = ((b"x-should-retry", b"false"),)


class Row(NamedTuple):
    """What a kind of error looks like on the wire."""

    status: int
    type: str
    message: str


class Kind(StrEnum):
    """Our own errors; the value is the `code` of the error object."""

    INVALID_JSON = "invalid_json"
    INVALID_VALUE = "invalid_value"
    MISSING = "missing_required_parameter"
    DUPLICATE_KEY = "duplicate_key"
    BAD_REQUEST = "bad_request"
    UNKNOWN_TAG = "unknown_tag"
    MISSING_KEY = "missing_api_key"
    WRONG_KEY = "invalid_api_key"
    MODEL_NOT_FOUND = "model_not_found"
    TOO_LONG = "context_length_exceeded"
    ENGINE_REFUSED = "engine_refused"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    BODY_TOO_LARGE = "request_too_large"
    URI_TOO_LONG = "uri_too_long"
    ENCODING = "unsupported_content_encoding"
    HEADERS_TOO_LARGE = "headers_too_large"
    QUEUE_FULL = "queue_full"
    QUEUE_BYTES = "queue_bytes"
    CANNOT_MEET_SLO = "cannot_meet_slo"
    EXPIRED = "expired"
    QUOTA = "quota"
    RATE_LIMIT = "rate_limit_exceeded"
    OVERLOADED = "overloaded"
    NO_CAPACITY = "no_capacity"
    DRAINING = "draining"
    ENGINE_UNREACHABLE = "engine_unreachable"
    ENGINE_CLOSED = "engine_closed"
    ENGINE_MALFORMED = "engine_malformed"
    ENGINE_ERROR = "engine_error"
    ENGINE_TIMEOUT = "engine_timeout"
    ENGINE_STALLED = "engine_stalled"
    DEADLINE = "deadline"
    INTERNAL = "internal_error"


ROWS: Final[dict[Kind, Row]] = {
    Kind.INVALID_JSON: Row(400, INVALID, "The request body is not valid JSON."),
    Kind.INVALID_VALUE: Row(400, INVALID, "A parameter has a value of the wrong kind."),
    Kind.MISSING: Row(400, INVALID, "A required parameter is missing."),
    Kind.DUPLICATE_KEY: Row(400, INVALID, "A key of the request body is there twice; send it once."),
    Kind.BAD_REQUEST: Row(400, INVALID, "The request is not valid HTTP/1.1."),
    Kind.UNKNOWN_TAG: Row(400, INVALID, "An SLO tag has a value this gateway does not know."),
    Kind.MISSING_KEY: Row(401, "authentication_error", "No API key was sent; send `Authorization: Bearer KEY`."),
    Kind.WRONG_KEY: Row(401, "authentication_error", "The API key is not valid here."),
    Kind.MODEL_NOT_FOUND: Row(404, INVALID, "The model does not exist here; GET /v1/models lists those that do."),
    Kind.TOO_LONG: Row(400, INVALID, "The prompt is longer than the model takes."),
    Kind.ENGINE_REFUSED: Row(400, INVALID, "The engine refused the request."),
    Kind.NOT_FOUND: Row(404, INVALID, "There is nothing at this path."),
    Kind.METHOD_NOT_ALLOWED: Row(405, INVALID, "This path does not take that method."),
    Kind.REQUEST_TIMEOUT: Row(408, INVALID, "The request did not arrive in time."),
    Kind.BODY_TOO_LARGE: Row(413, INVALID, "The request body is larger than this gateway takes."),
    Kind.URI_TOO_LONG: Row(414, INVALID, "The request line is too long."),
    Kind.ENCODING: Row(415, INVALID, "Compressed request bodies are not taken; send the body as it is."),
    Kind.HEADERS_TOO_LARGE: Row(431, INVALID, "The header fields are too many or too large."),
    Kind.QUEUE_FULL: Row(429, RATE, "Too many requests of this class are waiting."),
    Kind.QUEUE_BYTES: Row(429, RATE, "The requests of this class that wait already hold as many bytes as they may."),
    Kind.CANNOT_MEET_SLO: Row(429, RATE, "The latency this request is promised cannot be kept now."),
    Kind.EXPIRED: Row(429, RATE, "The request waited as long as its class may wait, and no slot came free."),
    Kind.QUOTA: Row(429, RATE, "The quota of this API key is used up for now."),
    Kind.RATE_LIMIT: Row(429, RATE, "The quota of this API key is used up for now."),
    Kind.OVERLOADED: Row(429, RATE, "The gateway is overloaded."),
    Kind.NO_CAPACITY: Row(503, SERVER, "No instance can serve this model now."),
    Kind.DRAINING: Row(503, SERVER, "This gateway is shutting down; another one will answer."),
    Kind.ENGINE_UNREACHABLE: Row(502, UPSTREAM, "The engine could not be reached."),
    Kind.ENGINE_CLOSED: Row(502, UPSTREAM, "The engine went away before the answer was complete."),
    Kind.ENGINE_MALFORMED: Row(502, UPSTREAM, "The engine's answer could not be understood."),
    Kind.ENGINE_ERROR: Row(502, UPSTREAM, "The engine failed."),
    Kind.ENGINE_TIMEOUT: Row(504, UPSTREAM, "The engine did not begin to answer in time."),
    Kind.ENGINE_STALLED: Row(504, UPSTREAM, "The engine stopped in the middle of its answer."),
    Kind.DEADLINE: Row(504, UPSTREAM, "The answer took longer than a request may take."),
    Kind.INTERNAL: Row(500, SERVER, "The gateway failed; the request id in this answer's header finds the reason in its log."),
}

_FAILED: Final[dict[FailReason, Kind]] = {
    FailReason.CONNECT: Kind.ENGINE_UNREACHABLE,
    FailReason.CLOSED_EARLY: Kind.ENGINE_CLOSED,
    FailReason.CUT: Kind.ENGINE_CLOSED,
    FailReason.FIRST_TOKEN_TIMEOUT: Kind.ENGINE_TIMEOUT,
    FailReason.STALLED: Kind.ENGINE_STALLED,
    FailReason.DEADLINE: Kind.DEADLINE,
    FailReason.ENGINE_ERROR: Kind.ENGINE_ERROR,
    FailReason.MALFORMED: Kind.ENGINE_MALFORMED,
    FailReason.SLOW_READER: Kind.REQUEST_TIMEOUT,
    FailReason.INTERNAL: Kind.INTERNAL,
}


class ApiError(Exception):
    """An answer that is an error. `headers` go out beside the usual ones; `param` names the field at fault, `extra` joins the object."""

    def __init__(
        self,
        kind: Kind | str,
        message: str = "",
        *,
        param: str | None = None,
        headers: Headers = (),
        status: int = 0,
        type: str = "",
        extra: dict[str, Any] | None = None,
    ) -> None:
        row = ROWS[kind] if isinstance(kind, Kind) else None
        self.code: str = str(kind)
        self.status = status or (row.status if row else 500)
        self.type = type or (row.type if row else SERVER)
        self.message = message or (row.message if row else "")
        self.param = param
        self.headers = headers
        self.extra = extra
        super().__init__(f"{self.status} {self.code}: {self.message}")


def object_of(error: ApiError) -> dict[str, Any]:
    """The `error` object of OpenAI's API."""
    shown: dict[str, Any] = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return shown | error.extra if error.extra else shown


_ANTHROPIC_TYPES: Final = {
    400: INVALID,
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: RATE,
    503: "overloaded_error",
    529: "overloaded_error",
}


def _anthropic(error: ApiError) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(error.status, INVALID if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def render(error: ApiError, endpoint: Endpoint | None = None) -> bytes:
    """The body of the answer, in the words of the endpoint's API."""
    if endpoint is Endpoint.MESSAGES:
        return msgspec.json.encode(_anthropic(error))
    return msgspec.json.encode({"error": object_of(error)})


def event(error: ApiError, endpoint: Endpoint | None = None) -> bytes:
    """The same inside a stream that has begun. A blank line goes before it, since the last event may have been cut in its middle;
    what it ends is then no event of its own. `[DONE]` never follows."""
    if endpoint is Endpoint.MESSAGES:
        return b"\n\nevent: error\ndata: " + msgspec.json.encode(_anthropic(error)) + b"\n\n"
    if endpoint is Endpoint.RESPONSES:
        shown = {"type": "error", "code": error.code, "message": error.message, "param": error.param, "error": object_of(error)}
        return b"\n\nevent: error\ndata: " + msgspec.json.encode(shown) + b"\n\n"
    return b"\n\ndata: " + msgspec.json.encode({"error": object_of(error)}) + b"\n\n"


def refused(refuse: Refuse) -> ApiError:
    """The core's no, in words: why, when to come back, and which looser class would be taken now."""
    kind = Kind(refuse.reason.value)
    message = ROWS[kind].message
    if refuse.hopeless:
        headers = NO_RETRY
        message += " Trying again will not help."
        retry_after_s = None
    else:
        retry_after_s = (
            min(max(refuse.retry_after_s, 0.001), MAX_RETRY_AFTER_S) if math.isfinite(refuse.retry_after_s) else MAX_RETRY_AFTER_S
        )
        headers = (
            (b"retry-after", b"%d" % math.ceil(retry_after_s)),
            (b"retry-after-ms", b"%d" % math.ceil(retry_after_s * 1000.0)),
        )
        message += f" Try again in {retry_after_s:.1f} s."
    if refuse.looser_class:
        message += f" The class {refuse.looser_class} would be accepted now: send `x-slo-class: {refuse.looser_class}`."
    extra = {"reason": refuse.reason.value, "looser_class": refuse.looser_class or None, "retry_after_s": retry_after_s}
    return ApiError(kind, message, headers=headers, extra=extra)


def failed(reason: FailReason) -> ApiError:
    """A started request that no engine completed."""
    return ApiError(_FAILED[reason])


_TYPES_OF_STATUS: Final = {401: "authentication_error", 403: "permission_error", 404: INVALID, 429: RATE}


def from_engine(status: int, body: bytes) -> ApiError:
    """An engine's error answer as an OpenAI error. A caller's own mistake (4xx) keeps its status and, where the engine said one in a
    known place, its message; what engines say of themselves (5xx, tracebacks, HTML, 401 to *our* key) stays inside."""
    said = _said(body)
    if status == 503 or status == 529:
        return ApiError(Kind.NO_CAPACITY, "The engine cannot take this request now.", headers=((b"retry-after", b"1"),))
    if status in (401, 403, 407) or not 400 <= status < 500:
        return ApiError(Kind.ENGINE_TIMEOUT if status == 504 else Kind.ENGINE_ERROR)
    message, param, code = said
    message = message or ROWS[Kind.ENGINE_REFUSED].message
    lowered = message.lower()
    if status == 404 or (status == 400 and "server is pinned to" in lowered):
        # The model is one of ours: it is this engine that has lost it, or knows nothing of this endpoint. Few say which.
        return ApiError(Kind.MODEL_NOT_FOUND, "The engine of this model does not serve it, or not at this endpoint.", param="model")
    if param == "input_tokens" or "maximum context length" in lowered:
        return ApiError(Kind.TOO_LONG, message, param="messages")
    return ApiError(code or Kind.ENGINE_REFUSED, message, param=param, status=status, type=_TYPES_OF_STATUS.get(status, INVALID))


def from_event(error: Any) -> ApiError:
    """An error event that came instead of the first content: its own status if it has one, else 502."""
    status = 502
    if isinstance(error, dict):
        for value in (error.get("code"), error.get("status"), error.get("status_code")):
            number = int(value) if isinstance(value, str) and value.isdigit() and len(value) == 3 else value
            if isinstance(number, int) and not isinstance(number, bool) and 400 <= number <= 599:
                status = number
                break
        else:
            kind = error.get("type")
            if isinstance(kind, str):
                status = {INVALID: 400, "BadRequestError": 400, RATE: 429, "overloaded_error": 503}.get(kind, 502)
    return from_engine(status, msgspec.json.encode({"error": error}))


def _said(body: bytes) -> tuple[str, str | None, str]:
    """(message, param, code) out of whatever an engine wrote; empty where it is not safe to show."""
    try:
        value = msgspec.json.decode(body[:65536])
    except (ValueError, RecursionError):
        return "", None, ""
    if not isinstance(value, dict):
        return "", None, ""
    inner: Any = value.get("error", value)
    if isinstance(inner, str):
        return _safe(inner), None, ""
    if not isinstance(inner, dict):
        return "", None, ""
    message = inner.get("message", inner.get("detail"))
    if isinstance(message, list) and message and isinstance(message[0], dict):  # FastAPI: what pydantic found
        message = message[0].get("msg")
    param, code = inner.get("param"), inner.get("code")
    return (
        _safe(message) if isinstance(message, str) else "",
        param.removeprefix("body.")[:64] if isinstance(param, str) and param.isascii() and param.isprintable() else None,
        code[:64] if isinstance(code, str) and code.replace("_", "").isalnum() else "",
    )


# What a validator found and, behind it, what it was given (pydantic, as vLLM prints it); anything long between quotes.
_FOUND: Final = re.compile(r"'msg': '([^']{1,200})'")
_QUOTED: Final = re.compile(r"""(["`]|(?<!\w)')(?:(?!\1).){48,}(?:\1|$)""", re.DOTALL)


def _safe(message: str) -> str:
    """One line of bounded length, nothing of a program's inside, and nothing quoted at length: validators repeat their input."""
    if "Traceback" in message or 'File "' in message or "<html" in message.lower() or "input_value" in message:
        return ""
    if "'input': " in message:
        found = _FOUND.search(message)
        message = found[1] if found is not None else ""
    message = _QUOTED.sub("(a long text)", message[: 8 * _ENGINE_MESSAGE_CHARS])
    line = "".join(c if c.isprintable() else " " for c in message[:_ENGINE_MESSAGE_CHARS]).strip()
    return line


def quota(reason: RefuseReason = RefuseReason.QUOTA, retry_after_s: float = 1.0) -> ApiError:
    """A refusal of wire's own, before the core was asked (keys' quotas, overload, draining)."""
    wait_s = min(max(retry_after_s, 0.001), MAX_RETRY_AFTER_S)
    headers = ((b"retry-after", b"%d" % math.ceil(wait_s)), (b"retry-after-ms", b"%d" % math.ceil(wait_s * 1000.0)))
    return ApiError(Kind(reason.value), headers=headers, extra={"reason": reason.value})
