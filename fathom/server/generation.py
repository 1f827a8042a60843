"""A running answer: the engine's tokens, taken apart into thought, text and calls. Every chat API reads it.

One ChatEvent per generated token, in the engine's order; the samples of a request (n > 1) interleave. Most events
carry a piece of text; those of tokens whose text is still held back (half a character, a possible stop string, a call
that may yet be malformed) carry none. Whatever ends a sample, its last event has `finish` and all the rest of it.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from starlette.concurrency import run_in_threadpool

from fathom.engine.outputs import Delta
from fathom.engine.params import SamplingParams
from fathom.engine.sampling import TokenLogprob
from fathom.runtime import UserError
from fathom.server.errors import ApiError
from fathom.server.metrics import RequestClock
from fathom.server.prepare import ChatJob, Prepared, prepare
from fathom.server.served import Served
from fathom.server.sse import close
from fathom.server.usage import UsageCount
from fathom.text.chat_stream import Piece

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class ChatEvent:
    """One token of sample `index`."""

    index: int
    pieces: list[Piece]
    delta: Delta
    reasoning: bool
    """Whether the token is part of a thought (its closing tag included)."""
    is_end: bool
    """Whether it is a token that ends answers: it has no text."""
    finish: Finish | None

    @property
    def logprob(self) -> TokenLogprob | None:
        """Of the tokens of the answer: neither those of a thought nor the one that ends it all."""
        return None if self.reasoning or self.is_end else self.delta.logprob


class ChatRun:
    """Iterate over it once; close it in any case."""

    def __init__(self, served: Served, prepared: Prepared, deltas: AsyncIterator[Delta]) -> None:
        self.prepared = prepared
        self.usage = UsageCount(served.llm.max_model_len, {0: len(prepared.prompt)})
        self._deltas = deltas
        self._clock: RequestClock = served.metrics.clock()
        self._ends = {*served.llm.eos_ids, *prepared.params.stop_token_ids}
        self._streams = [prepared.new_stream() for _ in range(prepared.params.n)]
        self._calls = [0] * prepared.params.n

    def __aiter__(self) -> ChatRun:
        return self

    async def __anext__(self) -> ChatEvent:
        delta = await anext(self._deltas)
        self._clock.token(delta)
        event = self._event(delta)
        self.usage.token(delta, reasoning=event.reasoning)
        return event

    async def aclose(self) -> None:
        """Abort what is still being generated."""
        await close(self._deltas)

    def _event(self, delta: Delta) -> ChatEvent:
        stream, finish = self._streams[delta.index], delta.finish_reason
        was_thinking = stream.in_reasoning
        pieces = stream.push(delta.text)
        reasoning = was_thinking or stream.in_reasoning
        is_end = finish == "stop" and delta.token_id in self._ends
        if finish is not None:
            pieces += stream.finish()
        self._calls[delta.index] += sum(piece.kind == "call" for piece in pieces)
        calls = finish == "stop" and self._calls[delta.index] > 0
        return ChatEvent(delta.index, pieces, delta, reasoning, is_end, "tool_calls" if calls else finish)


async def start_chat(served: Served, job: ChatJob) -> ChatRun:
    """Prepare the job and hand it to the engine. ApiError, UserError or EngineBusy if it cannot be answered."""
    prepared = await run_in_threadpool(prepare, served.llm, served.facts, job)
    deltas = submit(
        served, prepared.prompt, prepared.params, param="messages", priority=job.priority,
        thinking_open=prepared.thinking_open,
    )  # fmt: skip
    return ChatRun(served, prepared, deltas)


def submit(
    served: Served,
    prompt: list[int],
    params: SamplingParams,
    *,
    param: str,
    priority: int = 0,
    thinking_open: bool = False,
    continues: bool = False,
) -> AsyncIterator[Delta]:
    """Into the engine's queue. `param`: the field that an error about the prompt names."""
    try:
        return served.service.submit(
            prompt, params, request_id=uuid.uuid4().hex, priority=priority, thinking_open=thinking_open,
            continues=continues,
        )  # fmt: skip
    except UserError as error:
        if str(error).startswith("the prompt has"):
            raise ApiError(400, str(error), param=param, code="context_length_exceeded") from None
        raise
