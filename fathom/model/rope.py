"""Rotary position embedding with YaRN, on the `qk_rope_head_dim` part of queries and of the one shared key.

Pairs are ADJACENT values (interleaved), as in the checkpoint: (x0, x1), (x2, x3), ... Never rotate halves of the raw
order (facts 9.1). YaRN (report 4.3) slows the low frequencies by `factor`; its attention factor sits entirely in the
softmax scale (ModelConfig.softmax_scale), cos and sin are multiplied by 1.0 in every release. The rotation itself is
kernels/pointwise.py's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fathom.config import ModelConfig, RopeScaling


def inverse_frequencies(config: ModelConfig, device: torch.device | None = None) -> Tensor:
    """FP32 [qk_rope_head_dim / 2]: radians per position of each pair."""
    dim = config.qk_rope_head_dim
    pair = torch.arange(0, dim, 2, dtype=torch.float64)
    inv_freq = config.rope_theta ** (-pair / dim)
    if config.rope_scaling is not None:
        low, high = _correction_range(config, config.rope_scaling)
        ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
        inv_freq = inv_freq * (1 - ramp) + inv_freq / config.rope_scaling.factor * ramp
    return inv_freq.to(device=device, dtype=torch.float32)


def _correction_range(config: ModelConfig, scaling: RopeScaling) -> tuple[float, float]:
    """Pairs below `low` turn over beta_fast times in the original context (kept), above `high` under beta_slow."""

    def pair_with(turns: float) -> float:
        length = scaling.original_max_position_embeddings
        return config.qk_rope_head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_with(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_with(scaling.beta_slow)), config.qk_rope_head_dim - 1)
    return float(low), float(high) if high != low else low + 0.001


def rotation(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, FP32 [..., qk_rope_head_dim / 2], for integer positions [...]."""
    angle = positions[..., None].float() * inverse_frequencies(config, positions.device)
    amplitude = config.rope_scaling.rope_amplitude if config.rope_scaling else 1.0
    return angle.cos() * amplitude, angle.sin() * amplitude
