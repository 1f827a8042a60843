"""ModelConfig: what a V3-family `config.json` says, validated once, so that nothing behind it has to ask again.

One frozen dataclass holds both families. `deepseek_v3` (V3, V3-0324, R1, V3.1, Moonlight; `kimi_k2` is the same model)
routes with sigmoid scores, a selection bias and top-2-sum groups; `deepseek_v2` with softmax scores and no bias.
Field names are Hugging Face's. Sources: v3 `config.json`, the official `inference/configs/*.json` (from_demo).

Traps this file takes care of
 1. Optional fields that copies lack: the family's released default, not zero.
 2. `rope_scaling` (released files) and `rope_parameters` (newer transformers) are the same thing.
 3. The demo turns YaRN on only when max_seq_len > original_seq_len; Hugging Face whenever rope_scaling is set.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fathom.config_checks import check, is_int, is_number, one_of
from fathom.config_rope import RopeScaling, read_rope
from fathom.runtime import UserError, read_json

__all__ = ["ARCHITECTURES", "UNREAD", "ModelConfig", "QuantizationConfig", "RopeScaling"]

ARCHITECTURES = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
}
UNREAD = (
    "which is not read; Fathom reads FP32, BF16, FP16 and blocks of FP8: take the checkpoint that this one was made of"
)


@dataclass(frozen=True)
class QuantizationConfig:
    """FP8 E4M3 weights with one FP32 `weight_scale_inv` per block. `scale_fmt` "ue8m0": scales are powers of two."""

    weight_block_size: tuple[int, int] = (128, 128)
    scale_fmt: str | None = None
    activation_scheme: str = "dynamic"
    fmt: str = "e4m3"
    quant_method: str = "fp8"

    def __post_init__(self) -> None:
        one_of("quantization_config.quant_method", self.quant_method, ("fp8",))
        one_of("quantization_config.fmt", self.fmt, ("e4m3",))
        one_of("quantization_config.activation_scheme", self.activation_scheme, ("dynamic",))
        one_of("quantization_config.scale_fmt", self.scale_fmt, (None, "ue8m0"))
        block = self.weight_block_size
        check(isinstance(block, tuple) and len(block) == 2 and all(is_int(n) and n > 0 for n in block),
               "quantization_config.weight_block_size", block, "two positive whole numbers")  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The `quantization_config` entry of `config.json`."""
        out = dataclasses.asdict(self) | {"weight_block_size": list(self.weight_block_size)}
        if self.scale_fmt is None:
            del out["scale_fmt"]
        return out


@dataclass(frozen=True)
class ModelConfig:
    """All dimensions of one model. Defaults are DeepSeek-V3's (671B)."""

    model_type: str = "deepseek_v3"
    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 61
    num_nextn_predict_layers: int = 1
    num_attention_heads: int = 128
    # mixture of experts
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 2.5
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    norm_topk_prob: bool = True
    first_k_dense_replace: int = 3
    moe_layer_freq: int = 1
    # attention
    q_lora_rank: int | None = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    attention_bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 163840
    # the rest
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: tuple[int, ...] = (1,)
    pad_token_id: int | None = None
    initializer_range: float = 0.006  # the report's; released files say 0.02, which nothing reads
    torch_dtype: str = "bfloat16"
    quantization: QuantizationConfig | None = None
    extra: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # fields kept for the round trip

    def __post_init__(self) -> None:
        one_of("model_type", self.model_type, tuple(ARCHITECTURES))
        for name in _POSITIVE:
            value = getattr(self, name)
            check(is_int(value) and value >= 1, name, value, "a whole number of at least 1")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            check(is_int(value) and value >= 0, name, value, "a whole number of at least 0")
        if self.q_lora_rank is not None:
            check(is_int(self.q_lora_rank) and self.q_lora_rank >= 1, "q_lora_rank", self.q_lora_rank, "null or >= 1")
        for name in ("rms_norm_eps", "rope_theta", "initializer_range"):
            value = getattr(self, name)
            check(is_number(value) and 0 < value < math.inf, name, value, "a positive number")
        check(is_number(self.routed_scaling_factor), "routed_scaling_factor", self.routed_scaling_factor, "a number")
        for name in ("norm_topk_prob", "attention_bias", "tie_word_embeddings"):
            check(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")
        check(self.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", self.qk_rope_head_dim, "even (RoPE rotates pairs)")
        one_of("hidden_act", self.hidden_act, ("silu",))
        for name in ("bos_token_id", "pad_token_id"):
            self._check_token(name, getattr(self, name))
        for token in self.eos_token_id:
            self._check_token("eos_token_id", token)
        self._check_routing()

    def _check_token(self, name: str, token: int | None) -> None:
        ok = token is None or (is_int(token) and -1 <= token < self.vocab_size)
        check(ok, name, token, f"null or a whole number below vocab_size {self.vocab_size}")

    def _check_routing(self) -> None:
        if self.n_routed_experts == 0:
            return
        check(self.moe_intermediate_size >= 1, "moe_intermediate_size", self.moe_intermediate_size, "at least 1")
        one_of("scoring_func", self.scoring_func, ("sigmoid", "softmax"))
        one_of("topk_method", self.topk_method, ("noaux_tc", "greedy", "group_limited_greedy"))
        experts, groups, kept, top_k = self.n_routed_experts, self.n_group, self.topk_group, self.num_experts_per_tok
        check(top_k >= 1, "num_experts_per_tok", top_k, "at least 1")
        check(experts % groups == 0, "n_group", groups, f"a divisor of n_routed_experts {experts}")
        check(kept <= groups, "topk_group", kept, f"at most n_group {groups}")
        reachable = kept * (experts // groups) if self.limits_groups else experts
        check(top_k <= reachable, "num_experts_per_tok", top_k,
               f"at most {reachable}, the experts that topk_group={kept} of n_group={groups} groups hold")  # fmt: skip
        if self.topk_method == "noaux_tc" and self.limits_groups:
            check(experts // groups >= 2, "n_group", groups, "small enough for 2 experts a group (top-2 sum)")

    @property
    def limits_groups(self) -> bool:
        """Whether routing first keeps `topk_group` of `n_group` groups."""
        return self.topk_method != "greedy" and self.n_group > 1 and self.topk_group < self.n_group

    @property
    def has_router_bias(self) -> bool:
        """Whether the gate owns an `e_score_correction_bias` (auxiliary-loss-free balancing)."""
        return self.topk_method == "noaux_tc"

    @property
    def qk_head_dim(self) -> int:
        """Query and key width per head: the part without RoPE first, the part with it last."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """Scale on attention logits; with YaRN 192^-0.5 x 1.36889^2 = 0.1352338 for V3 (facts 1.1.1)."""
        root: float = self.qk_head_dim**-0.5
        return root * self.rope_scaling.softmax_factor if self.rope_scaling else root

    def is_moe_layer(self, index: int) -> bool:
        """Layers below `first_k_dense_replace` are dense; MTP layers (num_hidden_layers on) follow the same rule."""
        return self.n_routed_experts > 0 and index >= self.first_k_dense_replace and index % self.moe_layer_freq == 0

    def replace(self, **changes: Any) -> ModelConfig:
        """A validated copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    # ---- in and out ------------------------------------------------------------------------------------------------

    @classmethod
    def preset(cls, name: str) -> ModelConfig:
        """A published model by name; see presets.py."""
        from fathom.presets import PRESETS  # stands on this class

        if name not in PRESETS:
            raise UserError(f"preset {name!r} is not known; use one of {', '.join(PRESETS)}")
        return PRESETS[name]

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> ModelConfig:
        """Read `folder/config.json`."""
        return cls.from_json(Path(folder) / "config.json")

    @classmethod
    def from_json(cls, path: Path | str) -> ModelConfig:
        """Read a Hugging Face `config.json` or one of the official demo's `config_*.json`."""
        data = read_json(path)
        if not isinstance(data, dict):
            raise UserError(f"{path} holds a {type(data).__name__}, not the object a model config is")
        try:
            return cls.from_demo(data) if "model_type" not in data and "dim" in data else cls.from_dict(data)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """From the dict of a Hugging Face `config.json`. Missing optional fields take the family's default."""
        model_type = data.get("model_type")
        if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
            named = model_type or ", ".join(map(str, data.get("architectures") or [])) or "nothing"
            raise UserError(f"this is a {named} checkpoint; Fathom loads {', '.join(ARCHITECTURES)}")
        mlx = data.get("quantization")  # MLX writes it beside a quantization_config of the same content, or alone
        if isinstance(mlx, dict) and "bits" in mlx:
            raise UserError(f"the weights are in MLX's format of {mlx['bits']} bits, {UNREAD}")
        for name, only in _FIXED.items():
            check(data.get(name) in (None, only), name, data.get(name), f"{only!r} (no release says otherwise)")
        values: dict[str, Any] = dict(_V2_DEFAULTS) if model_type == "deepseek_v2" else {"num_nextn_predict_layers": 0}
        for name in _PLAIN:
            if data.get(name) is not None or (name in data and name in _NULLABLE):
                values[name] = data[name]
            elif name in data and name not in _NULL_IS_DEFAULT.get(model_type, ("eos_token_id", "torch_dtype")):
                raise UserError(f"{name} is null; leave it out for what the family has, or say a value")
        if data.get("num_mtp_layers") is not None and "num_nextn_predict_layers" not in data:
            values["num_nextn_predict_layers"] = data["num_mtp_layers"]
        if isinstance(data.get("dtype"), str):
            values["torch_dtype"] = data["dtype"]
        values["eos_token_id"] = _as_tuple(data.get("eos_token_id", values.get("eos_token_id", (1,))))
        theta, values["rope_scaling"] = read_rope(data, cls.rope_theta, cls.max_position_embeddings)
        if theta is not None:
            values["rope_theta"] = theta
        values["quantization"] = _read_quantization(data.get("quantization_config"))
        if "q_lora_rank" in data:  # null is a value here: no query compression
            values["q_lora_rank"] = data["q_lora_rank"]
        heads, kv_heads = values.get("num_attention_heads", 128), data.get("num_key_value_heads")
        if kv_heads is not None:
            check(kv_heads == heads, "num_key_value_heads", kv_heads, f"num_attention_heads {heads}: MLA has no groups")
        values["extra"] = {k: v for k, v in data.items() if k not in _KNOWN}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The dict of a Hugging Face `config.json` that transformers, vLLM, SGLang and from_dict read."""
        out: dict[str, Any] = {"architectures": [ARCHITECTURES[self.model_type]]}
        out |= {name: getattr(self, name) for name in _PLAIN}
        out["num_key_value_heads"] = self.num_attention_heads
        out["eos_token_id"] = self.eos_token_id[0] if len(self.eos_token_id) == 1 else list(self.eos_token_id)
        out["rope_scaling"] = None
        if self.rope_scaling is not None:
            out["rope_scaling"] = {"type": "yarn", "rope_type": "yarn"} | dataclasses.asdict(self.rope_scaling)
        if self.quantization is not None:
            out["quantization_config"] = self.quantization.to_dict()
        if not self.has_router_bias:
            out.pop("num_nextn_predict_layers") if not self.num_nextn_predict_layers else None
        return self.extra | out

    @classmethod
    def from_demo(cls, data: dict[str, Any]) -> ModelConfig:
        """From the official demo's `config_*.json` (its ModelArgs)."""
        from fathom.config_demo import from_demo  # stands on this class

        return from_demo(data)

    def to_demo(self) -> dict[str, Any]:
        """The official demo's ModelArgs for this model (no MTP: the demo has none)."""
        from fathom.config_demo import to_demo

        return to_demo(self)


def _as_tuple(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _read_quantization(data: Any) -> QuantizationConfig | None:
    if data is None:
        return None
    check(isinstance(data, dict), "quantization_config", data, "null or an object")
    if data.get("quant_method") != "fp8":
        algorithm = f" ({data['quant_algo']})" if isinstance(data.get("quant_algo"), str) else ""
        raise UserError(
            f"quantization_config.quant_method is {data.get('quant_method')!r}{algorithm}: a format {UNREAD}"
        )
    names = {f.name for f in dataclasses.fields(QuantizationConfig)}
    values = {k: v for k, v in data.items() if k in names and v is not None}
    if isinstance(values.get("weight_block_size"), list):
        values["weight_block_size"] = tuple(values["weight_block_size"])
    return QuantizationConfig(**values)


_POSITIVE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "n_group",
    "topk_group", "moe_layer_freq", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    "max_position_embeddings",
)  # fmt: skip
_NOT_NEGATIVE = (
    "num_nextn_predict_layers", "n_routed_experts", "n_shared_experts", "first_k_dense_replace",
    "moe_intermediate_size", "num_experts_per_tok",
)  # fmt: skip
_PLAIN = tuple(
    f.name for f in dataclasses.fields(ModelConfig) if f.name not in ("rope_scaling", "quantization", "extra")
)
_FIXED = {"rope_interleave": True, "mlp_bias": False}  # fields that would change the function, and their one value
_NULLABLE = ("q_lora_rank", "bos_token_id", "pad_token_id")
_NULL_IS_DEFAULT = {"deepseek_v2": ("eos_token_id", "torch_dtype", "n_group", "topk_group")}  # V2-Lite has no groups
_KNOWN = {
    *_PLAIN, "rope_scaling", "rope_parameters", "quantization_config", "architectures", "num_key_value_heads",
    "num_mtp_layers", "dtype", "auto_map", "head_dim", "qk_head_dim", "transformers_version",
}  # fmt: skip
_V2_DEFAULTS: dict[str, Any] = {
    "num_nextn_predict_layers": 0, "scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False,
    "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "n_shared_experts": 2, "n_routed_experts": 64,
    "first_k_dense_replace": 0, "num_experts_per_tok": 6, "moe_intermediate_size": 1407,
    "bos_token_id": None, "eos_token_id": (),
}  # fmt: skip
