"""A multi-token-prediction layer for a model that has none: a copy of the last block, to be trained afterwards.

Fathom's module (and vLLM's) is fed h0 = norm(u) g, the main model's output u after the final norm, and reads it
through hnorm and eh_proj [embedding half | hidden half] = [0 | I]. For the copied block to see u again, about as long
as it was, hnorm's gain is s c / g with c = rms(norm(u) g) and s = rms(u) on text: hnorm divides by c, and u / rms(u)
is left. The embedding half starts at zero and learns at once, its gradient is not zero. The module's own norm is the
final one.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_GAIN = 1e-2  # of the mean: gains below would be blown up


def mtp_tensors(final_norm: Tensor, u: Tensor, normed: Tensor) -> dict[str, Tensor]:
    """The tensors of the layer besides its block. u [..., D]: the last block's outputs on text, normed: after the final
    norm."""
    hidden = len(final_norm)
    length = u.square().mean(-1).sqrt().median()
    normed_length = normed.square().mean(-1).sqrt().median()
    floor = SMALLEST_GAIN * final_norm.abs().mean()
    gain = torch.where(final_norm < 0, -1.0, 1.0) * final_norm.abs().clamp(min=float(floor))
    return {
        "enorm.weight": torch.ones(hidden),
        "hnorm.weight": length * normed_length / gain,
        "eh_proj.weight": torch.cat((torch.zeros(hidden, hidden), torch.eye(hidden)), dim=1),
        "shared_head.norm.weight": final_norm,
    }
