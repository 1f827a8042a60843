"""From a model in memory to an engine: how much cache, whether to draft, which kernels."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch

from fathom.engine.engine import Engine
from fathom.engine.paged import CACHES, PagedModel, cache_format, pool_bytes_per_token
from fathom.engine.paged_cpu import CpuPagedModel
from fathom.kernels import cpu
from fathom.model.transformer import DeepseekV3
from fathom.runtime import UserError, pick_device
from fathom.text.tokenizer import Tokenizer

PAGE_SIZE = 32
STEP_TOKENS = 1024
CACHE_SHARE = 0.4  # of the memory that is free once the weights are loaded
MAX_DRAFTS = 8


@dataclass(frozen=True)
class EngineOptions:
    """See LLM. `step_tokens`: most tokens of one step, prompts in chunks included."""

    max_model_len: int | None = None
    cache_tokens: int | None = None
    speculative: bool | int | Literal["auto"] = "auto"
    max_running: int = 64
    cache: str = "auto"
    kernels: str = "auto"
    page_size: int = PAGE_SIZE
    step_tokens: int = STEP_TOKENS

    def __post_init__(self) -> None:
        for name in ("max_running", "page_size", "step_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.cache not in ("auto", *CACHES):
            raise UserError(f"cache is {self.cache!r}; use auto, {', '.join(CACHES)}")
        if self.cache_tokens is not None and self.cache_tokens < 2:
            raise UserError(f"cache_tokens is {self.cache_tokens}; the cache must hold at least 2 tokens")
        if self.speculative != "auto" and not (
            isinstance(self.speculative, bool | int) and 0 <= self.speculative <= MAX_DRAFTS
        ):
            raise UserError(f"speculative is {self.speculative!r}; use 'auto', True, False or 1 to {MAX_DRAFTS} drafts")


def build_engine(model: DeepseekV3, tokenizer: Tokenizer, eos_ids: Collection[int], options: EngineOptions) -> Engine:
    """Sizes, pool and engine."""
    longest = model.config.max_position_embeddings
    wanted = options.max_model_len
    if wanted is not None and not 2 <= wanted <= longest:
        raise UserError(f"max_model_len is {wanted}; the model's context allows 2 to {longest}")
    max_model_len = wanted or longest
    depth = _depth(model, options)
    make = CpuPagedModel if pick_kernels(options.kernels, model) == "cpu" else PagedModel
    dtype, fp8 = cache_format(options.cache, make.cache_dtype or model.embed_tokens.weight.dtype)
    per_token = pool_bytes_per_token(model.config, dtype, fp8, model.config.num_hidden_layers + (depth > 0))
    pages = _pages(options, max_model_len, per_token, model.embed_tokens.weight.device)
    if wanted is not None and pages * options.page_size < wanted:
        why = "cache_tokens is" if options.cache_tokens is not None else "the free memory holds"
        raise UserError(f"max_model_len is {wanted}, but {why} {pages * options.page_size} tokens; lower max_model_len")
    paged = make(model, pages=pages, page_size=options.page_size, mtp=depth > 0, cache=options.cache)
    return Engine(
        paged, tokenizer, eos_ids=eos_ids, max_model_len=max_model_len, max_running=options.max_running,
        step_tokens=options.step_tokens, depth=depth, always=options.speculative != "auto",
    )  # fmt: skip


def loading_dtype(dtype: str, device: str, kernels: str) -> str:
    """What to load: with "auto", FP8 stays FP8 where the compiled step reads it; elsewhere it is widened."""
    reads_fp8 = kernels != "torch" and pick_device(device).type == "cpu" and cpu.available() is None
    return "fp8" if dtype == "auto" and reads_fp8 else dtype


def pick_kernels(name: str, model: DeepseekV3) -> str:
    """ "cpu" (the compiled step) where it can run, else "torch"; a UserError where "cpu" was asked for and cannot."""
    if name not in ("auto", "torch", "cpu"):
        raise UserError(f"kernels is {name!r}; use auto, torch or cpu")
    if name == "torch":
        return "torch"
    weight = model.embed_tokens.weight
    if weight.device.type != "cpu":
        why: str | None = f"the model is on {weight.device}"
    elif weight.dtype not in (torch.float32, torch.bfloat16):
        why = f"the weights are {weight.dtype}"
    else:
        why = cpu.available()
    if why is None:
        return "cpu"
    if name == "cpu":
        raise UserError(f"kernels is 'cpu', which cannot be used here: {why}; use 'auto' or 'torch'")
    return "torch"


def _depth(model: DeepseekV3, options: EngineOptions) -> int:
    """Drafts per step. "auto" drafts one where the checkpoint has an MTP module."""
    if options.speculative == "auto":
        return min(len(model.mtp), 1)
    depth = int(options.speculative)
    if depth and not len(model.mtp):
        raise UserError("speculative is on, the checkpoint has no MTP module (num_nextn_predict_layers 0); use 'auto'")
    return depth


def _pages(options: EngineOptions, max_model_len: int, per_token: int, device: torch.device) -> int:
    """Pages of the pool: what was asked for, or what fits, but no more than all running sequences can use."""
    size = options.page_size
    if options.cache_tokens is not None:
        return -(-options.cache_tokens // size)
    fits = int(CACHE_SHARE * free_memory(device)) // per_token
    useful = -(-max_model_len // size) * size * options.max_running
    if fits < min(useful, 2 * size):
        raise UserError(
            f"the latent cache needs {per_token} bytes a token and only {fits} tokens fit the free memory; "
            "free some memory or give cache_tokens"
        )
    return max(min(fits, useful) // size, 1)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device now."""
    if device.type == "cpu":
        try:
            with open("/proc/meminfo", encoding="ascii") as file:
                return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
        except (OSError, StopIteration):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return int(torch.accelerator.get_memory_info(device)[0])
