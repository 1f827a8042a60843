"""A checkpoint of the V3 family as GGUF, so that llama.cpp computes the same function. Needs numpy and `gguf` only.

    python gguf_export.py FOLDER FILE [float32|bfloat16]

What llama.cpp's architecture "deepseek2" wants differently from the checkpoint:
 1. The experts of a layer are one tensor [expert, rows, columns].
 2. kv_b_proj is split per head into k_b, transposed to [head, latent, nope], and v_b [head, value, latent]. Attention
    is always absorbed: the cache has one "head" whose key is latent + rope and whose value is the latent.
 3. Key and value lengths are those of that absorbed head; the real ones go to the fields that end in _mla.
 4. Vectors and the router are FP32 whatever the matrices are.
MTP layers are left out; llama.cpp does not draft with them here. The tokenizer's own merges and tokens are stored, with
llama.cpp's splitting rules for DeepSeek-V3. The input is a BF16 or FP32 checkpoint.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ARCHITECTURE = "deepseek2"
TOP = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
PART = {  # of a layer; experts, kv_b_proj and the router bias are special
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
FILE_TYPE = {"float32": gguf.LlamaFileType.ALL_F32, "bfloat16": gguf.LlamaFileType.MOSTLY_BF16}
MATRIX = {"float32": gguf.GGMLQuantizationType.F32, "bfloat16": gguf.GGMLQuantizationType.BF16}


def export(folder: Path, file: Path, dtype: str) -> None:
    """Write the GGUF file."""
    config = json.loads((folder / "config.json").read_text())
    if config.get("quantization_config"):
        raise ValueError("FP8 weights are not exported; give a BF16 checkpoint")
    writer = gguf.GGUFWriter(file, ARCHITECTURE)
    _describe(writer, config)
    writer.add_file_type(FILE_TYPE[dtype])
    _tokenizer(writer, config, json.loads((folder / "tokenizer.json").read_text()))
    for name, value in _tensors(config, _read(folder)):
        kind = MATRIX[dtype] if value.ndim > 1 and "ffn_gate_inp" not in name else MATRIX["float32"]
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(value), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, c: dict[str, Any]) -> None:
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_leading_dense_block_count(c["first_k_dense_replace"])
    writer.add_vocab_size(c["vocab_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    # attention (point 3)
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(1)
    if c["q_lora_rank"] is not None:
        writer.add_q_lora_rank(c["q_lora_rank"])
    writer.add_kv_lora_rank(c["kv_lora_rank"])
    writer.add_key_length(c["kv_lora_rank"] + c["qk_rope_head_dim"])
    writer.add_value_length(c["kv_lora_rank"])
    writer.add_key_length_mla(c["qk_nope_head_dim"] + c["qk_rope_head_dim"])
    writer.add_value_length_mla(c["v_head_dim"])
    writer.add_rope_dimension_count(c["qk_rope_head_dim"])
    writer.add_rope_freq_base(c["rope_theta"])
    if yarn := c.get("rope_scaling"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(yarn["factor"])
        writer.add_rope_scaling_orig_ctx_len(yarn["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(yarn["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(yarn["beta_slow"])
        writer.add_rope_scaling_yarn_log_mul(0.1 * yarn["mscale_all_dim"])  # for this architecture times 0.1
    # experts
    writer.add_expert_feed_forward_length(c["moe_intermediate_size"])
    writer.add_expert_count(c["n_routed_experts"])
    writer.add_expert_used_count(c["num_experts_per_tok"])
    writer.add_expert_shared_count(c["n_shared_experts"])
    writer.add_expert_group_count(c["n_group"])
    writer.add_expert_group_used_count(c["topk_group"])
    writer.add_expert_weights_scale(c["routed_scaling_factor"])
    writer.add_expert_weights_norm(c["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _tokenizer(writer: Any, c: dict[str, Any], stored: dict[str, Any]) -> None:
    tokens = [f"[unused {i}]" for i in range(c["vocab_size"])]
    kinds = [gguf.TokenType.UNUSED] * len(tokens)
    for text, number in stored["model"]["vocab"].items():
        tokens[number], kinds[number] = text, gguf.TokenType.NORMAL
    for added in stored["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    merges = [each if isinstance(each, str) else " ".join(each) for each in stored["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-v3")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(c["bos_token_id"])
    eos = c["eos_token_id"]
    writer.add_eos_token_id(eos if isinstance(eos, int) else eos[0])


def _tensors(c: dict[str, Any], weights: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(GGUF name, FP32 values) of the main model."""
    for name, short in TOP.items():
        if name in weights:
            yield f"{short}.weight", weights[name]
    for layer in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for part, short in PART.items():
            if f"{prefix}{part}.weight" in weights:
                yield f"blk.{layer}.{short}.weight", weights[f"{prefix}{part}.weight"]
        kv_b = weights[f"{prefix}self_attn.kv_b_proj.weight"]
        per_head = kv_b.reshape(c["num_attention_heads"], -1, c["kv_lora_rank"])
        nope = c["qk_nope_head_dim"]
        yield f"blk.{layer}.attn_k_b.weight", per_head[:, :nope].transpose(0, 2, 1)
        yield f"blk.{layer}.attn_v_b.weight", per_head[:, nope:]
        bias = f"{prefix}mlp.gate.e_score_correction_bias"
        if bias in weights:
            yield f"blk.{layer}.exp_probs_b.bias", weights[bias]
            for kind in ("gate", "up", "down"):
                names = [f"{prefix}mlp.experts.{i}.{kind}_proj.weight" for i in range(c["n_routed_experts"])]
                yield f"blk.{layer}.ffn_{kind}_exps.weight", np.stack([weights[name] for name in names])


def _read(folder: Path) -> dict[str, Any]:
    """All tensors as FP32. numpy has no BF16, but BF16 is the upper half of FP32."""
    out = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = np.memmap(path, np.uint8, "r")
        start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
        for name, entry in json.loads(raw[8:start].tobytes()).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            data = raw[start + begin : start + end].tobytes()
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
            elif entry["dtype"] == "F32":
                values = np.frombuffer(data, np.float32)
            else:
                raise ValueError(f"{name} is stored as {entry['dtype']}; only BF16 and F32 are exported")
            out[name] = values.reshape(entry["shape"])
    return out


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "float32")
