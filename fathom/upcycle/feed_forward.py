"""The feed-forward network as a DeepSeekMoE. The neurons of a SwiGLU add up: any partition is the same function.

 dense    as it is
 exact    shared experts and E routed ones, of which all are chosen. Router weights are zero, so every gate is 1/E after
          norm_topk_prob, and routed_scaling_factor E makes it 1.
 sparse   as exact, but only K of E are chosen, by a router in closed form: sparse.py
 grown    the whole FFN is the shared experts, and new routed ones begin at zero: their down projections are 0, gate and
          up are copies of real neurons, so that what they compute means something as soon as training lets it through.
          The router is random, its logits of standard deviation 1 and mean 0 on text: tokens spread over all experts.

Tensors are named as in a layer of the checkpoint. Shapes: I neurons, D hidden, E experts of width w, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.upcycle.llama import LlamaLayer

Tensors = dict[str, Tensor]
NAMES = ("gate", "up", "down")


@dataclass(frozen=True)
class Experts:
    """How many there are: `shared` and `routed` of `width` neurons each, `chosen` of the routed ones per token."""

    routed: int
    chosen: int
    shared: int
    width: int


def dense(layer: LlamaLayer) -> Tensors:
    """The FFN as it is."""
    return {f"mlp.{name}_proj.weight": getattr(layer, name) for name in NAMES}


def split(layer: LlamaLayer, experts: Experts, order: Tensor, router: Tensor, bias: Tensor) -> Tensors:
    """The neurons in `order` [I] cut into the shared experts, then the routed ones."""
    shared = experts.shared * experts.width
    parts = [("mlp.shared_experts.", order[:shared])] if shared else []
    parts += [(f"mlp.experts.{e}.", part) for e, part in enumerate(order[shared:].view(experts.routed, experts.width))]
    out = {"mlp.gate.weight": router, "mlp.gate.e_score_correction_bias": bias}
    for prefix, neurons in parts:
        out[f"{prefix}gate_proj.weight"] = layer.gate[neurons]
        out[f"{prefix}up_proj.weight"] = layer.up[neurons]
        out[f"{prefix}down_proj.weight"] = layer.down[:, neurons].contiguous()
    return out


def exact(layer: LlamaLayer, experts: Experts) -> Tensors:
    """Cut in the order in which the neurons stand."""
    router = torch.zeros(experts.routed, layer.gate.shape[1])
    return split(layer, experts, torch.arange(len(layer.gate)), router, torch.zeros(experts.routed))


def grown(layer: LlamaLayer, experts: Experts, y_TD: Tensor, generator: torch.Generator) -> Tensors:
    """`y` are inputs of the FFN on text."""
    neurons, hidden = layer.gate.shape
    out = {f"mlp.shared_experts.{name}_proj.weight": getattr(layer, name) for name in NAMES}
    out["mlp.gate.weight"] = _spreading_router(experts.routed, y_TD, generator)
    out["mlp.gate.e_score_correction_bias"] = torch.zeros(experts.routed)
    need = experts.routed * experts.width
    orders = [torch.randperm(neurons, generator=generator) for _ in range(-(-need // neurons))]
    for e, chosen in enumerate(torch.cat(orders)[:need].view(experts.routed, experts.width)):
        out[f"mlp.experts.{e}.gate_proj.weight"] = layer.gate[chosen]
        out[f"mlp.experts.{e}.up_proj.weight"] = layer.up[chosen]
        out[f"mlp.experts.{e}.down_proj.weight"] = torch.zeros(hidden, experts.width)
    return out


def _spreading_router(experts: int, y_TD: Tensor, generator: torch.Generator) -> Tensor:
    """[E, D]: random directions without the mean of `y`, scaled so that each logit has standard deviation 1."""
    router = torch.randn(experts, y_TD.shape[1], generator=generator)
    mean = y_TD.mean(0)
    router -= (router @ mean)[:, None] * mean / mean.square().sum().clamp(min=1e-12)
    return router / (y_TD @ router.T).std(0).clamp(min=1e-6)[:, None]
