"""RMSNorm and rotary embedding: C++ for training on a CPU, else PyTorch.

PyTorch computes either as half a dozen passes over memory forward and a dozen backward; a kernel needs one and two
(kernels/cpu/train_pointwise.h). It is taken where a gradient is wanted of FP32 values on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in FP32, the precision of norms, rotations and routing. FP64 stays: a model can then be its own judge."""
    return x if x.dtype == torch.float64 else x.float()


def _trains_on_cpu(x: Tensor) -> bool:
    if not (x.requires_grad and torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype == torch.float32):
        return False
    from fathom.kernels.cpu import train

    return train.available() is None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        from fathom.kernels.cpu import train

        y, inverse = train.rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        from fathom.kernels.cpu import train

        return *train.rms_norm_backward(grads[0], *ctx.saved_tensors), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis of x [..., n]; x and weight [n] have one dtype."""
    if _trains_on_cpu(x):
        out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return out
    return F.rms_norm(x, weight.shape, weight, eps)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        from fathom.kernels.cpu import train

        ctx.save_for_backward(cos, sin)
        return train.rotate(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        from fathom.kernels.cpu import train

        cos, sin = ctx.saved_tensors
        return train.rotate(grads[0], cos, sin, -1.0), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent pairs of x [..., T, H, R] by cos, sin [..., T, R/2], in FP32 or wider; x's dtype."""
    if x.ndim == 4 and _trains_on_cpu(x):
        out: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
        return out
    return plain_rotate(x, cos, sin)


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The definition of `rotate`."""
    even, odd = wide(x).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
