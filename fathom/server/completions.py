"""POST /v1/completions: texts or token ids, continued. Choice number = prompt number * n + sample."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from fathom.engine.outputs import Delta
from fathom.engine.params import SamplingParams
from fathom.server.completion_logprobs import LogprobWriter
from fathom.server.completion_prompts import CompletionPrompt, prompts_of
from fathom.server.errors import ApiError
from fathom.server.generation import submit
from fathom.server.json_body import JsonRoute
from fathom.server.limits import MAX_SAMPLES
from fathom.server.merge import merge
from fathom.server.params import sampling_params
from fathom.server.prepare import compile_grammar
from fathom.server.schemas.completion import CompletionRequest
from fathom.server.schemas.responses import ERRORS, Completion
from fathom.server.served import Served, note_usage, served_of
from fathom.server.sse import DONE, EventStream, close, event, watched
from fathom.server.usage import UsageCount

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/completions",
    summary="Continue a text",
    response_model=None,
    responses={200: {"model": Completion, "content": {"text/event-stream": {}}}, **ERRORS},
)
async def completions(
    request: Request, body: CompletionRequest, served: Annotated[Served, Depends(served_of)]
) -> Response:
    """Whole, or with `stream: true` as server-sent events."""
    served.check_model(body.model)
    run = await start_completion(served, body)
    if body.stream:
        return EventStream(run, _stream(request, body, run), keep_alive=served.settings.keep_alive_seconds)
    return await watched(request, run, _whole(request, body, run))


class CompletionRun:
    """The running requests of one body, one per prompt."""

    def __init__(
        self, served: Served, body: CompletionRequest, prompts: list[CompletionPrompt], params: SamplingParams
    ) -> None:
        self.n, self.prompts, self.params = params.n, prompts, params
        self.wanted = body.max_tokens != 0  # else one token is drawn and thrown away: echo with logprobs alone
        self.usage = UsageCount(served.llm.max_model_len, {i: len(p.ids) for i, p in enumerate(prompts)})
        self.head: dict[str, Any] = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.settings.model_id,
            "system_fingerprint": served.fingerprint,
        }
        self.ends = {*served.llm.eos_ids, *params.stop_token_ids}
        self._clocks = [served.metrics.clock() for _ in prompts]
        self._writers = [LogprobWriter(served, prompts[i // self.n], bool(body.echo)) for i in range(self.choices)]
        self._prompt_logprobs: list[Any] = [None] * len(prompts)
        self._begun: set[int] = set()
        self._streams: list[AsyncIterator[Delta]] = []
        self.echo = bool(body.echo)

    async def submit(self, served: Served, priority: int) -> None:
        """All prompts into the engine's queue, or none."""
        try:
            for prompt in self.prompts:
                self._streams.append(submit(served, prompt.ids, self.params, param="prompt", priority=priority))
        except BaseException:
            await self.aclose()
            raise

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.n

    async def pieces(self) -> AsyncIterator[tuple[int, str, dict[str, Any] | None, str | None]]:
        """(choice, text, logprobs, finish_reason) per token; a choice that echoes begins with its prompt."""
        merged = merge(self._streams)
        try:
            async for prompt, delta in merged:
                yield self._piece(prompt, delta)
        finally:
            await close(merged)

    def _piece(self, prompt: int, delta: Delta) -> tuple[int, str, dict[str, Any] | None, str | None]:
        self._clocks[prompt].token(delta)
        choice = prompt * self.n + delta.index
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs[prompt] = delta.prompt_logprobs
        writer, text = self._writers[choice], ""
        if choice not in self._begun:
            self._begun.add(choice)
            text = self.prompts[prompt].text if self.echo else ""
            if self._prompt_logprobs[prompt] is not None:
                writer.prompt(self._prompt_logprobs[prompt])
        if self.wanted:
            self.usage.token(delta, prompt)
            text += delta.text
            writer.token(delta, is_end=delta.finish_reason == "stop" and delta.token_id in self.ends)
        elif delta.metrics is not None:
            self.usage.metrics.append(delta.metrics)
        finish = delta.finish_reason if self.wanted or delta.finish_reason is None else "length"
        return choice, text, writer.take() if self.params.logprobs is not None else None, finish

    async def aclose(self) -> None:
        """Abort whatever is left."""
        for stream in self._streams:
            await close(stream)


async def start_completion(served: Served, body: CompletionRequest) -> CompletionRun:
    """Check the request and hand its prompts to the engine."""
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens is 0: nothing would come back; raise it, or ask for echo", param="max_tokens")
    if body.echo and body.suffix is not None:
        raise ApiError(400, "echo has no meaning with suffix: the answer stands between the two", param="echo")
    params = sampling_params(
        body,
        served.llm.sampling,
        max_tokens=1 if body.max_tokens == 0 else body.max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    prompts = await run_in_threadpool(prompts_of, served.llm, body)
    if len(prompts) * params.n > MAX_SAMPLES:
        message = f"{len(prompts)} prompts times n {params.n} is more than {MAX_SAMPLES} answers; send fewer at a time"
        raise ApiError(400, message, param="n")
    await run_in_threadpool(compile_grammar, served.llm, params)
    run = CompletionRun(served, body, prompts, params)
    await run.submit(served, body.priority or 0)
    return run


async def _whole(request: Request, body: CompletionRequest, run: CompletionRun) -> Response:
    texts = [""] * run.choices
    finish: list[str | None] = [None] * run.choices
    logprobs: list[dict[str, Any]] = [LogprobWriter.nothing() for _ in range(run.choices)]
    try:
        async for choice, text, some, reason in run.pieces():
            texts[choice] += text
            finish[choice] = reason
            for key, values in (some or {}).items():
                logprobs[choice][key] += values
    finally:
        note_usage(request, run.usage)
    choices = [
        {"index": i, "text": texts[i], "logprobs": logprobs[i] if body.logprobs is not None else None,
         "finish_reason": finish[i]}
        for i in range(run.choices)
    ]  # fmt: skip
    return JSONResponse({**run.head, "choices": choices, "usage": run.usage.as_dict()})


async def _stream(request: Request, body: CompletionRequest, run: CompletionRun) -> AsyncIterator[bytes]:
    with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    null_usage = {"usage": None} if with_usage else {}
    try:
        async for choice, text, logprobs, reason in run.pieces():
            if text or reason or (logprobs and logprobs["tokens"]):
                entry = {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": reason}
                yield event({**run.head, "choices": [entry], **null_usage})
        if with_usage:
            yield event({**run.head, "choices": [], "usage": run.usage.as_dict()})
        yield DONE
    finally:
        note_usage(request, run.usage)
