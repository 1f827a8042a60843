"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API over the same engine.

The request becomes a ChatJob (anthropic_job.py, anthropic_turns.py), the answer content blocks (anthropic_blocks.py),
errors have this API's shape (`error_shape`): {"type": "error", "error": {"type", "message"}}. There is no place for
the field's name in it, so the message begins with it. A server that is ending answers 503 with overloaded_error.
Headers such as anthropic-version and anthropic-beta are not looked at.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from fathom.runtime import UserError
from fathom.server.adapted import renamed
from fathom.server.anthropic_blocks import BlockWriter, stop_of, usage_dict
from fathom.server.anthropic_job import FIELDS, budget_of, job_of
from fathom.server.errors import ApiError
from fathom.server.generation import ChatRun
from fathom.server.json_body import JsonRoute
from fathom.server.prepare import prepare
from fathom.server.schemas.anthropic import CountRequest, MessagesRequest
from fathom.server.schemas.anthropic_answer import MESSAGES_ERRORS, Message, TokensCount
from fathom.server.served import Served, note_usage, served_of
from fathom.server.sse import EventStream, event, watched
from fathom.server.thinking_budget import start_with_budget

router = APIRouter(route_class=JsonRoute)
Shared = Annotated[Served, Depends(served_of)]
PATHS = ("/v1/messages", "/v1/messages/count_tokens")
PING = event({"type": "ping"}, "ping")
ERROR_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


def error_shape(error: ApiError) -> dict[str, Any]:
    """The body of an error."""
    kind = ERROR_TYPES.get(error.status_code, "api_error" if error.status_code >= 500 else "invalid_request_error")
    named = error.param is None or error.param in error.message
    return {
        "type": "error",
        "error": {"type": kind, "message": error.message if named else f"{error.param}: {error.message}"},
    }


@router.post(
    PATHS[0],
    summary="Answer a conversation (Anthropic's API)",
    response_model=None,
    responses={200: {"model": Message, "content": {"text/event-stream": {}}}, **MESSAGES_ERRORS},
)
async def messages(request: Request, body: MessagesRequest, served: Shared) -> Response:
    """Whole, or with `stream: true` as server-sent events."""
    served.check_model(body.model)
    try:
        run = await start_with_budget(served, job_of(body, served), budget_of(body))
    except (ApiError, UserError) as error:
        raise renamed(error, FIELDS) from None
    head = {"id": f"msg_{uuid.uuid4().hex[:24]}", "type": "message", "role": "assistant", "model": body.model}
    if not body.stream:
        return await watched(request, run, _whole(request, body, head, run))
    return EventStream(
        run, _stream(request, body, head, run), keep_alive=served.settings.keep_alive_seconds, failure=_failure,
        silence=PING,
    )  # fmt: skip


@router.post(
    PATHS[1],
    summary="Count the tokens of a conversation (Anthropic's API)",
    response_model=None,
    responses={200: {"model": TokensCount}, **MESSAGES_ERRORS},
)
async def count_tokens(body: CountRequest, served: Shared) -> Response:
    """Exactly the `input_tokens` that /v1/messages would report (those in the cache included)."""
    served.check_model(body.model)
    try:
        prepared = await run_in_threadpool(prepare, served.llm, served.facts, job_of(body, served))
    except (ApiError, UserError) as error:
        raise renamed(error, FIELDS) from None
    return JSONResponse({"input_tokens": len(prepared.prompt)})


async def _whole(request: Request, body: MessagesRequest, head: dict[str, Any], run: ChatRun) -> Response:
    writer, stop = BlockWriter(), {}
    try:
        async for got in run:
            list(writer.read(got.pieces))  # the events are for streams
            stop = stop_of(got, run.usage, body.max_tokens)
        list(writer.close())
    finally:
        note_usage(request, run.usage)
    return JSONResponse({**head, "content": writer.content, **stop, "usage": _usage(run)})


async def _stream(request: Request, body: MessagesRequest, head: dict[str, Any], run: ChatRun) -> AsyncIterator[bytes]:
    writer, stop = BlockWriter(), {"stop_reason": None, "stop_sequence": None}
    try:
        yield _named({"type": "message_start", "message": {**head, "content": [], **stop, "usage": _usage(run)}})
        async for got in run:
            for made in writer.read(got.pieces):
                yield _named(made)
            stop = stop_of(got, run.usage, body.max_tokens)
        for made in writer.close():
            yield _named(made)
        yield _named({"type": "message_delta", "delta": stop, "usage": usage_dict(run.usage)})
        yield _named({"type": "message_stop"})
    finally:
        note_usage(request, run.usage)


def _usage(run: ChatRun) -> dict[str, Any]:
    return {**usage_dict(run.usage), "service_tier": "standard"}


def _failure(error: ApiError) -> bytes:
    """The last event of a stream that failed."""
    return _named(error_shape(error))


def _named(value: dict[str, Any]) -> bytes:
    """An event with its type as its name."""
    return event(value, value["type"])
