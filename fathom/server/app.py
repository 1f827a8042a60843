"""create_app: the routes, and the layers that every request passes.

    AccessLog      request id, log line, outcome, defects       access.py
    CORS           only if asked for
    Gate           Host, draining, key, size of the body        security.py
    errors         everything in OpenAI's shape                 errors.py
    routes         chat.py, completions.py, models.py, static_files.py

A new API is a router of its own beside chat.py; prepare.py says how.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi

from fathom import __version__
from fathom.engine.service import EngineService
from fathom.server import anthropic, chat, completions, errors, models, responses, static_files
from fathom.server.access import AccessLog
from fathom.server.security import Gate
from fathom.server.served import Served
from fathom.server.settings import Settings

ROUTERS = (chat.router, responses.router, anthropic.router, completions.router, models.router)
ERROR_SHAPES: dict[str, errors.Shape] = dict.fromkeys(anthropic.PATHS, anthropic.error_shape)
"""Route -> how its errors look, where that is not OpenAI's way."""
DESCRIPTION = (
    "The OpenAI API of one DeepSeek-V3 model, and Anthropic's /v1/messages. Every field of a request is honoured or "
    'refused with a 400 that names it. Errors are `{"error": {"message", "type", "param", "code"}}`; those of '
    '/v1/messages are `{"type": "error", "error": {"type", "message"}}`. Sampling that a request leaves out is what '
    "the checkpoint recommends (`fathom.default` of /v1/models)."
)


def create_app(service: EngineService, settings: Settings) -> FastAPI:
    """The app over a service that is started and stopped by the caller."""
    served = Served.of(service, settings)
    app = FastAPI(
        title="Fathom", version=__version__, description=DESCRIPTION, docs_url=None, redoc_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    app.state.served = served
    errors.install(app, ERROR_SHAPES)
    for router in ROUTERS:
        app.include_router(router)
    files = static_files.page_files() | static_files.docs_files()
    app.router.routes.extend(static_files.routes(files))
    served.state.open_paths |= files.keys()
    app.openapi = lambda: _openapi(app, settings)  # type: ignore[method-assign]

    app.add_middleware(Gate, settings=settings, state=served.state)  # the last one added is the outermost
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(AccessLog, metrics=served.metrics, quiet=settings.quiet)
    return app


def _openapi(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """FastAPI's document, with the keys in it and without the 422 that is never sent."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path, methods in document["paths"].items():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                if settings.api_keys and path != "/health":
                    operation["security"] = [{"bearer": []}, {"x-api-key": []}]
        schemas = document["components"]["schemas"]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        app.openapi_schema = document
    return app.openapi_schema
