"""POST /v1/responses: OpenAI's Responses API, without a memory.

The request becomes a ChatJob (responses_job.py, responses_input.py), the answer output items (responses_output.py) of a
response object (responses_object.py). Nothing is stored.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from fathom.runtime import UserError
from fathom.server.adapted import renamed
from fathom.server.errors import ApiError
from fathom.server.generation import ChatEvent, ChatRun, start_chat
from fathom.server.json_body import JsonRoute
from fathom.server.responses_job import FIELDS, job_of
from fathom.server.responses_object import ResponseObject
from fathom.server.responses_output import OutputWriter
from fathom.server.schemas.responses import ERRORS
from fathom.server.schemas.responses_answer import ResponseAnswer
from fathom.server.schemas.responses_request import ResponsesRequest
from fathom.server.served import Served, note_usage, served_of
from fathom.server.sse import EventStream, event, watched

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/responses",
    summary="Answer text or items (OpenAI's Responses API)",
    response_model=None,
    responses={200: {"model": ResponseAnswer, "content": {"text/event-stream": {}}}, **ERRORS},
)
async def responses(
    request: Request, body: ResponsesRequest, served: Annotated[Served, Depends(served_of)]
) -> Response:
    """Whole, or with `stream: true` as server-sent events."""
    served.check_model(body.model)
    try:
        run = await start_chat(served, job_of(body, served))
    except (ApiError, UserError) as error:
        raise renamed(error, FIELDS) from None
    answer = _Answer(request, body, served, run)
    if not body.stream:
        return await watched(request, run, answer.whole())
    keep_alive = served.settings.keep_alive_seconds
    return EventStream(run, answer.stream(), keep_alive=keep_alive, failure=answer.failure)


class _Answer:
    """One answer, whole or as events."""

    def __init__(self, request: Request, body: ResponsesRequest, served: Served, run: ChatRun) -> None:
        self.request, self.run = request, run
        self.writer = OutputWriter(served.texts)
        self.object = ResponseObject(body, served, self.writer.items, run.usage)
        self.finish: str | None = None
        self._numbers = itertools.count()

    async def whole(self) -> Response:
        try:
            async for got in self.run:
                self._made(got)
            self._end()
        finally:
            note_usage(self.request, self.run.usage)
        return JSONResponse(self.object.done(self.finish))

    async def stream(self) -> AsyncIterator[bytes]:
        try:
            for state in ("created", "in_progress"):
                yield self._bytes({"type": f"response.{state}", "response": self.object.begun()})
            async for got in self.run:
                for made in self._made(got):
                    yield self._bytes(made)
            for made in self._end():
                yield self._bytes(made)
            done = self.object.done(self.finish)
            yield self._bytes({"type": f"response.{done['status']}", "response": done})
        finally:
            note_usage(self.request, self.run.usage)

    def failure(self, error: ApiError) -> bytes:
        """The last event of a stream that failed. The item that was open stays in progress."""
        return self._bytes({"type": "response.failed", "response": self.object.failed(error)})

    def _made(self, got: ChatEvent) -> list[dict[str, Any]]:
        self.finish = got.finish
        return list(self.writer.read(got))

    def _end(self) -> list[dict[str, Any]]:
        return list(self.writer.close("incomplete" if self.finish == "length" else "completed"))

    def _bytes(self, value: dict[str, Any]) -> bytes:
        return event({**value, "sequence_number": next(self._numbers)}, value["type"])
