"""Attention's core over expanded keys and values: C++ for training on a CPU where it can, else PyTorch's.

PyTorch's flash kernel on CPUs reaches a quarter of the matmul peak; kernels/cpu/train_attention.h does the same sums
with the tiles of the other kernels. It is taken for plain causal rows that need a gradient. Packed samples, whose mask
is their own, other dtypes and devices, and inference take PyTorch's.

Whoever clips logits (train/qk_clip.py) asks for the largest one of each head: the C++ kernel has it from its softmax,
for other paths the scores are computed once more.

Shapes: B rows, H heads, T queries, S keys, d query and key width, e value width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.runtime import fast_bf16


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, top_H: Tensor | None) -> Tensor:
        from fathom.kernels.cpu import train

        o, lse, top_BH = train.attention_forward(q.detach(), k.detach(), v.detach(), scale)
        if top_H is not None:
            torch.maximum(top_H, top_BH.amax(0), out=top_H)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.scale = scale
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        from fathom.kernels.cpu import train

        q, k, v, o, lse = ctx.saved_tensors
        return *train.attention_backward(grads[0], q, k, v, o, lse, ctx.scale), None, None


@torch.no_grad()
def largest_logits(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, rows: int = 128) -> Tensor:
    """[H] FP32: the largest scale q k^T of each head, where attention is allowed. `rows` queries at a time."""
    tokens, keys = q.shape[2], k.shape[2]
    top = torch.full((q.shape[1],), float("-inf"), device=q.device)
    for first in range(0, tokens, rows):
        queries = q[:, :, first : first + rows]
        if mask is None:
            seen = torch.ones(queries.shape[2], keys, dtype=torch.bool, device=q.device).tril(first)
        else:
            seen = mask[:, :, first : first + rows]
        scores = (queries @ k.mT).float().masked_fill(~seen, float("-inf"))
        top = torch.maximum(top, scores.amax((0, 2, 3)) * scale)
    return top


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, top_H: Tensor | None = None
) -> Tensor:
    """softmax(scale q k^T) v: q [B, H, T, d], k [B, H, S, d], v [B, H, S, e] -> [B, H, T, e].

    mask   [B or 1, 1, T, S]: True where attention is allowed; None is causal, S = T
    top_H  [H] FP32, raised in place to the largest logit of each head, if that is larger
    """
    if mask is None and torch.is_grad_enabled() and q.device.type == "cpu":
        from fathom.kernels.cpu import train

        wide = (q, k, v)
        if q.dtype == torch.bfloat16 and not fast_bf16(q.device):  # without AMX, FP32 in C++ is 5 times PyTorch's BF16
            wide = (q.float(), k.float(), v.float())
        if train.attention_takes(wide[0], wide[2]):
            out: Tensor = _Causal.apply(*wide, scale, top_H)  # type: ignore[no-untyped-call]
            return out.to(q.dtype)
    if top_H is not None:
        torch.maximum(top_H, largest_logits(q, k, mask, scale), out=top_H)
    # The flash kernel wants equal widths; zeros change neither scores nor sums (8x slower without, on a CPU).
    width, value_width = max(q.shape[-1], v.shape[-1]), v.shape[-1]
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (q, k, v))
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    return o[..., :value_width]
