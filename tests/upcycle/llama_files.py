"""Tiny random Llama-type models, as folders and as GGUF files, and a plain definition of what they compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from fathom.upcycle.source import Source

CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEXT = ["the quick brown fox jumps over the lazy dog", "def f(x): return x + 1", "wörter über ähren, 12345 67 890"]
CONFIG: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_theta": 5000.0, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 2, "rms_norm_eps": 1e-5,
}  # fmt: skip


def tiny(kind: str = "llama", **changes: Any) -> Any:
    """A random model of transformers in FP32 with norm gains and biases that do something."""
    torch.manual_seed(3)
    values = CONFIG | ({"sliding_window": None} if kind == "mistral" else {}) | changes
    config = getattr(transformers, f"{CLASSES[kind]}Config")(**values)
    model = getattr(transformers, f"{CLASSES[kind]}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.15 + ("norm" in name))
    return model


def byte_bpe() -> Tokenizer:
    """Three control tokens, all bytes, some merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT * 3, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    return tokenizer


def write_folder(folder: Path, model: Any, **save: Any) -> Path:
    """As save_pretrained writes it, with a tokenizer."""
    model.save_pretrained(folder, **save)
    byte_bpe().save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Set keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def gguf_entries(arch: str, config: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes about the model."""
    spec = json.loads(byte_bpe().to_str())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].get)
    return {
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.rope.freq_base": 5000.0,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.vocab_size": config.vocab_size,
        "general.name": "Tiny",
        "general.license": "apache-2.0",
        "general.source.url": "https://example.org/tiny",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": [" ".join(m) for m in spec["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def gguf_tensors(arch: str, model: Any) -> dict[str, Tensor]:
    """The tensors under llama.cpp's names, q and k of `llama` reordered as its converter does."""
    short = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    tensors = {}
    for name, value in model.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if arch == "llama" and (n := heads.get(stem.rpartition(".")[2])):  # LlamaModel.permute of convert_hf_to_gguf.py
            value = value.reshape(n, 2, value.shape[0] // n // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        if stem.startswith("model.layers."):
            _, _, i, rest = stem.split(".", 3)
            tensors[f"blk.{i}.{short[rest]}.{leaf}"] = value
        else:
            tensors[f"{top[stem]}.{leaf}"] = value
    return tensors


def write_gguf(path: Path, arch: str, entries: dict[str, Any], tensors: dict[str, Tensor], kind: str = "F32") -> Path:
    """A GGUF file; matrices in `kind`, the rest in F32, as the converter and the quantiser do."""
    writer = GGUFWriter(path, arch)
    for key, value in entries.items():
        if key == "general.alignment":
            writer.add_custom_alignment(value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_string(key, value)
    for name, tensor in tensors.items():
        type_ = GGMLQuantizationType[kind if tensor.dim() > 1 else "F32"]
        writer.add_tensor(name, quantize(tensor.numpy(), type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def plain_logits(source: Source, ids: Tensor) -> Tensor:
    """[tokens] -> [tokens, vocabulary] in float64: Llama by definition, with rotary pairs that lie side by side."""
    c = source.config

    def get(name: str) -> Tensor:
        return source.tensor(name).double()

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + c.rms_norm_eps).rsqrt() * get(f"{name}.weight")

    def linear(x: Tensor, name: str) -> Tensor:
        y = x @ get(f"{name}.weight").T
        return y + get(f"{name}.bias") if c.qkv_bias and name[-6:] in ("q_proj", "k_proj", "v_proj") else y

    angles = torch.outer(
        torch.arange(len(ids)), c.rope_theta ** (-torch.arange(0, c.head_dim, 2).double() / c.head_dim)
    )
    turn = torch.polar(torch.ones_like(angles), angles)  # [tokens, head_dim / 2]

    def heads(x: Tensor) -> Tensor:  # [heads, tokens, head_dim]
        return x.view(len(ids), -1, c.head_dim).transpose(0, 1)

    def rotate(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turn).flatten(-2)

    x = get("model.embed_tokens.weight")[ids]
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}."
        y = norm(x, at + "input_layernorm")
        q, k, v = (heads(linear(y, f"{at}self_attn.{n}_proj")) for n in "qkv")
        k, v = (t.repeat_interleave(c.num_attention_heads // c.num_key_value_heads, 0) for t in (rotate(k), v))
        mixed = torch.nn.functional.scaled_dot_product_attention(rotate(q), k, v, is_causal=True)
        x = x + linear(mixed.transpose(0, 1).reshape(len(ids), -1), at + "self_attn.o_proj")
        y = norm(x, at + "post_attention_layernorm")
        gated = torch.nn.functional.silu(linear(y, at + "mlp.gate_proj")) * linear(y, at + "mlp.up_proj")
        x = x + linear(gated, at + "mlp.down_proj")
    head = "model.embed_tokens" if c.tie_word_embeddings else "lm_head"
    return linear(norm(x, "model.norm"), head)
