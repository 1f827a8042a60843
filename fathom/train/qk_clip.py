"""QK-clip: attention logits that grow too large are scaled down in the weights that make them (Kimi-K2, arXiv
2507.20534, section 2.1).

Muon's updates have full rank, and with them the largest logit of a head can grow without bound. After a step, for every
head whose largest logit S of that step's forward passes exceeded tau:

    gamma = tau / S        rows of q_b_proj and kv_b_proj that make q_nope, k_nope  *= sqrt(gamma)
                           rows of q_b_proj that make q_rope                        *= gamma

The rotated key belongs to all heads and is left alone: so the whole factor falls on the head's rotated query. Values
and other heads do not notice. With the same inputs the head's logits would now be gamma times what they were.

S is exact, over all rows, micro-batches and data ranks: kernels/attention.py raises it as it goes. Where the C++ kernel
runs it costs nothing that can be measured; elsewhere the scores are computed once more in the forward pass. A factor
shows in the weights' average (EMA) of the same step, and the moments keep their values. Steps that are skipped clip
nothing. Layers whose queries or keys are frozen are left alone.

Shapes: H heads, N nope, R rope, V value width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.kernels.attention import attention
from fathom.model.mla import MultiHeadLatentAttention
from fathom.parallel.group import Group


class WatchedCore:
    """Attention's core that remembers the largest logit of each head since `start`. Evaluation does not count."""

    def __init__(self, heads: int, device: torch.device) -> None:
        self.top_H = torch.full((heads,), float("-inf"), device=device)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """As kernels/attention.py."""
        return attention(q, k, v, mask, scale, self.top_H if torch.is_grad_enabled() else None)


@dataclass(frozen=True)
class Watched:
    """One layer's attention, and its weights' names in the whole model."""

    core: WatchedCore
    config: ModelConfig
    query: str
    key: str


class QKClip:
    """Watches every attention layer among `parameters`' modules; `rows` says what to scale after a step."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], tau: float, group: Group) -> None:
        """`parameters`: this rank's, by their names in the whole model; `group`: the ranks that hold the same."""
        self.tau, self.group = tau, group
        self.layers: list[Watched] = []
        for name, module in model.named_modules():
            if not isinstance(module, MultiHeadLatentAttention):
                continue
            query = f"{name}.{'q_proj' if module.config.q_lora_rank is None else 'q_b_proj'}.weight"
            key = f"{name}.kv_b_proj.weight"
            if all(n in parameters and parameters[n].requires_grad for n in (query, key)):
                core = WatchedCore(module.config.num_attention_heads, group.device)
                module.core = core
                self.layers.append(Watched(core, module.config, query, key))

    def start(self) -> None:
        """Forget what was seen: before the forward passes of a step."""
        for layer in self.layers:
            layer.core.top_H.fill_(float("-inf"))

    def rows(self) -> tuple[dict[str, Tensor], float]:
        """A factor for each row of the weights that must shrink, and the largest logit of all; a collective."""
        if not self.layers:
            return {}, float("-inf")
        top_LH = self.group.largest(torch.stack([layer.core.top_H for layer in self.layers]))
        out: dict[str, Tensor] = {}
        for layer, top_H in zip(self.layers, top_LH, strict=True):
            if bool((top_H > self.tau).any()):
                out[layer.query], out[layer.key] = row_factors(layer.config, (self.tau / top_H).clamp(max=1.0))
        return out, float(top_LH.max())


def row_factors(config: ModelConfig, gamma_H: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the rows of q_b_proj [H (N + R)] and of kv_b_proj [H (N + V)]; a head not above tau has gamma 1."""

    def per_head(parts: list[tuple[Tensor, int]]) -> Tensor:
        return torch.cat([factor[:, None].expand(-1, width) for factor, width in parts], dim=1).reshape(-1)

    # a head that saw nothing (minus infinity) or nothing above zero has no reason to shrink
    gamma_H = torch.where(gamma_H > 0, gamma_H, 1.0)
    root, same = gamma_H.sqrt(), torch.ones_like(gamma_H)
    query = per_head([(root, config.qk_nope_head_dim), (gamma_H, config.qk_rope_head_dim)])
    return query, per_head([(root, config.qk_nope_head_dim), (same, config.v_head_dim)])
