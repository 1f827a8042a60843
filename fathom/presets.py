"""The published models by name, and the bundled one."""

from __future__ import annotations

from fathom.config import ModelConfig, QuantizationConfig, RopeScaling

_V3 = ModelConfig(
    rope_scaling=RopeScaling(mscale_all_dim=1.0),
    quantization=QuantizationConfig(),
)
# fmt: off
_V2 = ModelConfig(
    model_type="deepseek_v2", vocab_size=102400, hidden_size=5120, intermediate_size=12288,
    moe_intermediate_size=1536, num_hidden_layers=60, num_nextn_predict_layers=0, n_routed_experts=160,
    n_shared_experts=2, num_experts_per_tok=6, n_group=8, topk_group=3, routed_scaling_factor=16.0,
    scoring_func="softmax", topk_method="group_limited_greedy", norm_topk_prob=False, first_k_dense_replace=1,
    rope_scaling=RopeScaling(mscale=0.707, mscale_all_dim=0.707), bos_token_id=100000, eos_token_id=(100001,),
)
# fmt: on
PRESETS: dict[str, ModelConfig] = {
    # The bundled model as it is pretrained, before an extension lengthens its context: every mechanism of V3 at the
    # smallest width whose matrices still fill FP8 blocks of 128.
    "minnow": ModelConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=768,
        moe_intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        n_routed_experts=32,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        q_lora_rank=128,
        kv_lora_rank=128,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=64,
        max_position_embeddings=1024,
        pad_token_id=2,
        quantization=QuantizationConfig(),
    ),
    "v2-lite-16b": _V2.replace(
        hidden_size=2048,
        intermediate_size=10944,
        moe_intermediate_size=1408,
        num_hidden_layers=27,
        num_attention_heads=16,
        n_routed_experts=64,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
        topk_method="greedy",
        q_lora_rank=None,
    ),
    "v2-236b": _V2,
    "v3-671b": _V3,
    "v3.1-671b": _V3.replace(quantization=QuantizationConfig(scale_fmt="ue8m0")),
}
