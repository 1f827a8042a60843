"""Mixed precision as a transformation of a finished model (report section 3.3).

    FP8 (or BF16)        every linear layer of the blocks, MTP's eh_proj, routed and shared experts
    high precision       embedding, output head, gate, norms, attention core, softmax, loss, router bias
    FP32                 master weights, gradients; BF16 if asked for: AdamW's moments (optim.moments)

The arithmetic is in kernels/mixed.py. Only modules are exchanged here; parameters stay the same objects under the same
names, so checkpoints, optimizer and parallelism do not notice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fathom.kernels.deferred import WeightGradients
from fathom.kernels.mixed import Arithmetic, linear, routed_experts
from fathom.kernels.train_ops import pick_training
from fathom.model.mla import MultiHeadLatentAttention
from fathom.model.moe import Experts
from fathom.model.transformer import DeepseekV3
from fathom.runtime import bf16_products, fast_bf16


class TrainLinear(nn.Linear):
    """A linear layer whose three products follow `how`."""

    def __init__(self, whole: nn.Linear, how: Arithmetic, after_attention: bool) -> None:
        nn.Module.__init__(self)  # the parameters exist already
        self.in_features, self.out_features = whole.in_features, whole.out_features
        self.weight, self.bias = whole.weight, whole.bias
        self.how, self.after_attention = how, after_attention

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        y = linear(x, self.weight, self.how, after_attention=self.after_attention)
        return y if self.bias is None else y + self.bias


class TrainExperts(Experts):
    """Routed experts whose products follow `how`."""

    def __init__(self, whole: Experts, how: Arithmetic) -> None:
        nn.Module.__init__(self)
        self.gate_up, self.down, self.ops = whole.gate_up, whole.down, whole.ops
        self.how = how

    def forward(self, x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """[T, D] -> [T, D]"""
        return routed_experts(x_TD, indices_TK, weights_TK, self.gate_up, self.down, self.how)


def arithmetic(
    gemm: str, device: torch.device, *, scale: str = "fp32", gradients: str = "tile", kernels: str = "auto"
) -> Arithmetic:
    """`auto` is BF16 where BF16 matmuls are fast, else FP32; "bf16" takes what instructions there are for it."""
    fast = fast_bf16(device)
    if gemm == "auto":
        gemm = "bf16" if fast else "fp32"
    carried = not (bf16_products(device) if gemm == "bf16" else fast)
    return Arithmetic(
        gemm, scale, gradients, carry_bf16=carried, ops=pick_training(kernels, device), queue=WeightGradients()
    )


def prepare(model: DeepseekV3, how: Arithmetic) -> DeepseekV3:
    """Exchange linear layers and experts in place. Embedding, head, gates and norms keep their precision."""
    for name, module in list(model.named_modules()):
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        if isinstance(module, nn.Linear) and module is not model.lm_head:
            after = isinstance(owner, MultiHeadLatentAttention) and leaf == "o_proj"
            setattr(owner, leaf, TrainLinear(module, how, after))
        elif isinstance(module, Experts):
            setattr(owner, leaf, TrainExperts(module, how))
    return model
