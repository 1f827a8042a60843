"""Expert parallelism, slow and clear: everybody gets every token, computes its own experts, and the parts are added up.

    x, indices, weights of all ranks (all-gather) -> own experts for all of them -> sums over ranks, own rows of them
                                                                                   (reduce-scatter)

The gradient of an all-gather is a reduce-scatter and the other way round, so the two functions below are each other's
backward pass. It sends everything everywhere, wants the same number of tokens on every rank, and knows FP32 only.
expert.py is tested against it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fathom.model.moe import MoE, Routing
from fathom.model.transformer import DeepseekV3
from fathom.parallel.expert import ExpertParallelMoE, expert_blocks
from fathom.parallel.group import Group
from fathom.parallel.mesh import Mesh


def _gathered(x: Tensor, group: Group) -> Tensor:
    out = x.new_empty(group.size * x.shape[0], *x.shape[1:])
    group.all_gather(out.view(-1), x.reshape(-1))
    return out


def _scattered(x: Tensor, group: Group) -> Tensor:
    return group.reduce_scatter(x.reshape(-1)).view(x.shape[0] // group.size, *x.shape[1:])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _scattered(grads[0], ctx.group), None


class _SumScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _scattered(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _gathered(grads[0], ctx.group), None


class GatherMoE(MoE):
    """A transformed layer in the slow form: the same parameters, the same function."""

    def __init__(self, layer: ExpertParallelMoE) -> None:
        nn.Module.__init__(self)
        self.gate, self.experts, self.shared_experts = layer.gate, layer.experts, layer.shared_experts
        self.group, self.experts_per_rank = layer.group, layer.experts_per_rank

    def forward(self, x_BTD: Tensor, record: list[Routing] | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; all ranks of the group must call it, with the same number of tokens."""
        routing: Routing = self.gate(x_BTD)
        if record is not None:
            record.append(routing)
        x = _Gather.apply(x_BTD.flatten(0, 1), self.group)  # type: ignore[no-untyped-call]
        weights = _Gather.apply(routing.weights.flatten(0, 1), self.group)  # type: ignore[no-untyped-call]
        local = _gathered(routing.indices.flatten(0, 1), self.group) - self.group.rank * self.experts_per_rank
        own = (local >= 0) & (local < self.experts_per_rank)
        parts = self.experts(x, local.clamp(0, self.experts_per_rank - 1), weights * own)
        y = _SumScatter.apply(parts, self.group).view_as(x_BTD)  # type: ignore[no-untyped-call]
        out: Tensor = y if self.shared_experts is None else y + self.shared_experts(x_BTD)
        return out


def gather_experts(model: DeepseekV3, mesh: Mesh) -> DeepseekV3:
    """A model that expert_parallel has transformed, in the slow form."""
    for block in expert_blocks(model):
        if isinstance(block.mlp, ExpertParallelMoE):
            block.mlp = GatherMoE(block.mlp)
    return model
