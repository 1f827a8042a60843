"""config.json of the whole family in and out, the official demo's configs, and every impossible combination by name."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from fathom.config import ModelConfig, QuantizationConfig, RopeScaling
from fathom.model.rope import inverse_frequencies, rotation
from fathom.presets import PRESETS
from fathom.runtime import UserError

# As published (model folder of the release, transformers_version 4.46.3).
V3_JSON: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
    "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 2048,
    "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06, "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3", "use_cache": True, "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip
# Moonlight-16B-A3B: V3's mechanisms at V2-Lite's size, no query compression, one group, no YaRN.
MOONLIGHT_JSON = V3_JSON | {
    "hidden_size": 2048, "intermediate_size": 11264, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
    "num_attention_heads": 16, "num_key_value_heads": 16, "n_routed_experts": 64, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": None,
    "routed_scaling_factor": 2.446, "rope_theta": 50000.0, "rope_scaling": None, "rms_norm_eps": 1e-05,
    "max_position_embeddings": 8192, "vocab_size": 163840, "num_nextn_predict_layers": 0, "bos_token_id": 163584,
    "eos_token_id": 163586, "aux_loss_alpha": 0.001, "seq_aux": True, "quantization_config": None,
}  # fmt: skip
# Kimi-K2: 384 experts in one group, first layer dense, 64 heads.
KIMI_JSON = V3_JSON | {
    "model_type": "kimi_k2", "vocab_size": 163840, "n_routed_experts": 384, "num_attention_heads": 64,
    "num_key_value_heads": 64, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827, "max_position_embeddings": 131072, "num_nextn_predict_layers": 0,
    "rope_scaling": {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "bos_token_id": 163584, "eos_token_id": 163585, "pad_token_id": 163839, "aux_loss_alpha": 0.001, "seq_aux": True,
}  # fmt: skip
LITE_JSON: dict[str, Any] = {  # DeepSeek-V2-Lite
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "attention_bias": False,
    "aux_loss_alpha": 0.001, "bos_token_id": 100000, "eos_token_id": 100001, "first_k_dense_replace": 1,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 10944,
    "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 1408, "moe_layer_freq": 1,
    "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": False, "num_attention_heads": 16,
    "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": None,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "routed_scaling_factor": 1.0, "scoring_func": "softmax", "seq_aux": True, "tie_word_embeddings": False,
    "topk_group": 1, "topk_method": "greedy", "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip
# The official inference/configs/*.json; what they leave out has the demo's defaults.
DEMO_671B: dict[str, Any] = {
    "vocab_size": 129280, "dim": 7168, "inter_dim": 18432, "moe_inter_dim": 2048, "n_layers": 61, "n_dense_layers": 3,
    "n_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1, "n_activated_experts": 8, "n_expert_groups": 8,
    "n_limited_groups": 4, "route_scale": 2.5, "score_func": "sigmoid", "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "dtype": "fp8",
}  # fmt: skip
DEMO_236B: dict[str, Any] = {
    "vocab_size": 102400, "dim": 5120, "inter_dim": 12288, "moe_inter_dim": 1536, "n_layers": 60, "n_dense_layers": 1,
    "n_heads": 128, "n_routed_experts": 160, "n_shared_experts": 2, "n_activated_experts": 6, "n_expert_groups": 8,
    "n_limited_groups": 3, "route_scale": 16.0, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "mscale": 0.707,
}  # fmt: skip
DEMO_16B: dict[str, Any] = {
    "vocab_size": 102400, "dim": 2048, "inter_dim": 10944, "moe_inter_dim": 1408, "n_layers": 27, "n_dense_layers": 1,
    "n_heads": 16, "n_routed_experts": 64, "n_shared_experts": 2, "n_activated_experts": 6, "route_scale": 1.0,
    "q_lora_rank": 0, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "mscale": 0.707,
}  # fmt: skip
DEMO = {
    "v3-671b": DEMO_671B, "v3.1-671b": DEMO_671B | {"scale_fmt": "ue8m0"},
    "v2-236b": DEMO_236B, "v2-lite-16b": DEMO_16B,
}  # fmt: skip


def loaded(data: dict[str, Any]) -> ModelConfig:
    """Through JSON text, as from a file."""
    return ModelConfig.from_dict(json.loads(json.dumps(data)))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_round_trip(name: str, tmp_path: Path) -> None:
    config = ModelConfig.preset(name)
    assert loaded(config.to_dict()) == config
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert ModelConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    "data", [V3_JSON, MOONLIGHT_JSON, KIMI_JSON, LITE_JSON], ids=["v3", "moonlight", "kimi", "lite"]
)
def test_published_configs_survive_the_round_trip(data: dict[str, Any]) -> None:
    """Every field that says something comes back, unknown ones included; what is written reads back equal."""
    config = loaded(data)
    out = config.to_dict()
    assert loaded(out) == config
    ours = {"auto_map", "transformers_version", "quantization_config", "rope_scaling"}
    assert {k: out[k] for k in set(data) - ours} == {k: data[k] for k in set(data) - ours}
    for nested in ("rope_scaling", "quantization_config"):
        assert (data.get(nested) or {}).items() <= (out.get(nested) or {}).items()


def test_v3_is_the_preset() -> None:
    """Apart from the released initializer_range, which no released code reads."""
    assert loaded(V3_JSON).replace(initializer_range=0.006) == ModelConfig.preset("v3-671b")
    v31 = V3_JSON | {"quantization_config": V3_JSON["quantization_config"] | {"scale_fmt": "ue8m0"}}
    assert loaded(v31).replace(initializer_range=0.006) == ModelConfig.preset("v3.1-671b")
    assert loaded(LITE_JSON).replace(initializer_range=0.006) == ModelConfig.preset("v2-lite-16b")


def test_early_and_late_copies_agree() -> None:
    """Early copies carry training fields; newer transformers spells RoPE and dtype anew and adds derived fields."""
    v3 = loaded(V3_JSON)
    early = V3_JSON | {"aux_loss_alpha": 0.001, "pretraining_tp": 1, "seq_aux": True, "transformers_version": "4.33.1"}
    late = {k: v for k, v in V3_JSON.items() if k not in ("rope_scaling", "rope_theta", "torch_dtype")}
    rope = {k: v for k, v in V3_JSON["rope_scaling"].items() if k != "type"}
    late |= {"rope_parameters": rope | {"rope_type": "yarn", "rope_theta": 10000.0}, "dtype": "bfloat16",
             "rope_interleave": True, "qk_head_dim": 192, "head_dim": 64, "mlp_bias": False}  # fmt: skip
    assert loaded(early) == loaded(late) == v3
    default = late | {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}
    assert loaded(default).rope_scaling is None and loaded(default).rope_theta == 50000.0


YARN_V3 = {"type": "yarn", **{k: v for k, v in V3_JSON["rope_scaling"].items() if k != "type"}}
PLAIN_V3 = {"rope_type": "default", "rope_theta": 10000.0}


def without(*names: str, **changes: Any) -> dict[str, Any]:
    return {k: v for k, v in YARN_V3.items() if k not in names} | changes


ROPES: dict[str, dict[str, Any]] = {  # what transformers takes each for is the measure
    "published": {"rope_scaling": YARN_V3},
    "none": {"rope_scaling": None},
    "default": {"rope_scaling": {"type": "default"}},
    "the newer name": {"rope_parameters": without("type", rope_type="yarn", rope_theta=10000.0)},
    "the newer name, another base": {"rope_parameters": without("type", rope_type="yarn", rope_theta=50000.0)},
    "a default beside YaRN": {"rope_scaling": YARN_V3, "rope_parameters": PLAIN_V3},
    "a base beside YaRN": {
        "rope_scaling": YARN_V3 | {"rope_theta": 5e4},
        "rope_parameters": PLAIN_V3 | {"rope_theta": 5e4},
    },
    "YaRN beside a default": {"rope_scaling": {"rope_type": "default"}, "rope_parameters": YARN_V3},
    "an empty rope_scaling": {"rope_scaling": {}, "rope_parameters": YARN_V3 | {"rope_theta": 10000.0}},
    "no original context": {"rope_scaling": without("original_max_position_embeddings")},
    "another original context": {"rope_scaling": without(original_max_position_embeddings=8192)},
    "no mscale": {"rope_scaling": without("mscale")},
    "no mscale_all_dim": {"rope_scaling": without("mscale_all_dim")},
    "neither": {"rope_scaling": without("mscale", "mscale_all_dim")},
    "mscale 0": {"rope_scaling": without(mscale=0.0)},
    "two mscales": {"rope_scaling": without(mscale=0.707, mscale_all_dim=1.2)},
    "no betas": {"rope_scaling": without("beta_fast", "beta_slow")},
    "equal betas": {"rope_scaling": without(beta_fast=1, beta_slow=1)},
    "factor 1": {"rope_scaling": without(factor=1.0)},
    "both kinds of type": {"rope_scaling": without("type", type="yarn", rope_type="yarn")},
    "fractions": {"rope_scaling": without(factor=2.5, beta_fast=20.5, beta_slow=0.7)},
}


@pytest.mark.parametrize("ropes", ROPES.values(), ids=ROPES)
def test_rotary_settings_are_what_transformers_takes_them_for(ropes: dict[str, Any]) -> None:
    """Angles beyond the original context, the amplitude and the scale of the softmax."""
    data = {k: v for k, v in V3_JSON.items() if k not in ("rope_scaling", "rope_theta", "quantization_config")} | ropes
    theirs = DeepseekV3Config(**copy.deepcopy(data))
    rope = DeepseekV3RotaryEmbedding(theirs)
    positions = torch.tensor([[0, 1, 4095, 4096, 20_000, 163_839]])
    cos, sin = rope(torch.zeros(1), positions)
    config = loaded(data)
    ours = rotation(config, positions)
    half = config.qk_rope_head_dim // 2
    torch.testing.assert_close(ours[0], cos[..., :half], rtol=0, atol=0.02)  # FP32 angles of 163,839 turns
    torch.testing.assert_close(ours[1], sin[..., :half], rtol=0, atol=0.02)
    torch.testing.assert_close(inverse_frequencies(config), rope.inv_freq, rtol=3e-7, atol=0)
    with torch.device("meta"):
        attention = DeepseekV3Attention(theirs, 0)
    assert config.softmax_scale == pytest.approx(attention.scaling, rel=1e-12)
    assert loaded(config.to_dict()) == config


@pytest.mark.parametrize(
    ("ropes", "message"),
    [
        (
            {"rope_scaling": YARN_V3, "rope_parameters": PLAIN_V3 | {"rope_theta": 5e4}},
            "rope_scaling.rope_theta is None, it must be 50000",
        ),
        ({"rope_parameters": PLAIN_V3, "rope_theta": 5e4}, "rope_parameters.rope_theta is 10000.0, it must be 50000"),
        ({"rope_scaling": without(), "rope_parameters": "default"}, "rope_parameters is 'default'"),
    ],
)
def test_rotary_settings_that_contradict_each_other_are_refused(ropes: dict[str, Any], message: str) -> None:
    data = {k: v for k, v in V3_JSON.items() if k not in ("rope_scaling", "rope_theta")} | ropes
    with pytest.raises(UserError, match=re.escape(message)):
        loaded(data)


def test_missing_optional_fields_take_the_family_default() -> None:
    optional = ("scoring_func", "topk_method", "norm_topk_prob", "moe_layer_freq", "attention_bias", "hidden_act",
                "tie_word_embeddings", "initializer_range", "num_key_value_heads", "torch_dtype", "auto_map",
                "architectures", "rope_theta", "rms_norm_eps", "bos_token_id", "eos_token_id")  # fmt: skip
    short = loaded({k: v for k, v in V3_JSON.items() if k not in optional})
    assert short == ModelConfig.preset("v3-671b")
    v2 = loaded({k: v for k, v in LITE_JSON.items() if k not in (*optional, "n_group", "topk_group")})
    lite = ModelConfig.preset("v2-lite-16b")
    assert v2 == lite.replace(bos_token_id=None, eos_token_id=())
    no_mtp = {k: v for k, v in V3_JSON.items() if k != "num_nextn_predict_layers"}
    assert loaded(no_mtp).num_nextn_predict_layers == 0
    assert loaded(no_mtp | {"num_mtp_layers": 2}).num_nextn_predict_layers == 2
    null_groups = LITE_JSON | {"n_group": None, "topk_group": None}
    assert loaded(null_groups).n_group == loaded(null_groups).topk_group == 1


def test_moonlight() -> None:
    c = loaded(MOONLIGHT_JSON)
    assert (c.hidden_size, c.num_hidden_layers, c.n_routed_experts, c.num_experts_per_tok) == (2048, 27, 64, 6)
    assert c.q_lora_rank is None and not c.limits_groups and c.has_router_bias and c.rope_scaling is None
    assert (c.rope_theta, c.rms_norm_eps, c.routed_scaling_factor) == (50000.0, 1e-5, 2.446)
    assert c.softmax_scale == pytest.approx(192**-0.5) and c.quantization is None


def test_kimi_k2() -> None:
    c = loaded(KIMI_JSON)
    assert c.model_type == "kimi_k2" and c.to_dict()["architectures"] == ["DeepseekV3ForCausalLM"]
    assert (c.n_routed_experts, c.num_attention_heads, c.first_k_dense_replace) == (384, 64, 1)
    assert [c.is_moe_layer(i) for i in (0, 1, 60, 61)] == [False, True, True, True]
    assert c.rope_scaling is not None and c.rope_scaling.rope_amplitude == 1.0


@pytest.mark.parametrize("name", DEMO)
def test_demo_configs_are_the_presets(name: str, tmp_path: Path) -> None:
    """The demo has no MTP, no token ids, and a context of 16,384."""
    path = tmp_path / "config_demo.json"
    path.write_text(json.dumps(DEMO[name]))
    config = ModelConfig.from_json(path)
    preset = ModelConfig.preset(name)
    absent = {"num_nextn_predict_layers": 0, "bos_token_id": None, "eos_token_id": (), "max_position_embeddings": 16384}
    assert config == preset.replace(**absent)
    assert ModelConfig.from_demo(config.to_demo()) == config
    assert DEMO[name].items() <= config.to_demo().items()


def test_the_demo_turns_yarn_on_by_length() -> None:
    assert ModelConfig.from_demo(DEMO_671B | {"max_seq_len": 4096}).rope_scaling is None
    assert ModelConfig.from_demo(DEMO_671B | {"max_seq_len": 4097}).rope_scaling == RopeScaling(mscale_all_dim=1.0)


def test_demo_round_trip_without_yarn() -> None:
    config = ModelConfig.preset("minnow").replace(
        num_nextn_predict_layers=0, bos_token_id=None, eos_token_id=(), pad_token_id=None
    )
    assert ModelConfig.from_demo(config.to_demo()) == config


def test_is_moe_layer() -> None:
    v3 = ModelConfig.preset("v3-671b")
    assert [i for i in range(62) if not v3.is_moe_layer(i)] == [0, 1, 2]
    every_second = v3.replace(moe_layer_freq=2)
    assert [i for i in range(10) if every_second.is_moe_layer(i)] == [4, 6, 8]
    assert not any(v3.replace(n_routed_experts=0).is_moe_layer(i) for i in range(62))


def test_eos_may_be_a_list() -> None:
    config = loaded(V3_JSON | {"eos_token_id": [1, 128805]})
    assert config.eos_token_id == (1, 128805) and config.to_dict()["eos_token_id"] == [1, 128805]


def yarn(**changes: Any) -> dict[str, Any]:
    return {"rope_scaling": V3_JSON["rope_scaling"] | changes}


def fp8(**changes: Any) -> dict[str, Any]:
    return {"quantization_config": V3_JSON["quantization_config"] | changes}


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [  # change to V3's config.json, what the message must name
    ({"model_type": "llama"}, "llama"),
    ({"model_type": ["deepseek_v3"]}, "deepseek_v3"),
    ({"model_type": None, "architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
    ({"n_group": 7}, "n_group is 7, it must be a divisor of n_routed_experts 256"),
    ({"topk_group": 9}, "topk_group is 9, it must be at most n_group 8"),
    ({"topk_group": 0}, "topk_group is 0"),
    ({"num_experts_per_tok": 129}, "num_experts_per_tok is 129, it must be at most 128"),
    ({"num_experts_per_tok": 0}, "num_experts_per_tok is 0"),
    ({"n_group": 256, "topk_group": 8}, "n_group is 256"),
    ({"n_group": 1, "topk_group": 1, "num_experts_per_tok": 257}, "num_experts_per_tok is 257, it must be at most 256"),
    ({"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
    ({"moe_layer_freq": 0}, "moe_layer_freq is 0"),
    ({"first_k_dense_replace": -1}, "first_k_dense_replace is -1"),
    ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers is -1"),
    ({"hidden_size": 0}, "hidden_size is 0"),
    ({"hidden_size": 7168.0}, "hidden_size is 7168.0"),
    ({"hidden_size": "7168"}, "hidden_size is '7168'"),
    ({"vocab_size": True}, "vocab_size is True"),
    ({"q_lora_rank": 0}, "q_lora_rank is 0"),
    ({"kv_lora_rank": -512}, "kv_lora_rank is -512"),
    ({"qk_rope_head_dim": 63}, "qk_rope_head_dim is 63, it must be even"),
    ({"num_key_value_heads": 8}, "num_key_value_heads is 8, it must be num_attention_heads 128"),
    ({"scoring_func": "tanh"}, "scoring_func is 'tanh'"),
    ({"topk_method": "random"}, "topk_method is 'random'"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ({"rope_theta": -1.0}, "rope_theta is -1.0"),
    ({"routed_scaling_factor": "2.5"}, "routed_scaling_factor is '2.5'"),
    ({"norm_topk_prob": "yes"}, "norm_topk_prob is 'yes'"),
    ({"rope_interleave": False}, "rope_interleave is False"),
    ({"mlp_bias": True}, "mlp_bias is True"),
    ({"eos_token_id": 129280}, "eos_token_id is 129280"),
    ({"bos_token_id": "<s>"}, "bos_token_id is '<s>'"),
    ({"eos_token_id": [1.0]}, "eos_token_id is 1.0, it must be null or a whole number below vocab_size 129280"),
    ({"n_group": None}, "n_group is null; leave it out"),
    ({"n_routed_experts": None}, "n_routed_experts is null; leave it out"),
    ({"hidden_size": None}, "hidden_size is null; leave it out"),
    ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
    (yarn(type="llama3"), "rope_scaling.type is 'llama3'"),
    (yarn(factor=0.5), "rope_scaling.factor is 0.5"),
    (yarn(factor=None), "rope_scaling.factor is None"),
    (yarn(beta_slow=32, beta_fast=1), "rope_scaling.beta_fast is 1, it must be at least beta_slow 32"),
    (yarn(beta_slow=0), "at least beta_slow 0, and that above 0"),
    (yarn(original_max_position_embeddings=0), "rope_scaling.original_max_position_embeddings is 0"),
    (yarn(attention_factor=1.2), "rope_scaling.attention_factor is 1.2"),
    (yarn(truncate=False), "rope_scaling.truncate is False"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config.quant_method is 'gptq'"),
    (fp8(fmt="e5m2"), "quantization_config.fmt is 'e5m2'"),
    (fp8(scale_fmt="int8"), "quantization_config.scale_fmt is 'int8'"),
    (fp8(weight_block_size=128), "quantization_config.weight_block_size is 128"),
    (fp8(weight_block_size=[128]), "quantization_config.weight_block_size is (128,)"),
    (fp8(weight_block_size=[128, 0]), "quantization_config.weight_block_size is (128, 0)"),
]


@pytest.mark.parametrize(("change", "message"), IMPOSSIBLE, ids=[message for _, message in IMPOSSIBLE])
def test_impossible_configs_are_one_clear_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(V3_JSON | change))
    with pytest.raises(UserError) as error:
        ModelConfig.from_json(path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"model_type": "deepseek_v3"', "null", '"deepseek_v3"'])
def test_files_that_are_no_config(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        ModelConfig.from_json(path)


def test_other_entrances_reject_too() -> None:
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        ModelConfig.from_pretrained("/nowhere")
    with pytest.raises(UserError, match="preset 'v4' is not known; use one of minnow"):
        ModelConfig.preset("v4")
    with pytest.raises(UserError, match=r"unknown fields \['dimension'\]"):
        ModelConfig.from_demo({"dimension": 3})
    with pytest.raises(UserError, match="topk_group is 5"):
        ModelConfig.preset("minnow").replace(topk_group=5)


def test_fields_nobody_knows_are_kept() -> None:
    """A tool of tomorrow may want them."""
    out = loaded(V3_JSON | {"index_topk_freq": 4}).to_dict()
    assert out["index_topk_freq"] == 4 and out["ep_size"] == 1


def test_quantization_is_written_as_released() -> None:
    assert ModelConfig.preset("v3-671b").to_dict()["quantization_config"] == V3_JSON["quantization_config"]
    assert QuantizationConfig(scale_fmt="ue8m0").to_dict()["scale_fmt"] == "ue8m0"
    assert "quantization_config" not in ModelConfig.preset("v2-236b").to_dict()
