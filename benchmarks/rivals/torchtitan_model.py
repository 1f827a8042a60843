"""torchtitan's deepseek_v3 with a model's config, for benchmarks/training.py.

    pip install --no-deps torchtitan==0.3.0 spmd_types==0.2.3 einops

Its attention modules are FlexAttention, whose backward PyTorch compiles for GPUs only, and a variable-length kernel of
CUDA. On a CPU its own ScaledDotProductAttention takes their place; everything else is what torchtitan builds. Routed
experts compute in BF16 whatever is asked for: that is written into its GroupedExperts.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from fathom.config import ModelConfig


def installed() -> bool:
    """Whether torchtitan is there."""
    return importlib.util.find_spec("torchtitan") is not None


def build(model: ModelConfig) -> Any:
    """A model of the same widths, in FP32."""
    from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
    from torchtitan.models.common.attention import ScaledDotProductAttention
    from torchtitan.models.deepseek_v3 import DeepSeekV3Model, _build_dsv3_layers

    c = model
    layers = _build_dsv3_layers(
        n_layers=c.num_hidden_layers, n_dense_layers=c.first_k_dense_replace, dim=c.hidden_size,
        n_heads=c.num_attention_heads, q_lora_rank=c.q_lora_rank or 0, kv_lora_rank=c.kv_lora_rank,
        qk_nope_head_dim=c.qk_nope_head_dim, qk_rope_head_dim=c.qk_rope_head_dim, v_head_dim=c.v_head_dim, mscale=1.0,
        dense_hidden_dim=c.intermediate_size, moe_hidden_dim=c.moe_intermediate_size, num_experts=c.n_routed_experts,
        num_shared_experts=c.n_shared_experts, router_top_k=c.num_experts_per_tok, router_score_func="sigmoid",
        router_num_expert_groups=c.n_group, router_num_limited_groups=c.topk_group,
        router_route_scale=c.routed_scaling_factor, router_route_norm=c.norm_topk_prob, attn_backend="flex",
        moe_comm_backend="standard", non_blocking_capacity_factor=None,
        rope=ComplexRoPE.Config(dim=c.qk_rope_head_dim, max_seq_len=c.max_position_embeddings, theta=c.rope_theta),
    )  # fmt: skip
    for layer in layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    normal = {"weight": torch.nn.init.normal_}
    ones = {"weight": torch.nn.init.ones_}
    config = DeepSeekV3Model.Config(
        vocab_size=c.vocab_size, dim=c.hidden_size, layers=layers, mtp_layers=[],
        tok_embeddings=Embedding.Config(num_embeddings=c.vocab_size, embedding_dim=c.hidden_size, param_init=normal),
        norm=RMSNorm.Config(normalized_shape=c.hidden_size, param_init=ones),
        lm_head=Linear.Config(
            in_features=c.hidden_size, out_features=c.vocab_size,
            param_init={"weight": lambda w: torch.nn.init.normal_(w, std=0.02)},
        ),
    )  # fmt: skip
    built = config.build()
    built.init_states(buffer_device=torch.device("cpu"))
    return built.float().train()
