"""The modules of a block as plain tensors, for kernels that run whole blocks. Nothing is copied but the router."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fathom.kernels.step import AttentionWeights, BlockWeights, FeedForwardWeights, Matrix, RouterWeights
from fathom.model.block import Block
from fathom.model.mla import LATENT_NORM_EPS, MultiHeadLatentAttention
from fathom.model.moe import Experts, Gate, MoE
from fathom.model.quant import FP8Experts, FP8Linear


def matrix(linear: nn.Module) -> Matrix:
    """The weight of a linear layer as it is held."""
    if isinstance(linear, FP8Linear):
        return Matrix(linear.weight.data, linear.weight_scale_inv.data, linear.block)
    assert isinstance(linear, nn.Linear)
    return Matrix(linear.weight.data)


def block_weights(block: Block) -> BlockWeights:
    """See kernels/step.py."""
    mlp = block.mlp
    common = {
        "norm_eps": block.input_layernorm.eps,
        "input_norm": block.input_layernorm.weight.data.float(),
        "attention": _attention(block.self_attn),
        "post_norm": block.post_attention_layernorm.weight.data.float(),
    }
    if not isinstance(mlp, MoE):
        return BlockWeights(**common, dense=_feed_forward(mlp))  # type: ignore[arg-type]
    shared = None if mlp.shared_experts is None else _feed_forward(mlp.shared_experts)
    gate_up, down = _experts(mlp.experts)
    return BlockWeights(**common, router=_router(mlp.gate), gate_up=gate_up, down=down, shared=shared)  # type: ignore[arg-type]


def _attention(attention: MultiHeadLatentAttention) -> AttentionWeights:
    c = attention.config
    compressed = c.q_lora_rank is not None
    return AttentionWeights(
        heads=c.num_attention_heads,
        nope=c.qk_nope_head_dim,
        rope=c.qk_rope_head_dim,
        value=c.v_head_dim,
        latent=c.kv_lora_rank,
        scale=c.softmax_scale,
        norm_eps=LATENT_NORM_EPS,
        q_a=matrix(attention.q_a_proj) if compressed else None,
        q_a_norm=attention.q_a_layernorm.weight.data.float() if compressed else None,
        q_b=matrix(attention.q_b_proj if compressed else attention.q_proj),
        kv_a=matrix(attention.kv_a_proj_with_mqa),
        kv_a_norm=attention.kv_a_layernorm.weight.data.float(),
        kv_b=matrix(attention.kv_b_proj),
        o=matrix(attention.o_proj),
        q_a_bias=_bias(attention.q_a_proj) if compressed else None,
        kv_a_bias=_bias(attention.kv_a_proj_with_mqa),
        o_bias=_bias(attention.o_proj),
    )


def _bias(linear: nn.Module) -> Tensor | None:
    bias = linear.bias
    return bias.data.float() if isinstance(bias, Tensor) else None


def _feed_forward(mlp: nn.Module) -> FeedForwardWeights:
    return FeedForwardWeights(*(matrix(getattr(mlp, f"{name}_proj")) for name in ("gate", "up", "down")))


def _experts(experts: nn.Module) -> tuple[Matrix, Matrix]:
    if isinstance(experts, FP8Experts):
        return experts.matrix("gate_up"), experts.matrix("down")
    assert isinstance(experts, Experts)
    return Matrix(experts.gate_up.data), Matrix(experts.down.data)


def _router(gate: Gate) -> RouterWeights:
    c = gate.config
    return RouterWeights(
        weight=gate.weight.data.float(),
        bias=gate.e_score_correction_bias.to(torch.float32) if c.has_router_bias else None,
        top_k=c.num_experts_per_tok,
        groups=c.n_group if c.limits_groups else 1,
        kept_groups=c.topk_group if c.limits_groups else 1,
        sigmoid=c.scoring_func == "sigmoid",
        normalise=c.norm_topk_prob,
        route_scale=c.routed_scaling_factor,
    )
