"""Contender: transformers' own `generate`, greedy, batched over streams. Options: model, threads, dtypes, compiled.

Its variants are all it offers for this model on a CPU: three implementations of the experts, SDPA or its own attention,
and (slow to start: minutes of compiling) a static cache with the decoding step compiled by torch.compile.
"""

from __future__ import annotations

import itertools
from time import perf_counter
from typing import Any

import protocol
import torch
import transformers
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList
from transformers.generation.configuration_utils import CompileConfig

EXPERTS = ("eager", "batched_mm", "grouped_mm")
ATTENTION = ("sdpa", "eager")
COMPILED = "batched_mm sdpa compiled"


class Watch(StoppingCriteria):
    """Called after every step; stops nothing."""

    def __init__(self) -> None:
        self.clock = protocol.Clock()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.clock.step(len(input_ids))
        return torch.zeros(len(input_ids), dtype=torch.bool)


class TransformersRunner:
    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.folder = options["model"]
        self.models: dict[str, Any] = {}
        self.name = f"transformers {transformers.__version__}"
        ways = [f"{e} {a}" for e, a in itertools.product(EXPERTS, ATTENTION)] + [COMPILED] * options["compiled"]
        self.variants = [f"{dtype} {way}" for dtype in options["dtypes"] for way in ways]
        self._model(self.variants[0])

    def _model(self, variant: str) -> Any:
        dtype, experts, attention = variant.split()[:3]
        if dtype not in self.models:
            model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, dtype)).eval()
            model.generation_config.eos_token_id = None  # an end token is a token like others
            self.models[dtype] = model
        model = self.models[dtype]
        model.set_experts_implementation(experts)
        model.set_attn_implementation(attention)
        return model

    @torch.inference_mode()
    def _generate(self, variant: str, prompts: list[list[int]], new: int) -> tuple[Any, Watch]:
        watch, ids = Watch(), torch.tensor(prompts)
        more: dict[str, Any] = {}
        if variant.endswith("compiled"):
            config = CompileConfig(fullgraph=False, mode="default")
            config._compile_all_devices = True  # type: ignore[assignment]  # transformers compiles on accelerators only
            more = {"cache_implementation": "static", "compile_config": config}
        out = self._model(variant).generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, pad_token_id=0,
            repetition_penalty=1.0,  # whatever the folder recommends
            stopping_criteria=StoppingCriteriaList([watch]), **more,
        )  # fmt: skip
        return out[:, ids.shape[1] :].tolist(), watch

    def decode(self, variant: str, prompts: list[list[int]], new: int) -> dict[str, Any]:
        answers, watch = self._generate(variant, prompts, new)
        return watch.clock.figures(answers)

    def prefill(self, variant: str, prompt: list[int]) -> float:
        if variant.endswith("compiled"):
            raise ValueError("what is compiled is the decoding step")
        start = perf_counter()
        self._generate(variant, [prompt], 1)
        return perf_counter() - start


if __name__ == "__main__":
    protocol.answer(TransformersRunner)
