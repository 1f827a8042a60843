"""POST /v1/chat/completions.

The request becomes a ChatJob (chat_job.py), its events become one answer (here) or a stream (chat_chunks.py).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from fathom.server.chat_chunks import ChunkWriter, call_id, token_inside
from fathom.server.chat_job import job_of
from fathom.server.generation import ChatEvent, ChatRun, start_chat
from fathom.server.json_body import JsonRoute
from fathom.server.schemas.chat import ChatRequest
from fathom.server.schemas.responses import ERRORS, ChatCompletion
from fathom.server.served import Served, note_usage, served_of
from fathom.server.sse import EventStream, watched

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation",
    response_model=None,
    responses={200: {"model": ChatCompletion, "content": {"text/event-stream": {}}}, **ERRORS},
)
async def chat_completions(
    request: Request, body: ChatRequest, served: Annotated[Served, Depends(served_of)]
) -> Response:
    """Whole, or with `stream: true` as server-sent events."""
    served.check_model(body.model)
    run = await start_chat(served, job_of(body, served))
    head = ResponseHead.of(body, served)
    if body.stream:
        events = _stream(request, body, head, run, served)
        return EventStream(run, events, keep_alive=served.settings.keep_alive_seconds)
    return await watched(request, run, _whole(request, body, head, run, served))


@dataclass(frozen=True)
class ResponseHead:
    """What the answer and each of its chunks begin with."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    service_tier: str | None
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, body: ChatRequest, served: Served) -> ResponseHead:
        tier = None if body.service_tier is None else "default"
        id = f"chatcmpl-{uuid.uuid4().hex}"
        return cls(id, int(time.time()), served.settings.model_id, served.fingerprint, tier, body.metadata)

    def as_dict(self, object: str) -> dict[str, Any]:
        head: dict[str, Any] = {"id": self.id, "object": object, "created": self.created, "model": self.model,
                                "system_fingerprint": self.system_fingerprint}  # fmt: skip
        return head | ({} if self.service_tier is None else {"service_tier": self.service_tier})


@dataclass
class _Choice:
    """One sample of a whole answer."""

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self.content if self.content or not self.calls else None,
            "refusal": None,
        }
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = self.calls
        return message


async def _whole(request: Request, body: ChatRequest, head: ResponseHead, run: ChatRun, served: Served) -> Response:
    choices = [_Choice() for _ in range(body.n or 1)]
    try:
        async for event in run:
            _collect(choices[event.index], event, body, served)
    finally:
        note_usage(request, run.usage)
    answer = head.as_dict("chat.completion") | {
        "choices": [_choice_dict(i, choice, body) for i, choice in enumerate(choices)],
        "usage": run.usage.as_dict(),
    }
    return JSONResponse(answer | ({} if head.metadata is None else {"metadata": head.metadata}))


def _collect(choice: _Choice, event: ChatEvent, body: ChatRequest, served: Served) -> None:
    for piece in event.pieces:
        if piece.kind == "content":
            choice.content += piece.text
        elif piece.kind == "reasoning":
            choice.reasoning += piece.text
        elif piece.kind == "call":
            function = {"name": piece.text, "arguments": ""}
            choice.calls.append({"id": call_id(), "type": "function", "function": function})
        else:
            choice.calls[piece.call]["function"]["arguments"] += piece.text
    if body.inside:
        choice.tokens.append(token_inside(event, served.texts))
    if event.logprob is not None:
        choice.logprobs.append(served.texts.chat_logprob(event.logprob))
    choice.finish = event.finish


def _choice_dict(index: int, choice: _Choice, body: ChatRequest) -> dict[str, Any]:
    result: dict[str, Any] = {
        "index": index,
        "message": choice.message(),
        "logprobs": {"content": choice.logprobs, "refusal": None} if body.logprobs else None,
        "finish_reason": choice.finish,
    }
    return result | ({"fathom": {"tokens": choice.tokens}} if body.inside else {})


async def _stream(
    request: Request, body: ChatRequest, head: ResponseHead, run: ChatRun, served: Served
) -> AsyncIterator[bytes]:
    with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    writer = ChunkWriter(head.as_dict("chat.completion.chunk"), served.texts, bool(body.inside), with_usage)
    try:
        for index in range(body.n or 1):
            yield writer.role(index)
        async for event in run:
            for chunk in writer.chunks(event):
                yield chunk
        if with_usage:
            yield writer.usage(run.usage.as_dict())
        yield writer.done()
    finally:
        note_usage(request, run.usage)
