"""Attention's core over expanded keys and values: C++ for training on a CPU where it can, else PyTorch's.

PyTorch's flash kernel on CPUs reaches a quarter of the matmul peak; kernels/cpu/train_attention.h does the same sums
with the tiles of the other kernels. It is taken for causal rows, and for packed ones a sample at a time: nothing is
computed between samples. Other masks, dtypes and devices, and torch.inference_mode take PyTorch's.

Whoever clips logits (train/qk_clip.py) asks for the largest one of each head: the C++ kernel has it from its softmax,
for other paths the scores are computed once more.

Shapes: B rows, H heads, T queries, S keys, d query and key width, e value width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.runtime import fast_bf16

Span = tuple[slice, slice]  # rows, and the places of a sample in them


def spans(mask: Tensor | None, rows: int, tokens: int) -> list[Span] | None:
    """The samples of packed rows, if `mask` [rows or 1, 1, T, S] says that each is causal and sees no other."""
    if mask is None:
        return [(slice(0, rows), slice(0, tokens))]
    if mask.shape[2] != mask.shape[3]:
        return None
    place = torch.arange(tokens, device=mask.device)
    begins = mask[:, 0].to(torch.uint8).argmax(-1) == place  # [rows or 1, T]: it sees nothing before itself
    first = torch.where(begins, place, 0).cummax(-1).values
    if not torch.equal(mask[:, 0], (place <= place[:, None]) & (place >= first[..., None])):
        return None
    found = []
    for row in range(rows):
        cuts = [*begins[row if len(begins) == rows else 0].nonzero()[:, 0].tolist(), tokens]
        found += [(slice(row, row + 1), slice(*ends)) for ends in pairwise(cuts)]
    return found


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, samples: list[Span], top_H: Tensor | None
    ) -> Tensor:
        from fathom.kernels.cpu import train

        outs, sums = [], []
        for rows, places in samples:
            own_q, own_k, own_v = (x.detach()[rows, :, places] for x in (q, k, v))
            o, lse, top_BH = train.attention_forward(own_q, own_k, own_v, scale)
            if top_H is not None:
                torch.maximum(top_H, top_BH.amax(0), out=top_H)
            outs.append(o)
            sums.append(lse)
        ctx.save_for_backward(q, k, v, *outs, *sums)
        ctx.scale, ctx.samples = scale, samples
        return _joined(outs, samples, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from fathom.kernels.cpu import train

        q, k, v, *kept = ctx.saved_tensors
        count, found = len(ctx.samples), []
        for (rows, places), o, lse in zip(ctx.samples, kept[:count], kept[count:], strict=True):
            d_o, own_q, own_k, own_v = (x[rows, :, places] for x in (grads[0], q, k, v))
            found.append(train.attention_backward(d_o, own_q, own_k, own_v, o, lse, ctx.scale))
        of_parts = zip(zip(*found, strict=True), (q, k, v), strict=True)
        return *(_joined(list(pieces), ctx.samples, like) for pieces, like in of_parts), None, None, None


def _joined(pieces: list[Tensor], samples: list[Span], like: Tensor) -> Tensor:
    """[B, H, T, width] of the samples' pieces, a view of [B, T, H, width]."""
    if len(pieces) == 1:
        return pieces[0]
    rows, heads, tokens, width = like.shape
    whole = like.new_empty(rows, tokens, heads, width).transpose(1, 2)
    for (row, places), piece in zip(samples, pieces, strict=True):
        whole[row, :, places] = piece
    return whole


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
    here = q.device.type == "cpu" and not torch.is_inference_mode_enabled()
    samples = spans(mask, len(q), q.shape[2]) if here else None
    if samples is not None:
        from fathom.kernels.cpu import train

        wide = (q, k, v)
        if q.dtype == torch.bfloat16 and not fast_bf16(q.device):  # without AMX, FP32 in C++ is 5 times PyTorch's BF16
            wide = (q.float(), k.float(), v.float())
        if train.attention_takes(wide[0], wide[2]):
            out: Tensor = _Causal.apply(*wide, scale, samples, top_H)  # type: ignore[no-untyped-call]
            return out.to(q.dtype)
    if top_H is not None:
        torch.maximum(top_H, largest_logits(q, k, mask, scale), out=top_H)
    # The flash kernel wants equal widths; zeros change neither scores nor sums (8x slower without, on a CPU).
    width, value_width = max(q.shape[-1], v.shape[-1]), v.shape[-1]
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (q, k, v))
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    return o[..., :value_width]
