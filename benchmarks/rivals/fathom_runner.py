"""Contender: Fathom itself, through fathom.LLM. Options: model, stored (the checkpoint that `model` was made
from), threads, dtypes, speculative (auto, true or false).

The moments of tokens come from the metrics of the requests: all are handed over together, so their clocks start
together up to the time that it takes to queue them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import protocol

import fathom

CACHE_TOKENS = 32 * 1024


class FathomRunner:
    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        self.options = options
        self.variants = ["stored", *options["dtypes"]]
        self.llms: dict[str, fathom.LLM] = {}
        self.name = f"fathom {fathom.__version__}, kernels {self._llm(self.variants[0]).kernels}"

    def _llm(self, dtype: str) -> fathom.LLM:
        if dtype not in self.llms:
            self.llms[dtype] = fathom.LLM(
                self.options["stored" if dtype == "stored" else "model"],
                dtype="auto" if dtype == "stored" else dtype, device="cpu", cache_tokens=CACHE_TOKENS,
                speculative=self.options["speculative"],
            )  # fmt: skip
        return self.llms[dtype]

    def decode(self, variant: str, prompts: list[list[int]], new: int) -> dict[str, Any]:
        params = fathom.SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        results = self._llm(variant).generate(prompts, params)
        first = min(r.metrics.time_to_first_token for r in results)
        # tokens_per_second is (tokens - 1) / (last - first)
        last = max(
            r.metrics.time_to_first_token + (r.metrics.generated_tokens - 1) / r.metrics.tokens_per_second
            for r in results
        )
        answers = [r.outputs[0].token_ids for r in results]
        return {"seconds": last - first, "tokens": len(prompts) * (new - 1), "answers": answers}

    def prefill(self, variant: str, prompt: list[int]) -> float:
        params = fathom.SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
        return self._llm(variant).generate(prompt, params)[0].metrics.time_to_first_token


if __name__ == "__main__":
    protocol.answer(FathomRunner)
