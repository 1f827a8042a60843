"""Does the fast path of this machine compute the model, and how far is it from what the machine allows?

Differences: the same tokens through the model's own forward in FP32 (naive attention, no cache) and through the paged
path of the engine, as a prefill in chunks followed by single tokens; differences of the logits are in units of their
standard deviation.

The floor of decoding: every token reads all activated weights once, so no decoder is faster than memory bandwidth over
their bytes, unless the weights fit a cache. Both numbers are measured here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from fathom.engine.llm import LLM
from fathom.engine.params import SamplingParams
from fathom.engine.request import Request, SequenceState
from fathom.engine.scheduler import Work
from fathom.model.moe import MoE
from fathom.model.transformer import DeepseekV3

SINGLE = 16  # tokens at the end of each prompt that go through one by one


@dataclass(frozen=True)
class Difference:
    """Of the logits at every position of some prompts."""

    largest: float  # in standard deviations of the logits
    typical: float  # root of the mean square, in the same unit
    positions: int
    same_choice: int  # positions at which the likeliest token is the same


@torch.inference_mode()
def paged_logits(llm: LLM, tokens: list[int], chunk: int) -> Tensor:
    """[T, V] from the engine's path: all but SINGLE tokens in chunks, then one by one. Pages are given back."""
    engine = llm.engine
    request = Request("check", tokens, SamplingParams())
    sequence = SequenceState(request, 0, 0, list(tokens), 1, torch.Generator(), 0)
    pages = engine.pool.take(engine.pool.pages_for(len(tokens)))
    assert pages is not None, "the cache is smaller than the prompt"
    sequence.pages = pages
    rows: list[Tensor] = []
    while sequence.computed < len(tokens):
        left = len(tokens) - SINGLE - sequence.computed
        work = Work(sequence, max(min(chunk, left), 1))
        rows.append(engine.runner.logits(engine.runner.run([work]).hidden))
        sequence.computed += work.count
    engine.pool.release(pages)
    return torch.cat(rows)


@torch.inference_mode()
def compare(llm: LLM, reference: DeepseekV3, prompts: list[list[int]]) -> Difference:
    """The engine's logits against those of `reference`, an FP32 model of the same checkpoint."""
    largest, square, positions, same = 0.0, 0.0, 0, 0
    for tokens in prompts:
        want = reference(torch.tensor([tokens], device=reference.embed_tokens.weight.device), attention="naive")[
            0
        ].cpu()
        have = paged_logits(llm, tokens, chunk=max(len(tokens) // 3, 1)).cpu()
        if not bool((have.isfinite() & want.isfinite()).all()):  # NaN compares as neither larger nor smaller
            return Difference(math.inf, math.inf, positions, same)
        largest = max(largest, float((have - want).abs().max() / want.std()))
        square += float((have - want).square().mean() / want.var()) * len(tokens)
        positions += len(tokens)
        same += int((have.argmax(-1) == want.argmax(-1)).sum())
    return Difference(largest, (square / positions) ** 0.5, positions, same)


def activated_bytes(model: DeepseekV3) -> int:
    """Bytes of the weights that one decoded token reads: head and chosen experts included, embedding not."""
    total = 0
    for name, parameter in model.named_parameters():
        if name.startswith(("embed_tokens", "mtp")):
            continue
        total += parameter.numel() * parameter.element_size()
    for layer in model.layers:
        if isinstance(layer.mlp, MoE):
            experts = layer.mlp.experts
            held = sum(p.numel() * p.element_size() for p in experts.parameters())
            total -= held - held * model.config.num_experts_per_tok // model.config.n_routed_experts
    return total


def memory_bandwidth(device: torch.device, megabytes: int = 512) -> float:
    """Bytes per second of reading: the median of a few sums over more than any cache holds."""
    values = torch.ones(megabytes * 2**18, device=device)
    seconds = []
    for _ in range(5):
        begun = perf_counter()
        float(values.sum())
        seconds.append(perf_counter() - begun)
    return values.numel() * 4 / median(seconds)


def decode_rate(llm: LLM, prompt: list[int], tokens: int, repeats: int = 3) -> float:
    """Tokens per second of one greedy stream, the first token not counted; the median of some runs."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    return median(llm.generate([prompt], params)[0].metrics.tokens_per_second for _ in range(repeats))


def prefill_rate(llm: LLM, prompt: list[int], repeats: int = 3) -> float:
    """Prompt tokens per second up to the first token, nothing in the cache."""
    rates = []
    for _ in range(repeats):
        llm.engine.pool.clear()
        begun = perf_counter()
        llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1))
        rates.append(len(prompt) / (perf_counter() - begun))
    return median(rates)
