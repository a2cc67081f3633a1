"""The admin port's OpenAPI description, made from the endpoints themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

import gateway

if TYPE_CHECKING:
    from gateway.admin.control import Endpoint

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
STATUS_WORDS = {
    400: "A value is wrong.",
    401: "The admin key is missing or wrong.",
    404: "There is no such thing.",
    409: "Not now, or not here.",
    422: "Refused.",
}

# Health, metrics and the page need no key and are not made from ENDPOINTS.
OPEN_PATHS = {
    "/health": ("200 while the process is alive.", "application/json"),
    "/livez": ("The same.", "application/json"),
    "/readyz": ("200 when traffic should be sent here, else 503 with the reason.", "application/json"),
    "/metrics": ("Prometheus text.", "text/plain"),
    "/admin/": ("The operator's page.", "text/html"),
    "/openapi.json": ("This description.", "application/json"),
}


def describe(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    endpoints = tuple(endpoints)
    models = list(dict.fromkeys(e.answers for e in endpoints if e.answers is not None))
    told, schemas = msgspec.json.schema_components(models, ref_template="#/components/schemas/{name}")
    references = dict(zip(models, told, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        schema: dict[str, Any] = {"type": "object"}
        if endpoint.answers is not None:
            schema = references[endpoint.answers]
        if endpoint.many:
            schema = {"type": "array", "items": schema}
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schema)
    for path, (about, media_type) in OPEN_PATHS.items():
        answers = {"200": {"description": about, "content": {media_type: {}}}}
        if path == "/readyz":
            answers["503"] = {"description": "Not ready.", "content": {media_type: {}}}
        paths[path] = {"get": {"summary": about, "security": [], "responses": answers}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "slo-gateway admin", "version": gateway.__version__},
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": ERROR_SCHEMA},
            "securitySchemes": {"admin_key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"admin_key": []}],
    }


def _operation(endpoint: Endpoint, schema: dict[str, Any]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in re.findall(r"{(\w+)}", endpoint.path)
    ]
    for name, about, allowed in endpoint.query:
        values = {"type": "string", "enum": list(allowed)} if allowed else {"type": "string"}
        parameters.append({"name": name, "in": "query", "required": False, "description": about, "schema": values})
    failed = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    answers: dict[str, Any] = {"200": {"description": endpoint.about, "content": {"application/json": {"schema": schema}}}}
    for status in (401, *endpoint.errors):
        answers[str(status)] = {"description": STATUS_WORDS[status], "content": failed}
    if endpoint.path == "/admin/reload":
        answers["422"] = {"description": STATUS_WORDS[422], "content": {"application/json": {"schema": schema}}}
    return {"summary": endpoint.about, "parameters": parameters, "responses": answers}
