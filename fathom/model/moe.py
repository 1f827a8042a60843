"""DeepSeekMoE (report section 2.1.2): routing over many small experts, beside shared experts that see every token.

    s = sigmoid(x W_g)  (V2: softmax)         always FP32, whatever the model's dtype
    sel = s + b                               b = e_score_correction_bias: selection only, never in the gate value
    keep the topk_group groups with the largest (top-2 sum of sel; V2: max), others -inf
    T = top-k of sel;  g = routed_scaling_factor * s_T / sum(s_T)
    y = sum_T g FFN_T(x) + FFN_shared(x)      the scale is on routed experts only; no token is dropped

Ties in top-k follow torch.topk. Masked groups are minus infinity, not zero: trained biases can be negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.kernels.ops import Ops
from fathom.kernels.pointwise import wide
from fathom.model.layers import SwiGLU


@dataclass(frozen=True)
class Routing:
    """What one gate decided. scores [B, T, E] are the unbiased ones (differentiable), indices [B, T, K]."""

    scores: Tensor
    indices: Tensor
    weights: Tensor


class Gate(nn.Module):
    """The router of one layer."""

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size, device=device))
        if config.has_router_bias:
            bias = torch.zeros(config.n_routed_experts, dtype=torch.float32, device=device)
            self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x: Tensor) -> Routing:
        """[..., D] -> Routing over [..., E] and [..., K]"""
        c = self.config
        with torch.autocast(x.device.type, enabled=False):
            logits = wide(x) @ wide(self.weight).T
            scores = logits.sigmoid() if c.scoring_func == "sigmoid" else logits.softmax(dim=-1)
            indices = self._select(scores.detach())
            weights = scores.gather(-1, indices)
            if c.norm_topk_prob:
                weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
            return Routing(scores, indices, weights * c.routed_scaling_factor)

    def _select(self, scores: Tensor) -> Tensor:
        c = self.config
        choice = scores + self.e_score_correction_bias if c.has_router_bias else scores
        if c.limits_groups:
            grouped = choice.unflatten(-1, (c.n_group, -1))
            group_score = grouped.topk(2, dim=-1).values.sum(-1) if c.has_router_bias else grouped.amax(-1)
            kept = group_score.topk(c.topk_group, dim=-1).indices
            allowed = torch.zeros_like(group_score, dtype=torch.bool).scatter_(-1, kept, True)
            choice = grouped.masked_fill(~allowed[..., None], float("-inf")).flatten(-2)
        return choice.topk(c.num_experts_per_tok, dim=-1).indices


class Experts(nn.Module):
    """Routed experts, stacked: gate_up [E, 2I, D] (gate rows first), down [E, D, I]."""

    def __init__(self, config: ModelConfig, ops: Ops, device: torch.device | None = None) -> None:
        super().__init__()
        experts, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * width, hidden, device=device))
        self.down = nn.Parameter(torch.empty(experts, hidden, width, device=device))
        self.ops = ops

    def forward(self, x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """[T, D] -> [T, D]"""
        return self.ops.routed_experts(x_TD, indices_TK, weights_TK, self.gate_up, self.down)


class MoE(nn.Module):
    """Gate, routed experts, shared experts."""

    def __init__(self, config: ModelConfig, ops: Ops, device: torch.device | None = None) -> None:
        super().__init__()
        self.gate = Gate(config, device)
        self.experts = Experts(config, ops, device)
        self.shared_experts = (
            SwiGLU(config.hidden_size, config.n_shared_experts * config.moe_intermediate_size, device)
            if config.n_shared_experts
            else None
        )

    def forward(self, x_BTD: Tensor, record: list[Routing] | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; what the gate decided is appended to `record` when one is given."""
        routing: Routing = self.gate(x_BTD)
        if record is not None:
            record.append(routing)
        y = self.experts(x_BTD.flatten(0, 1), routing.indices.flatten(0, 1), routing.weights.flatten(0, 1))
        y = y.view_as(x_BTD)
        out: Tensor = y if self.shared_experts is None else y + self.shared_experts(x_BTD)
        return out
