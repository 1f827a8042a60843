"""The official inference folder's `config_*.json` (its ModelArgs) to and from ModelConfig.

The demo turns YaRN on only when max_seq_len > original_seq_len, and has no MTP, no token ids and one mscale.
"""

from __future__ import annotations

from typing import Any

from fathom.config import ModelConfig, QuantizationConfig, RopeScaling
from fathom.runtime import UserError

DEFAULTS: dict[str, Any] = {
    "max_batch_size": 8, "max_seq_len": 16384, "dtype": "bf16", "scale_fmt": None, "vocab_size": 102400, "dim": 2048,
    "inter_dim": 10944, "moe_inter_dim": 1408, "n_layers": 27, "n_dense_layers": 1, "n_heads": 16,
    "n_routed_experts": 64, "n_shared_experts": 2, "n_activated_experts": 6, "n_expert_groups": 1,
    "n_limited_groups": 1, "score_func": "softmax", "route_scale": 1.0, "q_lora_rank": 0, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "original_seq_len": 4096,
    "rope_theta": 10000.0, "rope_factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
}  # fmt: skip


def from_demo(data: dict[str, Any]) -> ModelConfig:
    """ModelConfig of a demo config; absent fields take the demo's defaults, which are V2-Lite's."""
    unknown = set(data) - set(DEFAULTS)
    if unknown:
        raise UserError(f"demo config has unknown fields {sorted(unknown)}")
    for name, value in data.items():
        default = DEFAULTS[name]
        kinds = (int, float) if isinstance(default, int | float) else (str, type(None)) if default is None else (str,)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UserError(f"demo config: {name} is {value!r}, it must be a {'number' if int in kinds else 'text'}")
    d = DEFAULTS | data
    v3 = d["score_func"] == "sigmoid"
    yarn = d["max_seq_len"] > d["original_seq_len"]
    method = "noaux_tc" if v3 else "group_limited_greedy" if d["n_expert_groups"] > 1 else "greedy"
    return ModelConfig(
        model_type="deepseek_v3" if v3 else "deepseek_v2",
        vocab_size=d["vocab_size"], hidden_size=d["dim"], intermediate_size=d["inter_dim"],
        moe_intermediate_size=d["moe_inter_dim"], num_hidden_layers=d["n_layers"], num_nextn_predict_layers=0,
        num_attention_heads=d["n_heads"], n_routed_experts=d["n_routed_experts"],
        n_shared_experts=d["n_shared_experts"], num_experts_per_tok=d["n_activated_experts"],
        n_group=d["n_expert_groups"], topk_group=d["n_limited_groups"], routed_scaling_factor=d["route_scale"],
        scoring_func=d["score_func"], topk_method=method, norm_topk_prob=v3,
        first_k_dense_replace=d["n_dense_layers"], q_lora_rank=d["q_lora_rank"] or None,
        kv_lora_rank=d["kv_lora_rank"], qk_nope_head_dim=d["qk_nope_head_dim"],
        qk_rope_head_dim=d["qk_rope_head_dim"], v_head_dim=d["v_head_dim"], rope_theta=d["rope_theta"],
        rope_scaling=RopeScaling(d["rope_factor"], d["original_seq_len"], d["beta_fast"], d["beta_slow"],
                                 d["mscale"], d["mscale"]) if yarn else None,
        max_position_embeddings=d["max_seq_len"],
        quantization=QuantizationConfig(scale_fmt=d["scale_fmt"]) if d["dtype"] == "fp8" else None,
        bos_token_id=None, eos_token_id=(),
    )  # fmt: skip


# What decides the function that a model computes and the demo's format has no field of its own for.
IMPLIED = ("rms_norm_eps", "moe_layer_freq", "norm_topk_prob", "topk_method", "rope_scaling")


def said_otherwise(config: ModelConfig) -> list[str]:
    """Fields whose values the demo, given this model's demo config, would take to be others."""
    back = from_demo(to_demo(config))
    lost = [name for name in IMPLIED if getattr(back, name) != getattr(config, name)]
    if config.quantization and config.quantization.weight_block_size != QuantizationConfig().weight_block_size:
        lost.append("weight_block_size")
    return lost


def to_demo(config: ModelConfig) -> dict[str, Any]:
    """The demo config of a model."""
    rope = config.rope_scaling or RopeScaling(original_max_position_embeddings=config.max_position_embeddings)
    out = {
        "vocab_size": config.vocab_size, "dim": config.hidden_size, "inter_dim": config.intermediate_size,
        "moe_inter_dim": config.moe_intermediate_size, "n_layers": config.num_hidden_layers,
        "n_dense_layers": config.first_k_dense_replace, "n_heads": config.num_attention_heads,
        "n_routed_experts": config.n_routed_experts, "n_shared_experts": config.n_shared_experts,
        "n_activated_experts": config.num_experts_per_tok, "n_expert_groups": config.n_group,
        "n_limited_groups": config.topk_group, "route_scale": config.routed_scaling_factor,
        "score_func": config.scoring_func, "q_lora_rank": config.q_lora_rank or 0, "kv_lora_rank": config.kv_lora_rank,
        "qk_nope_head_dim": config.qk_nope_head_dim, "qk_rope_head_dim": config.qk_rope_head_dim,
        "v_head_dim": config.v_head_dim, "rope_theta": config.rope_theta, "rope_factor": rope.factor,
        "original_seq_len": rope.original_max_position_embeddings, "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow, "mscale": rope.mscale_all_dim or 1.0,
        "max_seq_len": config.max_position_embeddings, "dtype": "fp8" if config.quantization else "bf16",
    }  # fmt: skip
    if config.quantization and config.quantization.scale_fmt:
        out["scale_fmt"] = config.quantization.scale_fmt
    return out
