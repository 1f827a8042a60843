"""Contender: llama.cpp through llama-cpp-python's low-level calls. Options: model, threads, dtypes, gguf (a folder),
and for a GGUF file that is there already: file.

The checkpoint is written as GGUF first (gguf_export.py), once per dtype of the weights; activations and sums are FP32
either way, the cache is FP16 (its default). With `file` that file is read as it is, and the dtype is only a name.
Variants: dtype of the weights, flash attention on or off. Each stream is a sequence of one batch.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from time import perf_counter
from typing import Any

import gguf_export
import llama_cpp
import numpy as np
import protocol

CONTEXT, STREAMS, BATCH = 1024, 16, 1024


class LlamaCppRunner:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.name = f"llama-cpp-python {llama_cpp.__version__}"
        self.variants = [f"{dtype} {way}" for dtype in options["dtypes"] for way in ("flash", "plain")]
        self.models: dict[str, Any] = {}
        self.contexts: dict[str, Any] = {}
        self.log = llama_cpp.llama_log_callback(_only_errors)
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._context(self.variants[0])

    def _context(self, variant: str) -> Any:
        if variant in self.contexts:
            return self.contexts[variant]
        dtype, way = variant.split()
        if dtype not in self.models:
            file = self._file(dtype)
            params = llama_cpp.llama_model_default_params()
            params.n_gpu_layers = 0
            self.models[dtype] = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
            if not self.models[dtype]:
                raise RuntimeError(f"llama.cpp does not load {file.name}; its log says why")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = CONTEXT * STREAMS, BATCH, BATCH, STREAMS
        params.n_threads = params.n_threads_batch = self.options["threads"]
        params.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if way == "flash" else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self.contexts[variant] = llama_cpp.llama_init_from_model(self.models[dtype], params)
        if not self.contexts[variant]:
            raise RuntimeError(f"llama.cpp makes no context for {variant}; its log says why")
        return self.contexts[variant]

    def _file(self, dtype: str) -> Path:
        if self.options.get("file"):
            return Path(self.options["file"])
        file = Path(self.options["gguf"]) / f"{dtype}.gguf"
        gguf_export.export(Path(self.options["model"]), file, dtype)
        return file

    def _step(self, context: Any, tokens: list[list[int]], start: int) -> list[int]:
        """Run the next tokens of each stream, all at positions from `start`; the greedy token after each."""
        batch = llama_cpp.llama_batch_init(sum(map(len, tokens)), 0, 1)
        ends, n = [], 0
        for stream, ids in enumerate(tokens):
            for i, token in enumerate(ids):
                batch.token[n], batch.pos[n] = token, start + i
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, stream
                batch.logits[n] = i == len(ids) - 1
                n += 1
            ends.append(n - 1)
        batch.n_tokens = n
        code = llama_cpp.llama_decode(context, batch)
        llama_cpp.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(llama_cpp.llama_get_model(context)))
        rows = [llama_cpp.llama_get_logits_ith(context, end) for end in ends]
        return [int(np.ctypeslib.as_array(row, shape=(vocab,)).argmax()) for row in rows]

    def decode(self, variant: str, prompts: list[list[int]], new: int) -> dict[str, Any]:
        context, clock = self._context(variant), protocol.Clock()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        answers: list[list[int]] = [[] for _ in prompts]
        tokens, start = prompts, 0
        for _ in range(new):
            chosen = self._step(context, tokens, start)
            clock.step(len(prompts))
            for answer, token in zip(answers, chosen, strict=True):
                answer.append(token)
            start, tokens = start + len(tokens[0]), [[token] for token in chosen]
        return clock.figures(answers)

    def prefill(self, variant: str, prompt: list[int]) -> float:
        context = self._context(variant)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        start = perf_counter()
        self._step(context, [prompt], 0)
        return perf_counter() - start


def _only_errors(level: int, text: bytes, _: Any) -> None:
    """llama.cpp's log is long; level 4 is errors."""
    if level == 4:
        print(text.decode(errors="replace"), end="")


if __name__ == "__main__":
    protocol.answer(LlamaCppRunner)
