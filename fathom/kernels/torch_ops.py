"""Fast versions in PyTorch alone, for any device: no loop over experts, no [T, V] logits kept for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels import reference


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype matmuls on `x` run in: autocast's where it is on, else x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _Permute(torch.autograd.Function):
    """Rows in a new order. A permutation's gradient is the inverse permutation: a gather, not a scatter-add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        _, inverse = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


def routed_experts(x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Rows sorted by expert, two grouped matmuls, rows put back, weighted sum over K. No token is dropped.

    The grouped matmul wants rows of whole 16 bytes and no FP64: for other shapes the definition runs.
    """
    tokens, top_k = indices_TK.shape
    experts, dtype = gate_up.shape[0], compute_dtype(x_TD)
    if dtype == torch.float64 or any(width * dtype.itemsize % 16 for width in down.shape[1:]):
        return reference.routed_experts(x_TD, indices_TK, weights_TK, gate_up, down)
    flat = indices_TK.reshape(-1)
    order = torch.argsort(flat, stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    ends = torch.bincount(flat, minlength=experts).cumsum(0).to(torch.int32)
    rows = x_TD.to(dtype)[:, None].expand(tokens, top_k, -1).flatten(0, 1)
    rows = _Permute.apply(rows, order, inverse)  # type: ignore[no-untyped-call]
    gate, up = F.grouped_mm(rows, gate_up.to(dtype).mT, offs=ends).chunk(2, dim=-1)
    y = F.grouped_mm(F.silu(gate) * up, down.to(dtype).mT, offs=ends)
    y = _Permute.apply(y, inverse, order).unflatten(0, (tokens, top_k))  # type: ignore[no-untyped-call]
    out: Tensor = (y * weights_TK[..., None].to(y.dtype)).sum(1).to(x_TD.dtype)
    return out


def exp_rows(logits: Tensor) -> tuple[Tensor, Tensor]:
    """logits [R, V], FP32 or FP64 -> e^(x - largest of the row) in place; (largest, sum) [R]."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        from fathom.kernels.cpu import train

        if train.available() is None:
            return train.exp_rows(logits)
    top = logits.amax(dim=1)
    logits.sub_(top[:, None]).exp_()
    return top, logits.sum(dim=1)


class _LinearCrossEntropy(torch.autograd.Function):
    """Head and loss by chunks of tokens; both gradients are made in the forward pass: logits never outlive a chunk.
    A gradient that nobody wants (a frozen head, an evaluation) is not made.

    With e = exp(logits - max) and s its row sums, the gradient of the logits is e / s minus one at the label. Neither
    the division nor the label touches e: rows of the small factors are scaled instead, the labels' part is a lookup.
    """

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, labels: Tensor, chunk: int, wants_h: bool, wants_weight: bool
    ) -> Tensor:
        dtype = compute_dtype(h)
        weight_c = weight.to(dtype)
        loss = torch.zeros((), dtype=torch.float32, device=h.device)
        grad_h = torch.empty_like(h) if wants_h else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        for start in range(0, h.shape[0], chunk):
            rows, label = h[start : start + chunk].to(dtype), labels[start : start + chunk]
            keep = label >= 0
            logits = (rows @ weight_c.T).float()
            picked = label.clamp(min=0)
            wanted = logits.gather(1, picked[:, None])[:, 0]
            top, total = exp_rows(logits)
            loss += torch.where(keep, total.log() + top - wanted, 0.0).sum()
            share = torch.where(keep, 1.0 / total, 0.0)[:, None]
            kept = keep[:, None].to(dtype)
            exped = logits.to(dtype)
            if grad_h is not None:
                grad_h[start : start + chunk] = (exped @ weight_c) * share.to(dtype) - weight_c[picked] * kept
            if grad_weight is not None:
                scaled = rows * share.to(dtype)
                if dtype == torch.float32:
                    grad_weight.addmm_(exped.T, scaled)
                else:
                    grad_weight.add_(exped.T @ scaled)
                grad_weight.index_add_(0, picked, (rows * kept).float(), alpha=-1)
        ctx.save_for_backward(grad_h, None if grad_weight is None else grad_weight.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if made is None else made * grads[0] for made in ctx.saved_tensors), None, None, None, None


def wanted_gradients(h: Tensor, weight: Tensor) -> tuple[bool, bool]:
    """Which of the two a backward pass could ask for; nothing that is made in a forward pass is made in vain."""
    on = torch.is_grad_enabled()
    return on and h.requires_grad, on and weight.requires_grad


def linear_cross_entropy(h_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk: int | None = None) -> Tensor:
    """See reference.linear_cross_entropy; peak memory is one chunk of logits (32 MB, or 256 tokens' worth)."""
    chunk = chunk or max(256, 2**23 // weight_VD.shape[0])
    wanted = wanted_gradients(h_TD, weight_VD)
    loss: Tensor = _LinearCrossEntropy.apply(h_TD, weight_VD, labels_T, chunk, *wanted)  # type: ignore[no-untyped-call]
    return loss
