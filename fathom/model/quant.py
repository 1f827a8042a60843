"""Weights that stay in FP8: what a checkpoint stores, held as it is and widened where it is used.

`hold_fp8` is a transformation of a finished model on the meta device: linear layers become FP8Linear, stacked experts
become FP8Experts; the loader then fills them with the file's own bytes. 671B parameters take 671 GB instead of 1.3 TB.
Here every use widens the whole matrix; kernels/cpu reads the FP8 bytes directly instead (kernels/step.py: Matrix).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.kernels.reference import FP8
from fathom.kernels.step import Matrix
from fathom.model.moe import Experts
from fathom.model.transformer import DeepseekV3


def _blocks(shape: torch.Size, block: tuple[int, int]) -> list[int]:
    return [*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1])]


class FP8Linear(nn.Module):
    """A linear layer with an E4M3 weight [out, in] and FP32 scales per block."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, block: tuple[int, int]) -> None:
        super().__init__()
        meta = torch.empty(linear.weight.shape, dtype=FP8, device="meta")
        self.weight = nn.Parameter(meta, requires_grad=False)
        scales = torch.empty(_blocks(meta.shape, block), dtype=torch.float32, device="meta")
        self.weight_scale_inv = nn.Parameter(scales, requires_grad=False)
        self.bias = linear.bias
        self.block = block

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in], widened."""
        return Matrix(self.weight, self.weight_scale_inv, self.block).dense(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        return F.linear(x, self.dense(x.dtype), self.bias)


class FP8Experts(nn.Module):
    """Stacked routed experts in E4M3; see model.moe.Experts."""

    def __init__(self, experts: Experts, block: tuple[int, int]) -> None:
        super().__init__()
        self.ops, self.block = experts.ops, block
        for name in ("gate_up", "down"):
            shape = getattr(experts, name).shape
            weight = torch.empty(shape, dtype=FP8, device="meta")
            scale = torch.empty(_blocks(shape, block), dtype=torch.float32, device="meta")
            self.register_parameter(name, nn.Parameter(weight, requires_grad=False))
            self.register_parameter(f"{name}_scale_inv", nn.Parameter(scale, requires_grad=False))

    def matrix(self, name: str) -> Matrix:
        """`gate_up` [E, 2I, D] or `down` [E, D, I] as it is stored."""
        return Matrix(getattr(self, name), getattr(self, f"{name}_scale_inv"), self.block)

    def forward(self, x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """[T, D] -> [T, D]"""
        gate_up, down = (self.matrix(name).dense(x_TD.dtype) for name in ("gate_up", "down"))
        return self.ops.routed_experts(x_TD, indices_TK, weights_TK, gate_up, down)


def hold_fp8(model: DeepseekV3, stored_fp8: Collection[str]) -> None:
    """Make the weights named in `stored_fp8` (our parameter names) FP8. The model must be on the meta device.

    Stacked gate and up rows share one table of scales, which needs whole blocks of rows; other experts are widened,
    and so is an expert stack of which only one half is FP8.
    """
    quantization = model.config.quantization
    if quantization is None:
        return
    block = quantization.weight_block_size
    whole_blocks = model.config.moe_intermediate_size % block[0] == 0
    for name, module in list(model.named_modules()):
        owner, _, leaf = name.rpartition(".")
        if isinstance(module, nn.Linear) and f"{name}.weight" in stored_fp8:
            setattr(model.get_submodule(owner), leaf, FP8Linear(module, block))
        elif isinstance(module, Experts) and whole_blocks and {f"{name}.gate_up", f"{name}.down"} <= set(stored_fp8):
            setattr(model.get_submodule(owner), leaf, FP8Experts(module, block))
