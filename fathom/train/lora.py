"""LoRA (arXiv 2106.09685): beside a frozen matrix W a product of two thin ones trains, B A, of rank r.

    y = W x + (alpha / r) B (A x)        A [r, in] random, B [out, r] zero: the model is itself at the start

`lora.targets`, of the main model's blocks:
    attention   q, kv and output projections of MLA
    ffn         gate, up and down of dense layers and shared experts
    experts     routed ones, each with adapters of its own: W + (alpha / r) B A is made for every micro-batch, since
                the experts' kernel takes stacks of whole matrices

Adapters compute in the activations' dtype, whatever precision.gemm is: they are small. Their parameters lie beside the
weight they adapt: `...q_b_proj.lora_A`, for stacks `...experts.gate_up_lora_A` [E, r, in]. A starts as PEFT has it,
with a standard deviation of 1 / sqrt(3 in). Exports add them to the weights, or write PEFT's format: lora_export.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.kernels.mixed import routed_experts
from fathom.model.initialise import initialise
from fathom.model.layers import SwiGLU
from fathom.model.mla import MultiHeadLatentAttention
from fathom.model.transformer import DeepseekV3
from fathom.train.config import LoraConfig
from fathom.train.precision import TrainExperts, TrainLinear


class LoraLinear(TrainLinear):
    """A linear layer with adapters."""

    def __init__(self, whole: TrainLinear, lora: LoraConfig) -> None:
        super().__init__(whole, whole.how, whole.after_attention)
        device = whole.weight.device
        self.lora_A = nn.Parameter(torch.empty(lora.rank, self.in_features, device=device))
        self.lora_B = nn.Parameter(torch.empty(self.out_features, lora.rank, device=device))
        self.lora_scale = lora.alpha / lora.rank

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        low = F.linear(x, self.lora_A.to(x.dtype))
        y = super().forward(x)
        return y + (F.linear(low, self.lora_B.to(x.dtype)) * self.lora_scale).to(y.dtype)


class LoraExperts(TrainExperts):
    """Routed experts with adapters."""

    def __init__(self, whole: TrainExperts, lora: LoraConfig) -> None:
        # the sum of weight and adapters is no parameter: its gradient goes on through autograd
        super().__init__(whole, dataclasses.replace(whole.how, queue=None))
        for name in ("gate_up", "down"):
            experts, rows, columns = getattr(whole, name).shape
            device = getattr(whole, name).device
            a = nn.Parameter(torch.empty(experts, lora.rank, columns, device=device))
            b = nn.Parameter(torch.empty(experts, rows, lora.rank, device=device))
            self.register_parameter(f"{name}_lora_A", a)
            self.register_parameter(f"{name}_lora_B", b)
        self.lora_scale = lora.alpha / lora.rank

    def _adapted(self, name: str) -> Tensor:
        weight = self.get_parameter(name)
        a, b = self.get_parameter(f"{name}_lora_A"), self.get_parameter(f"{name}_lora_B")
        return torch.baddbmm(weight, b, a, alpha=self.lora_scale)

    def forward(self, x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """[T, D] -> [T, D]"""
        gate_up, down = self._adapted("gate_up"), self._adapted("down")
        return routed_experts(x_TD, indices_TK, weights_TK, gate_up, down, self.how)


def add_adapters(model: DeepseekV3, lora: LoraConfig) -> DeepseekV3:
    """Exchange the targets in the main model's blocks, which precision.prepare has been at, in place."""
    if not lora.rank:
        return model
    for block in model.layers:
        for module in list(block.modules()):
            wanted = isinstance(module, MultiHeadLatentAttention) and "attention" in lora.targets
            if wanted or (isinstance(module, SwiGLU) and "ffn" in lora.targets):
                for leaf, child in list(module.named_children()):
                    if isinstance(child, TrainLinear):
                        setattr(module, leaf, LoraLinear(child, lora))
            experts = getattr(module, "experts", None)
            if isinstance(experts, TrainExperts) and "experts" in lora.targets:
                vars(module)["_modules"]["experts"] = LoraExperts(experts, lora)
    return model


@torch.no_grad()
def initialise_adapters(parameters: Mapping[str, nn.Parameter], seed: int, first_expert: Mapping[str, int]) -> None:
    """Fresh values, a function of (seed, name) as all others."""
    for name, parameter in parameters.items():
        if name.endswith("lora_B"):
            parameter.zero_()
        else:
            initialise({name: parameter}, (3 * parameter.shape[-1]) ** -0.5, seed, first_expert)


def adapters_of(weight: str) -> tuple[str, str]:
    """The names of the adapters of a parameter: A, B."""
    stem = f"{weight.removesuffix('.weight')}." if weight.endswith(".weight") else f"{weight}_"
    return f"{stem}lora_A", f"{stem}lora_B"
