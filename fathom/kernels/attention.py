"""Attention's core over expanded keys and values: C++ for training on a CPU where it can, else PyTorch's.

PyTorch's flash kernel on CPUs reaches a quarter of the matmul peak; kernels/cpu/train_attention.h does the same sums
with the tiles of the other kernels. It is taken for plain causal rows that need a gradient. Packed samples, whose mask
is their own, other dtypes and devices, and inference take PyTorch's.

Shapes: B rows, H heads, T queries, S keys, d query and key width, e value width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        from fathom.kernels.cpu import train

        o, lse = train.attention_forward(q.detach(), k.detach(), v.detach(), scale)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.scale = scale
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        from fathom.kernels.cpu import train

        q, k, v, o, lse = ctx.saved_tensors
        return *train.attention_backward(grads[0], q, k, v, o, lse, ctx.scale), None


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T) v: q [B, H, T, d], k [B, H, S, d], v [B, H, S, e] -> [B, H, T, e].

    mask [B or 1, 1, T, S]: True where attention is allowed; None is causal, S = T.
    """
    if mask is None and torch.is_grad_enabled() and q.device.type == "cpu":
        from fathom.kernels.cpu import train

        if train.attention_takes(q, v):
            out: Tensor = _Causal.apply(q, k, v, scale)  # type: ignore[no-untyped-call]
            return out
    # The flash kernel wants equal widths; zeros change neither scores nor sums (8x slower without, on a CPU).
    width, value_width = max(q.shape[-1], v.shape[-1]), v.shape[-1]
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (q, k, v))
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    return o[..., :value_width]
