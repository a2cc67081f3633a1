"""The operator's port: how promises are kept, what runs where, why a request went as it did, and the few things one may change.

Every path under /admin/ needs the admin key, when one is configured; the page itself, health and metrics do not (the page asks for the
key and holds no secret). What is listed in ENDPOINTS is what exists, and what /openapi.json describes.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gateway.admin.answers import HANDLERS, error, json_response, shown
from gateway.admin.openapi import describe
from gateway.admin.public import health_routes
from gateway.admin.slo import GROUPS, window_s
from gateway.admin.views import (
    DrainView,
    InstanceView,
    QueueView,
    ReloadView,
    RestartView,
    SharesView,
    SloReport,
    VersionView,
    View,
    Views,
    WorkersView,
)

PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path of the admin API. `answers` is the model of its 200, or None for any JSON object; a list of it with `many`."""

    method: str
    path: str
    about: str
    handle: Callable[[Views, Request], Awaitable[Response]]
    answers: type[View] | None = None
    many: bool = False
    query: tuple[tuple[str, str, tuple[str, ...]], ...] = ()  # name, meaning, allowed values (none = any)
    errors: tuple[int, ...] = ()


async def _slo(views: Views, request: Request) -> Response:
    by = request.query_params.get("by", "experience_class")
    if by not in GROUPS:
        return error(400, f"'by' is one of {', '.join(GROUPS)}, not '{shown(by)}'", "invalid_value")
    try:
        asked_s = window_s(request.query_params.get("window", "5m"))
    except ValueError as wrong:
        return error(400, shown(str(wrong)), "invalid_value")
    return json_response(await views.slo(asked_s, by))


async def _fleet(views: Views, _: Request) -> Response:
    await views.look()
    return json_response(views.fleet())


async def _queues(views: Views, _: Request) -> Response:
    await views.look()
    return json_response(views.queues())


async def _shares(views: Views, _: Request) -> Response:
    await views.look()
    return json_response(views.shares())


async def _workers(views: Views, _: Request) -> Response:
    return json_response(await views.workers())


async def _restart(views: Views, _: Request) -> Response:
    done = await views.restart()
    return json_response(done, 200 if done.ok else 409)


async def _explain(views: Views, request: Request) -> Response:
    request_id = request.path_params["request_id"]
    story = await views.explain(request_id)
    if story is None:
        return error(404, f"Nothing is known of request '{shown(request_id)}': only the latest decisions are kept.", "unknown_request")
    return json_response(story)


async def _config(views: Views, _: Request) -> Response:
    return json_response(views.config())


async def _reload(views: Views, _: Request) -> Response:
    done = await views.reload()
    return json_response(done, 200 if done.ok else 422)


async def _drain(views: Views, request: Request) -> Response:
    return await _drained(views, request, True)


async def _undrain(views: Views, request: Request) -> Response:
    return await _drained(views, request, False)


async def _drained(views: Views, request: Request, draining: bool) -> Response:
    instance_id = request.path_params["instance_id"]
    if not await views.drain(instance_id, draining):
        return error(404, f"There is no instance '{shown(instance_id)}'; GET /admin/fleet lists them.", "unknown_instance")
    return json_response(DrainView(instance_id=instance_id, draining=draining))


async def _version(views: Views, _: Request) -> Response:
    return json_response(views.version())


ENDPOINTS = (
    Endpoint(
        "GET",
        "/admin/slo",
        "Attainment, percentiles, refusals and goodput of all workers over the last 10 seconds to 2 hours.",
        _slo,
        SloReport,
        query=(("window", "how far back: 30s, 5m, 1h", ()), ("by", "what a row is", GROUPS)),
        errors=(400,),
    ),
    Endpoint("GET", "/admin/fleet", "Every instance with its load, limit and health.", _fleet, InstanceView, many=True),
    Endpoint("GET", "/admin/queues", "Every queue that holds requests.", _queues, QueueView, many=True),
    Endpoint("GET", "/admin/shares", "Leases and quotas in force, and whether the shared state answers.", _shares, SharesView),
    Endpoint("GET", "/admin/workers", "The processes of this gateway: what each does, and those that were lost.", _workers, WorkersView),
    Endpoint("GET", "/admin/requests/{request_id}", "Why one request went as it did.", _explain, errors=(404,)),
    Endpoint("GET", "/admin/config", "The configuration in force, secrets left out.", _config),
    Endpoint("GET", "/admin/version", "What runs here.", _version, VersionView),
    Endpoint(
        "POST", "/admin/reload", "Read the configuration file again; a bad one is refused and the old one goes on.", _reload, ReloadView
    ),
    Endpoint(
        "POST",
        "/admin/restart",
        "Put a new worker in the place of each, one after the other; nobody notices. Answers when it is done.",
        _restart,
        RestartView,
        errors=(409,),
    ),
    Endpoint("POST", "/admin/instances/{instance_id}/drain", "Give an instance nothing new.", _drain, DrainView, errors=(404,)),
    Endpoint("POST", "/admin/instances/{instance_id}/undrain", "Give it work again.", _undrain, DrainView, errors=(404,)),
)


def admin_app(views: Views, key: str | None) -> Starlette:
    """The ASGI app of the admin port. `key` None means open, which the configuration allows on loopback only."""

    def guarded(handle: Callable[[Views, Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if not _may(request, key):
                message = "The admin key is needed here; send it as 'Authorization: Bearer KEY'."
                return error(401, message, "invalid_admin_key", {"www-authenticate": "Bearer"})
            return await handle(views, request)

        return answer

    async def page(_: Request) -> Response:
        return Response(_page(), media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)

    async def described(_: Request) -> Response:
        return json_response(openapi())

    async def home(_: Request) -> Response:
        return RedirectResponse("/admin/")

    return Starlette(
        routes=[
            Route("/", home),
            Route("/admin", home),
            Route("/admin/", page),
            Route("/openapi.json", described),
            *(Route(_route_path(e.path), guarded(e.handle), methods=[e.method]) for e in ENDPOINTS),
            *health_routes(views),
        ],
        exception_handlers=HANDLERS,
    )


def _route_path(path: str) -> str:
    return path.replace("{instance_id}", "{instance_id:path}").replace("{request_id}", "{request_id:path}")


def _may(request: Request, key: str | None) -> bool:
    if key is None:
        return True
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode("latin-1", "replace"), f"Bearer {key}".encode("latin-1", "replace"))


@cache
def _page() -> bytes:
    return (Path(__file__).parent / "page.html").read_bytes()


@cache
def openapi() -> dict[str, Any]:
    """OpenAPI 3.1 of this port."""
    return describe(ENDPOINTS)
