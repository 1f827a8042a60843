"""AdamW on flat tensors (report section 4.2; moments in BF16 as in section 3.3.2).

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    w = w (1 - lr * decay) - lr * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

Everything is computed in FP32; BF16 moments are rounded to nearest once a step. The rule is elementwise: a slice of a
weight gets the bits that the whole weight would get, which is what ZeRO relies on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamW:
    """The rule and its constants."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    moments: torch.dtype = torch.float32
    fast: bool = True  # C++ on a CPU: one pass over memory instead of ten; other last bits

    @torch.no_grad()
    def update(
        self, weight: Tensor, grad: Tensor, m: Tensor, v: Tensor, *, lr: float, step: int, decay: bool,
        scale: float = 1.0,
    ) -> None:  # fmt: skip
        """One step in place. All flat [n]; weight and grad FP32, m and v in `moments`; `step` counts from 1."""
        b1, b2 = self.beta1, self.beta2
        if self.fast and weight.device.type == "cpu" and weight.dtype == torch.float32:
            from fathom.kernels.cpu import train

            if train.available() is None:
                keep = 1 - lr * self.weight_decay if decay else 1.0
                constants = [b1, b2, self.eps, lr, keep, scale, 1 / (1 - b1**step), 1 / (1 - b2**step)]
                train.adamw(weight, grad, m, v, constants)
                return
        g = grad * scale
        new_m = (m.float() * b1).add_(g, alpha=1 - b1)  # new tensors: v itself must not become the denominator below
        new_v = (v.float() * b2).addcmul_(g, g, value=1 - b2)
        m.copy_(new_m)
        v.copy_(new_v)
        denominator = new_v.div_(1 - b2**step).sqrt_().add_(self.eps)
        if decay:
            weight.mul_(1 - lr * self.weight_decay)
        weight.addcdiv_(new_m, denominator, value=-lr / (1 - b1**step))
