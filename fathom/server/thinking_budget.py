"""A limit on the length of a thought.

The engine knows no such limit, so the answer is made in two requests: the first ends at the budget's last token, the
second has as its prompt all of that and the end of the thought, and the prefix cache has nearly all of it. For the
reader it is one answer: the last token of the first request carries the text that closes the thought.

The tokens of the closing text are not counted, because the model did not generate them. Of an answer that was cut the
count of cached prompt tokens is 0: only the second request tells it, and there it is the first one's doing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from starlette.concurrency import run_in_threadpool

from fathom.engine.outputs import Delta
from fathom.server.generation import ChatRun, submit
from fathom.server.prepare import ChatJob, Prepared, prepare
from fathom.server.served import Served
from fathom.server.sse import close
from fathom.text.chat_tokens import END_THINK


async def start_with_budget(served: Served, job: ChatJob, budget: int | None) -> ChatRun:
    """`start_chat` with a limit on the thought in tokens. One sample."""
    assert job.params.n == 1
    prepared = await run_in_threadpool(prepare, served.llm, served.facts, job)
    first = submit(
        served, prepared.prompt, prepared.params, param="messages", priority=job.priority,
        thinking_open=prepared.thinking_open,
    )  # fmt: skip
    if budget is None or not prepared.thinking_open:
        return ChatRun(served, prepared, first)
    return ChatRun(served, prepared, _Budgeted(served, prepared, first, budget, job.priority))


class _Budgeted:
    """The deltas of both requests."""

    def __init__(
        self, served: Served, prepared: Prepared, first: AsyncIterator[Delta], budget: int, priority: int
    ) -> None:
        self.served, self.prepared, self.budget, self.priority = served, prepared, budget, priority
        self._deltas = first
        self._stream = prepared.new_stream()
        self._ids: list[int] = []
        self._text = ""
        self._cut = False
        self._closing = END_THINK if served.facts.format == "v3.1" else f"\n{END_THINK}\n\n"

    def __aiter__(self) -> _Budgeted:
        return self

    async def __anext__(self) -> Delta:
        delta = await anext(self._deltas)
        if self._cut:
            return self._of_second(delta)
        if len(self._ids) == self.budget:
            return delta
        self._ids.append(delta.token_id)
        self._text += delta.text
        self._stream.push(delta.text)
        if len(self._ids) == self.budget and self._stream.in_reasoning and delta.finish_reason is None:
            return await self._cut_after(delta)
        return delta

    async def aclose(self) -> None:
        await close(self._deltas)

    async def _cut_after(self, delta: Delta) -> Delta:
        """Start the second request, if there is room for it. The delta with the end of the thought."""
        tokenizer, params = self.served.llm.tokenizer, self.prepared.params
        prompt = [*self.prepared.prompt, *self._ids, *tokenizer.encode(self._closing)]
        whole = tokenizer.decode(self._ids).rstrip("\ufffd")
        held = whole[len(self._text) :] if whole.startswith(self._text) else ""  # what may begin a stop string
        if len(prompt) >= self.served.llm.max_model_len or END_THINK in held:
            return delta
        await close(self._deltas)
        left = None if params.max_tokens is None else params.max_tokens - len(self._ids)
        self._deltas = submit(
            self.served, prompt, params.replace(max_tokens=left), param="messages", priority=self.priority - 1,
            continues=True,
        )  # fmt: skip
        self._cut = True
        return replace(delta, text=delta.text + held + self._closing)

    def _of_second(self, delta: Delta) -> Delta:
        if delta.metrics is None:
            return delta
        made = len(self._ids) + delta.metrics.generated_tokens
        metrics = replace(
            delta.metrics, prompt_tokens=len(self.prepared.prompt), generated_tokens=made, cached_tokens=0
        )
        return replace(delta, metrics=metrics)
