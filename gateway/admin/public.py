"""What everybody may ask beside inference: models, health, metrics. Everything else is an OpenAI error.

Inference itself is taken before it reaches this app; wire/ hands over only what is not a POST to one of its paths.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.admin.answers import HANDLERS, error, in_steps, json_response, shown
from gateway.admin.views import ModelView, Views

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
INFERENCE_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages")


def public_app(views: Views) -> Starlette:
    """The ASGI app of the applications' port."""

    async def models(request: Request) -> Response:
        if not views.authorised(request.headers.get("authorization")):
            return _unauthorised()
        created = int(views.version().started_unix_s)
        listed = [_model(name, model, created) for model in views.models() for name in (model.id, *model.aliases)]
        return json_response({"object": "list", "data": listed})

    async def model(request: Request) -> Response:
        if not views.authorised(request.headers.get("authorization")):
            return _unauthorised()
        name = request.path_params["name"]
        for known in views.models():
            if name == known.id or name in known.aliases:
                return json_response(_model(name, known, int(views.version().started_unix_s)))
        return error(404, f"The model '{shown(name)}' does not exist here; GET /v1/models lists those that do.", "model_not_found")

    async def post_only(request: Request) -> Response:
        message = f"Not allowed to {request.method} on {request.url.path}; use POST"
        return error(405, message, "method_not_supported", {"allow": "POST"})

    app = Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            *health_routes(views),
            *(Route(path, post_only, methods=["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]) for path in INFERENCE_PATHS),
        ],
        exception_handlers=HANDLERS,
    )
    app.router.redirect_slashes = False  # a path is right or it is not
    return app


def health_routes(views: Views) -> list[Route]:
    """Health and metrics: the same on both ports."""

    async def alive(_: Request) -> Response:
        return json_response({"status": "ok"})

    async def ready(_: Request) -> Response:
        reason = views.not_ready()
        if reason:
            return json_response({"status": "not ready", "reason": reason}, 503, {"retry-after": "1"})
        return json_response({"status": "ready"})

    async def metrics(request: Request) -> Response:
        openmetrics = _prefers_openmetrics(request.headers.get("accept", ""))
        await views.look(openmetrics)
        body = await in_steps(_joined(views.metrics(openmetrics)))
        return Response(body, media_type=OPENMETRICS_TYPE if openmetrics else METRICS_TYPE, headers={"vary": "accept"})

    return [
        Route("/health", alive),
        Route("/livez", alive),
        Route("/readyz", ready),
        Route("/metrics", metrics),
    ]


def _joined(pieces: Iterator[str]) -> Generator[None, None, bytes]:
    encoded = []
    for piece in pieces:
        encoded.append(piece.encode())
        yield
    return b"".join(encoded)


def _prefers_openmetrics(accept: str) -> bool:
    """Does an `Accept` header ask for it, and not rather for plain text?"""
    best: dict[str, float] = {}
    for one in accept.split(","):
        media, *parameters = [part.strip() for part in one.lower().split(";")]
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        try:
            best[media] = max(best.get(media, 0.0), float(quality))
        except ValueError:
            continue
    return best.get("application/openmetrics-text", 0.0) > max(best.get("text/plain", 0.0), 0.0)


def _model(name: str, model: ModelView, created: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": "slo-gateway", "root": model.id}


def _unauthorised() -> Response:
    message = "No valid API key was given; send it as 'Authorization: Bearer KEY'."
    return error(401, message, "invalid_api_key", {"www-authenticate": "Bearer"})
