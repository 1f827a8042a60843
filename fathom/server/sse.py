"""Server-sent events: `data: JSON`, a blank line between, `data: [DONE]` at the end.

    watched(request, run, work)   the work of a whole answer; a client that goes away cancels it
    EventStream(run, events)      the same for a stream, which also sends a comment line while nothing comes (a long
                                  prefill), and turns an error in the middle into an event

Both close `run` in the end, even if its first token was never asked for: that aborts it in the engine and frees its
pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fathom.server.errors import ApiError, api_error, openai_shape

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
CLIENT_GONE = 499  # nobody reads it; it is for the log
_log = logging.getLogger("fathom.server")


def event(value: Any, name: str | None = None) -> bytes:
    """One event. JSON has no raw newlines, so one data line holds it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + b"data: " + text.encode("utf-8", "replace") + b"\n\n"


def openai_failure(error: ApiError) -> bytes:
    """An error in a stream as OpenAI writes it."""
    return event(openai_shape(error))


async def gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Run(Protocol):
    """What is being generated."""

    async def aclose(self) -> None:
        """Abort what is left."""


async def watched(request: Request, run: Run, work: Coroutine[Any, Any, T]) -> T | Response:
    """The result of `work`, or an empty response if the client left before it was there."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        request.state.record.outcome = "cancelled"
        return Response(status_code=CLIENT_GONE)
    finally:
        await _end(task)
        await _end(watch)
        await run.aclose()


class EventStream(Response):
    """A response of events. `events` are whole events as bytes; it is closed however the stream ends. `failure`: how
    an error in the middle looks; `silence`: what is sent while nothing comes."""

    media_type = "text/event-stream"

    def __init__(
        self,
        run: Run,
        events: AsyncIterator[bytes],
        *,
        keep_alive: float,
        failure: Callable[[ApiError], bytes] = openai_failure,
        silence: bytes = KEEP_ALIVE,
    ) -> None:
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.run = run
        self.events, self.keep_alive, self.failure, self.silence = events, keep_alive, failure, silence

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.ensure_future(self._pump(scope, send))
        watch = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait({pump, watch}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
            else:
                scope["state"]["record"].outcome = "cancelled"
        finally:
            await _end(pump)
            await _end(watch)
            await self.run.aclose()

    async def _pump(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for data in self._with_keep_alive():
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except Exception as error:  # the status is sent; the client learns of it inside the stream
            record = scope["state"]["record"]
            record.outcome = "error"
            answer = api_error(error)
            if answer.status_code >= 500:
                _log.error("request %s failed in its stream", record.id, exc_info=error)
            await send({"type": "http.response.body", "body": self.failure(answer), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _with_keep_alive(self) -> AsyncIterator[bytes]:
        step: asyncio.Future[bytes] | None = None
        try:
            while True:
                step = step or asyncio.ensure_future(anext(self.events))
                done, _ = await asyncio.wait({step}, timeout=self.keep_alive)
                if not done:
                    yield self.silence
                    continue
                try:
                    data = step.result()
                except StopAsyncIteration:
                    return
                step = None
                yield data
        finally:
            if step is not None:
                await _end(step)
            await close(self.events)


async def close(iterator: AsyncIterator[Any]) -> None:
    """Close an iterator that can be closed."""
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait until it is over, whatever its result."""
    if not task.done():
        task.cancel()
    with contextlib.suppress(Exception, asyncio.CancelledError):
        await task
