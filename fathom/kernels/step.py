"""What one transformer block needs to serve a step of packed tokens over the paged latent cache.

A step is T tokens of any number of sequences, side by side: one decoded token each, several to verify a draft, chunks
of prompts. A token sees the cache slots first_key .. last_key (exclusive) of its own sequence, its own slot included;
which pages these lie in is in the page table. Everything is a tensor, nothing knows requests.

Shapes: T tokens, S sequences, M pages per sequence, P pages in the pool, G slots per page, C latent, R rope, H heads,
N nope, V value width, D hidden, I expert width, E experts, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.kernels.reference import dequantize_blocks


@dataclass(frozen=True)
class Matrix:
    """A weight as the checkpoint stores it, [out, in] or stacked [E, out, in]: FP32, BF16, or FP8 E4M3 with its
    `scale_inv` ([E,] ceil(out / block), ceil(in / block))."""

    data: Tensor
    scale: Tensor | None = None
    block: tuple[int, int] = (128, 128)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values."""
        if self.scale is None:
            return self.data.to(dtype)
        if self.data.dim() == 2:
            return dequantize_blocks(self.data, self.scale, self.block, dtype)
        parts = [
            dequantize_blocks(data, scale, self.block, dtype) for data, scale in zip(self.data, self.scale, strict=True)
        ]
        return torch.stack(parts)


@dataclass(frozen=True)
class AttentionWeights:
    """MLA. Without query compression q_a and q_a_norm are None and q_b maps the hidden state itself. kv_b is
    [H * (N + V), C]: per head first the N rows of W^UK, then the V rows of W^UV."""

    heads: int
    nope: int
    rope: int
    value: int
    latent: int
    scale: float  # on the logits, YaRN's factor included
    norm_eps: float  # of the latent norms
    q_a: Matrix | None
    q_a_norm: Tensor | None
    q_b: Matrix
    kv_a: Matrix
    kv_a_norm: Tensor
    kv_b: Matrix
    o: Matrix
    q_a_bias: Tensor | None = None
    kv_a_bias: Tensor | None = None
    o_bias: Tensor | None = None


@dataclass(frozen=True)
class FeedForwardWeights:
    """SwiGLU: gate [I, D], up [I, D], down [D, I]."""

    gate: Matrix
    up: Matrix
    down: Matrix


@dataclass(frozen=True)
class RouterWeights:
    """The gate and how it chooses; see model/moe.py. bias None: no e_score_correction_bias, groups scored by max."""

    weight: Tensor  # FP32 [E, D]
    bias: Tensor | None  # FP32 [E]
    top_k: int
    groups: int  # 1: no group limit
    kept_groups: int
    sigmoid: bool  # else softmax
    normalise: bool
    route_scale: float


@dataclass(frozen=True)
class BlockWeights:
    """One block. Dense: `dense` is set. MoE: router, gate_up [E, 2I, D] (gate rows first) and down [E, D, I] are set,
    `shared` too if the model has shared experts."""

    norm_eps: float
    input_norm: Tensor
    attention: AttentionWeights
    post_norm: Tensor
    dense: FeedForwardWeights | None = None
    router: RouterWeights | None = None
    gate_up: Matrix | None = None
    down: Matrix | None = None
    shared: FeedForwardWeights | None = None


@dataclass(frozen=True)
class PagedLatents:
    """The pool of one layer. latent FP32, BF16 or FP8 (then with `scale` [P, G, ceil(C / 128)] FP32); k_rope is never
    FP8 (facts 9.15)."""

    latent: Tensor  # [P, G, C]
    k_rope: Tensor  # [P, G, R]
    scale: Tensor | None = None


@dataclass(frozen=True)
class StepBatch:
    """Where the tokens of a step stand."""

    rows: Tensor  # int32 [T]: row of the page table
    slots: Tensor  # int64 [T]: page * G + offset, where the token's own latent goes
    last_key: Tensor  # int32 [T]: keys end before this slot index of the sequence (own slot included)
    page_table: Tensor  # int32 [S, M]
    cos: Tensor  # FP32 [T, R / 2]
    sin: Tensor  # FP32 [T, R / 2]
    first_key: int = 0
