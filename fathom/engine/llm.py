"""LLM: text in, text out, in one process.

    llm = fathom.LLM("minnow")
    llm.generate("Once upon a time", SamplingParams(max_tokens=50))[0].outputs[0].text
    llm.chat([{"role": "user", "content": "Hello"}])
    for delta in llm.stream("Once upon a time"): print(delta.text, end="")

Prompts run side by side in the engine. A prompt is text (the begin token is put in front if the tokenizer has one, so
that "" is a prompt of one token), a list of token ids (used as they are), or for `chat` and `stream` a list of messages
(rendered by the checkpoint's chat template). Without SamplingParams a prompt is answered as the checkpoint recommends
(`llm.sampling`, see defaults.py); SamplingParams that are given count as they are, and
`llm.sampling.replace(max_tokens=50)` changes one field only. All prompts are checked before the first is answered; one
that does not fit the context is a UserError with both numbers, never cut. One thread at a time may use an LLM; several
streams may be read in turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from fathom.engine.defaults import default_sampling
from fathom.engine.engine import Engine
from fathom.engine.outputs import Completion, Delta, RequestOutput
from fathom.engine.params import SamplingParams
from fathom.engine.request import Request
from fathom.engine.sampling import derive_seed
from fathom.engine.setup import EngineOptions, build_engine, loading_dtype
from fathom.model.transformer import DeepseekV3
from fathom.runtime import UserError
from fathom.text.chat import ChatTemplate
from fathom.text.tokenizer import Tokenizer

Message = dict[str, Any]
Prompt = str | list[int]
Params = SamplingParams | Sequence[SamplingParams] | None
Speculative = bool | int | Literal["auto"]


class LLM:
    """A model with its tokenizer and chat template. `seed` is where requests without a seed of their own get theirs."""

    model: DeepseekV3
    tokenizer: Tokenizer
    template: ChatTemplate | None
    name: str
    folder: Path | None  # where it was read from
    sampling: SamplingParams  # what a prompt gets that comes without
    max_model_len: int
    engine: Engine

    def __init__(
        self,
        path_or_name: str | Path = "minnow",
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_model_len: int | None = None,
        cache_tokens: int | None = None,
        speculative: Speculative = "auto",
        seed: int = 0,
        max_running: int = 64,
        cache: str = "auto",
        kernels: str = "auto",
    ) -> None:
        """cache_tokens: size of the latent cache (default: from free memory). speculative: "auto" drafts with the MTP
        module where it pays, True or a number of drafts always, False never. cache: auto, float32, bfloat16 or fp8 (the
        latents in E4M3, rotated keys in BF16). kernels: auto, torch or cpu."""
        from fathom.checkpoint.reader import load_model
        from fathom.models.resolve import resolve

        folder = resolve(path_or_name)
        tokenizer = Tokenizer.from_pretrained(folder)  # small files first: their errors should not wait for the weights
        template = ChatTemplate.from_pretrained(folder)
        sampling = default_sampling(folder)
        options = EngineOptions(max_model_len, cache_tokens, speculative, max_running, cache, kernels)
        model = load_model(folder, loading_dtype(dtype, device, kernels), device)
        self._set_up(model, tokenizer, template, str(path_or_name), seed, options, folder, sampling)

    @classmethod
    def from_parts(
        cls,
        model: DeepseekV3,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        *,
        name: str = "model",
        seed: int = 0,
        **options: Any,
    ) -> LLM:
        """An LLM from parts that are already in memory; `options` are those of EngineOptions."""
        llm = cls.__new__(cls)
        llm._set_up(model, tokenizer, template, name, seed, EngineOptions(**options))
        return llm

    def _set_up(
        self,
        model: DeepseekV3,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        name: str,
        seed: int,
        options: EngineOptions,
        folder: Path | None = None,
        sampling: SamplingParams | None = None,
    ) -> None:
        SamplingParams(seed=seed)  # the same limits hold
        self.model = model.eval()
        self.folder, self.sampling = folder, sampling or SamplingParams()
        self.tokenizer, self.template, self.name, self.seed = tokenizer, template, name, seed
        self.eos_ids = {*tokenizer.eos_ids, *model.config.eos_token_id}
        self.engine = build_engine(self.model, tokenizer, self.eos_ids, options)
        self.max_model_len = self.engine.max_model_len
        self._requests = 0
        self._open: dict[str, Arrived] = {}  # request -> where its deltas are put

    @property
    def kernels(self) -> str:
        """What runs the blocks: "cpu" (the compiled step) or "torch"."""
        return self.engine.runner.paged.kernels

    @property
    def precision(self) -> str:
        """How the weights are held."""
        parameters = {p.dtype for p in self.model.parameters() if p.dim() >= 2}
        names = {torch.float8_e4m3fn: "FP8", torch.bfloat16: "BF16", torch.float32: "FP32", torch.float16: "FP16"}
        if torch.float8_e4m3fn in parameters:
            rest = self.model.embed_tokens.weight.dtype
            return f"FP8 (embedding, head and norms {names[rest]})"
        return names[self.model.embed_tokens.weight.dtype]

    def generate(self, prompts: str | Sequence[Prompt] | list[int], params: Params = None) -> list[RequestOutput]:
        """Continue each prompt: one text or list of token ids, or a list of them. `params`: one for all or one each."""
        single = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))
        listed: list[Any] = [prompts] if single else list(prompts)
        return self._run([self._encode(prompt) for prompt in listed], params)

    def chat(
        self,
        messages: list[Message] | list[list[Message]],
        params: Params = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        thinking: bool = False,
    ) -> list[RequestOutput]:
        """Answer one conversation or several. `text` is what the model wrote, thoughts and tool calls included;
        `message` is that text taken apart."""
        conversations: list[Any] = [messages] if messages and isinstance(messages[0], dict) else list(messages)
        results = self._run([self._encode_chat(each, tools, thinking) for each in conversations], params, thinking)
        for conversation, result in zip(conversations, results, strict=True):
            for out in result.outputs:
                out.message = self.parse_answer(conversation, out.text, tools=tools, thinking=thinking)
        return results

    def each(
        self, prompts: Sequence[Prompt | list[Message]], params: Sequence[SamplingParams]
    ) -> Iterator[RequestOutput]:
        """Answers to texts or conversations in their order, each as soon as it is there; they run side by side."""
        ids = [self.check(prompt, one) for prompt, one in zip(prompts, params, strict=True)]
        requests = [self._request(each, one) for each, one in zip(ids, params, strict=True)]
        results = [
            RequestOutput(None, each, [_empty(i, one) for i in range(one.n)])
            for each, one in zip(ids, params, strict=True)
        ]
        return self._in_order(requests, results)

    def stream(
        self,
        prompt: Prompt | list[Message],
        params: SamplingParams | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        thinking: bool = False,
    ) -> Iterator[Delta]:
        """Answer one prompt or conversation token by token; `"".join(delta.text ...)` of a sample is its text."""
        params = params or self.sampling
        ids = self.check(prompt, params, tools=tools, thinking=thinking)
        open_thought = thinking and self._thought_is_open(prompt, tools)
        return (delta for _, delta in self._run_all([self._request(ids, params, thinking_open=open_thought)]))

    def check(
        self,
        prompt: Prompt | list[Message],
        params: SamplingParams,
        *,
        tools: list[dict[str, Any]] | None = None,
        thinking: bool = False,
    ) -> list[int]:
        """The tokens of a prompt or conversation; a UserError if it cannot be answered. Nothing is generated."""
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            _, ids = self._encode_chat(prompt, tools, thinking)
        elif tools or thinking:
            raise UserError("tools and thinking need a conversation; give a list of messages instead of a text")
        else:
            _, ids = self._encode(prompt)
        self._check(ids, params)
        return ids

    def parse_answer(
        self,
        messages: list[Message],
        text: str,
        *,
        tools: list[dict[str, Any]] | None = None,
        thinking: bool = False,
    ) -> Message:
        """What the model wrote after `messages`, as a message with content, reasoning_content and tool_calls."""
        assert self.template is not None
        prompt = self.template.render(messages, tools=tools, thinking=thinking)
        return self.template.parse_assistant(text, thinking=self.template.thought_is_open(prompt))

    def count_tokens(
        self, messages: list[Message], *, tools: list[dict[str, Any]] | None = None, thinking: bool = False
    ) -> int:
        """Length of a conversation as the model would see it."""
        return len(self._encode_chat(messages, tools, thinking)[1])

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _encode(self, prompt: Any) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, self.tokenizer.encode(prompt, add_bos=True)
        if isinstance(prompt, list) and all(isinstance(t, int) and not isinstance(t, bool) for t in prompt):
            return None, prompt
        raise UserError(f"a prompt is {prompt!r:.80}; it must be a text or a list of token ids (messages go to chat)")

    def _encode_chat(self, messages: Any, tools: list[dict[str, Any]] | None, thinking: bool) -> tuple[str, list[int]]:
        if self.template is None:
            raise UserError(f"{self.name} has no chat template; use generate with a plain prompt")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise UserError(f"a conversation is {messages!r:.80}; it must be a list of at least one message")
        text = self.template.render(messages, tools=tools, thinking=thinking)
        return text, self.template.encode(self.tokenizer, messages, tools=tools, thinking=thinking)

    def _check(self, ids: list[int], params: SamplingParams) -> None:
        if not isinstance(params, SamplingParams):
            raise UserError(f"sampling params are {params!r:.80}; give SamplingParams(...), one or one for each prompt")
        self.engine.check(ids, params)
        if params.grammar is not None:
            self.engine.compiler.matcher(params.grammar)

    def _thought_is_open(self, messages: Any, tools: list[dict[str, Any]] | None) -> bool:
        assert self.template is not None
        return self.template.thought_is_open(self.template.render(messages, tools=tools, thinking=True))

    def _request(self, ids: list[int], params: SamplingParams, *, thinking_open: bool = False) -> Request:
        self._requests += 1
        seed = derive_seed(self.seed, self._requests)
        return Request(f"llm-{self._requests}", ids, params, seed, thinking_open=thinking_open)

    def _run(
        self, prompts: list[tuple[str | None, list[int]]], params: Params, thinking: bool = False
    ) -> list[RequestOutput]:
        params = params or self.sampling
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise UserError(f"{len(prompts)} prompts came with {len(each)} sampling params; give one, or one each")
        for (_, ids), one in zip(prompts, each, strict=True):
            self._check(ids, one)
        requests = [
            self._request(ids, one, thinking_open=thinking and ChatTemplate.thought_is_open(text or ""))
            for (text, ids), one in zip(prompts, each, strict=True)
        ]
        results = [
            RequestOutput(text, ids, [_empty(i, one) for i in range(one.n)])
            for (text, ids), one in zip(prompts, each, strict=True)
        ]
        return list(self._in_order(requests, results))

    def _in_order(self, requests: Sequence[Request], results: Sequence[RequestOutput]) -> Iterator[RequestOutput]:
        """Fill the results and yield each when it and all before it are complete."""
        place = {request.id: i for i, request in enumerate(requests)}
        complete, due = set[int](), 0
        for request_id, delta in self._run_all(requests):
            _collect(results[place[request_id]], delta)
            if delta.metrics is None:
                continue
            complete.add(place[request_id])
            while due in complete:
                yield results[due]
                due += 1

    def _run_all(self, requests: Sequence[Request]) -> Iterator[tuple[str, Delta]]:
        """All requests to their ends, as many at a time as the engine takes; a caller that stops early aborts them."""
        left, open_ids, arrived = deque(requests), set[str](), Arrived()
        try:
            while left or open_ids:
                while left and len(open_ids) < 2 * self.engine.scheduler.max_running:
                    self.engine.add(left[0])
                    self._open[left[0].id] = arrived
                    open_ids.add(left.popleft().id)
                if not arrived:
                    self._step()
                while arrived:
                    request_id, what = arrived.popleft()
                    if isinstance(what, Exception):
                        raise what
                    if what.metrics is not None:
                        open_ids.discard(request_id)
                        del self._open[request_id]
                    yield request_id, what
        finally:
            for request_id in open_ids:
                self.engine.abort(request_id)
                self._open.pop(request_id, None)

    def _step(self) -> None:
        """One step of the engine; its deltas go to whom they are for: several may be amid theirs."""
        found: list[tuple[str, Delta | Exception]] = []
        try:
            found += self.engine.step()
            found += self.engine.failed.items()
        except BaseException as error:  # Ctrl-C too: what the step had made for the others is lost
            reason = error if isinstance(error, Exception) else RuntimeError("the step was interrupted")
            found = [(request_id, reason) for request_id in self.engine.lost]
            raise
        finally:
            for request_id, what in found:
                if request_id in self._open:
                    self._open[request_id].append((request_id, what))


Arrived = deque[tuple[str, Delta | Exception]]


def _empty(index: int, params: SamplingParams) -> Completion:
    return Completion(index, logprobs=None if params.logprobs is None else [], experts=[] if params.inside else None)


def _collect(result: RequestOutput, delta: Delta) -> None:
    out = result.outputs[delta.index]
    out.text += delta.text
    out.token_ids.append(delta.token_id)
    if out.logprobs is not None and delta.logprob is not None:
        out.logprobs.append(delta.logprob)
    if out.experts is not None and delta.experts is not None:
        out.experts.append(delta.experts)
    out.finish_reason, out.stop_string = delta.finish_reason, delta.stop_string
    if delta.prompt_logprobs is not None:
        result.prompt_logprobs = delta.prompt_logprobs
    if delta.metrics is not None:
        result.metrics = delta.metrics
