"""An EngineService without a model: it writes the texts it is told to, through the engine's own Answer.

fake.script = ["text of sample 0", "of sample 1"]    or one text for all samples, or a function of the prompt's text
fake.pause = seconds before each token               fake.fail_after = number of tokens, then EngineFailure
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import fathom
from fathom.config import ModelConfig
from fathom.engine.answer import Answer
from fathom.engine.engine import EngineStats
from fathom.engine.grammar import GrammarCompiler
from fathom.engine.naive import check_prompt
from fathom.engine.outputs import Delta, Metrics
from fathom.engine.params import SamplingParams
from fathom.engine.sampling import TokenLogprob
from fathom.engine.service import EngineBusy, EngineFailure
from fathom.text.chat import ChatTemplate
from fathom.text.tokenizer import Tokenizer

MINNOW = Path(fathom.__file__).parent / "assets" / "minnow"
LOGPROB = -0.5


class FakeLLM:
    def __init__(
        self,
        template: ChatTemplate | None = None,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008
    ) -> None:
        self.sampling = sampling
        self.tokenizer = Tokenizer.from_pretrained(MINNOW)
        self.template = template or ChatTemplate.from_pretrained(MINNOW)
        config = ModelConfig.from_pretrained(MINNOW)
        weight = torch.zeros(1, dtype=torch.bfloat16)
        self.model = SimpleNamespace(config=config, embed_tokens=SimpleNamespace(weight=weight))
        self.precision = "BF16"
        self.name, self.max_model_len, self.eos_ids = "minnow", config.max_position_embeddings, {1}
        self.engine = SimpleNamespace(compiler=GrammarCompiler(self.tokenizer, config.vocab_size, self.eos_ids))


class FakeService:
    def __init__(self, llm: FakeLLM | None = None) -> None:
        self.llm: Any = llm or FakeLLM()
        self.reset()

    def reset(self) -> None:
        self.script: str | list[str] | Callable[[str], str] = "Hello there."
        self.pause = 0.0
        self.fail_after: int | None = None
        self.busy: EngineBusy | None = None
        self.busy_after = 0
        self.submitted: list[tuple[list[int], SamplingParams, dict[str, Any]]] = []
        self.aborted: list[str] = []
        self.open: set[str] = set()
        self.stopped = False

    @property
    def running(self) -> int:
        return len(self.open)

    def submit(self, prompt: list[int], params: SamplingParams, *, request_id: str, **more: Any) -> _Deltas:
        if self.busy is not None and len(self.submitted) >= self.busy_after:
            raise self.busy
        check_prompt(prompt, self.llm.max_model_len, self.llm.model.config.vocab_size)
        self.submitted.append((prompt, params, more))
        self.open.add(request_id)
        return _Deltas(self, prompt, params, request_id)

    def stats(self) -> EngineStats:
        return EngineStats(self.running, 0, 65536, 64, 11, 22, 3, 0, 8, 5, "on")

    async def drain(self, timeout: float) -> bool:
        end = asyncio.get_running_loop().time() + timeout
        while self.running and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
        return not self.running

    def stop(self) -> None:
        self.stopped = True

    def text_of(self, prompt: list[int], sample: int) -> str:
        if callable(self.script):
            return self.script(self.llm.tokenizer.decode(prompt))
        return self.script if isinstance(self.script, str) else self.script[sample]


class _Deltas:
    """Closing it before its end is an abort, even before its first token."""

    def __init__(self, fake: FakeService, prompt: list[int], params: SamplingParams, request_id: str) -> None:
        self.fake, self.request_id, self.open, self.aborted = fake, request_id, fake.open, fake.aborted
        self.deltas = self._run(prompt, params)

    def __aiter__(self) -> _Deltas:
        return self

    async def __anext__(self) -> Delta:
        try:
            return await anext(self.deltas)
        except StopAsyncIteration:
            self._end()
            raise

    async def aclose(self) -> None:
        if self.request_id in self.open:
            self.aborted.append(self.request_id)
        self._end()
        await self.deltas.aclose()

    def _end(self) -> None:
        self.open.discard(self.request_id)

    async def _run(self, prompt: list[int], params: SamplingParams) -> Any:
        tokenizer, room = self.fake.llm.tokenizer, self.fake.llm.max_model_len - len(prompt)
        limit = min(params.max_tokens or room, room)
        tokens = [[*tokenizer.encode(self.fake.text_of(prompt, i)), 1] for i in range(params.n)]
        answers = [Answer(tokenizer, params, {1}, limit) for _ in range(params.n)]
        prompt_logprobs = None
        if params.prompt_logprobs is not None:
            prompt_logprobs = [None, *(_logprob(token, params.prompt_logprobs) for token in prompt[1:])]
        open_samples, made = set(range(params.n)), 0
        for step in range(max(map(len, tokens))):
            await asyncio.sleep(self.fake.pause)
            for i in sorted(open_samples):
                if made == self.fake.fail_after or self.fake.stopped:
                    raise EngineFailure("the engine failed: out of fish")
                token = tokens[i][step]
                text = answers[i].push(token)
                made += 1
                if answers[i].finish is not None:
                    open_samples.discard(i)
                metrics = None if open_samples else Metrics(len(prompt), made, 0.1, 50.0, 2, 0.01, 4, 3)
                logprob = None if params.logprobs is None else _logprob(token, params.logprobs)
                experts = ((0, 1, 2, 3),) * 5 if params.inside else None
                yield Delta(i, text, token, logprob, answers[i].finish, metrics, bool(step % 2), experts,
                            answers[i].stop_string, prompt_logprobs if made == 1 else None)  # fmt: skip
            if not open_samples:
                self._end()
                return


def _logprob(token: int, top: int) -> TokenLogprob:
    return TokenLogprob(token, LOGPROB, tuple((token + i, LOGPROB - i) for i in range(top)))
