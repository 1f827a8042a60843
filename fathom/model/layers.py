"""The small layers: RMSNorm and the SwiGLU feed-forward network.

Rounding of RMSNorm follows the released model: normalise in FP32, round to the activation dtype, THEN multiply by the
gain.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.kernels.pointwise import rms_norm, wide


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension."""

    def __init__(self, dim: int, eps: float = 1e-6, device: torch.device | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, device=device))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]"""
        if x.dtype == self.weight.dtype == torch.float32:  # nothing to round: the fused form is the same function
            return rms_norm(x, self.weight, self.eps)
        normed = F.rms_norm(wide(x), self.weight.shape, None, self.eps)
        return normed.to(x.dtype) * self.weight


def dense_weight(linear: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] of a linear layer in `dtype`, also of one that is held in FP8 (model/quant.py)."""
    dense = getattr(linear, "dense", None)
    out: Tensor = dense(dtype) if dense is not None else linear.get_parameter("weight").to(dtype)
    return out


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)): dense layers and shared experts."""

    def __init__(self, hidden_size: int, intermediate_size: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False, device=device)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False, device=device)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]"""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out
