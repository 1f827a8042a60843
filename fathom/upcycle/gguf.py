"""One GGUF file of a Llama-type model as a Source.

llama.cpp's converter renames the tensors, and for the architecture `llama` (which Mistral goes by too) it also reorders
the rows of q and k to adjacent pairs. Qwen2's rows stay in halves, since llama.cpp rotates that architecture the other
way; they are reordered here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fathom.checkpoint.safetensors_io import FileReader
from fathom.runtime import UserError
from fathom.upcycle.gguf_file import GgufFile, read_gguf
from fathom.upcycle.gguf_tokenizer import token_id, tokenizer_files, vocabulary, write_tokenizer_files
from fathom.upcycle.llama_config import (
    check_tensors,
    make_config,
    refuse_architecture,
    scaled_rope,
    shown,
    sliding_window,
)
from fathom.upcycle.rotary_rows import adjacent_pairs
from fathom.upcycle.source import LlamaConfig

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip
_BLOCK_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class GgufSource:
    """See source.Source."""

    def __init__(self, path: Path) -> None:
        self._file = read_gguf(path)
        self.config = _config(self._file)
        self._names = {_our_name(name): name for name in self._file.tensors}
        check_tensors(path, self.config, {ours: self._file.tensors[name].shape for ours, name in self._names.items()})
        self._side_files = tokenizer_files(path, self._file.entries, self.config)
        self._reader = FileReader()
        entries = self._file.entries
        self.name = str(entries.get("general.name") or path.stem)
        self.licence = str(entries.get("general.license") or "")
        urls = [entries.get(f"general.{k}") for k in ("source.url", "repo_url", "url", "base_model.0.repo_url")]
        self.origin = ", ".join([path.name, *[str(url) for url in urls if url][:1]])
        self.files: tuple[Path, ...] = (path,)

    def tensor(self, name: str) -> Tensor:
        """FP32 values; UserError when there is no such tensor."""
        if name not in self._names:
            raise UserError(f"{self._file.path} has no tensor {name}; take a complete file of the model")
        values = self._file.read(self._names[name], self._reader)
        if self.config.model_type != "llama" and (".q_proj." in name or ".k_proj." in name):
            return adjacent_pairs(values, self.config.head_dim)
        return values

    def names(self) -> Iterator[str]:
        """All tensors there are."""
        return iter(self._names)

    def write_side_files(self, folder: Path) -> None:
        """Tokenizer, chat template and generation settings, rebuilt from the file's entries."""
        write_tokenizer_files(folder, self._side_files)

    def close(self) -> None:
        """Close the file."""
        self._reader.__exit__()


def _our_name(name: str) -> str:
    found = _BLOCK_NAME.fullmatch(name)
    if found and found[2] in _BLOCK:
        return f"model.layers.{int(found[1])}.{_BLOCK[found[2]]}.{found[3]}"
    return _TOP.get(name, name)


def _config(file: GgufFile) -> LlamaConfig:
    arch = file.entries.get("general.architecture")
    if not isinstance(arch, str):
        raise UserError(f"{file.path} does not say its architecture; take a GGUF file of a language model")
    refuse_architecture(file.path, arch)
    entries = {k.removeprefix(f"{arch}."): v for k, v in file.entries.items() if k.startswith(f"{arch}.")}
    _refuse_entries(file.path, entries)
    hidden, heads = (entries.get(key) for key in ("embedding_length", "attention.head_count"))
    even = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None
    head_dim = entries.get("attention.key_length", even)
    for key in ("attention.value_length", "rope.dimension_count"):
        if key in entries and entries[key] != head_dim:
            raise UserError(
                f"{file.path}: {key} is {shown(entries[key])}, a head of q and k has {shown(head_dim)}; "
                "upcycled are heads of one width that are rotated whole; take another model"
            )
    bos, pad, *ends = (token_id(file.path, file.entries, key) for key in ("bos", "padding", "eos", "eot", "eom"))
    values = {
        "model_type": arch,
        "vocab_size": entries.get("vocab_size", len(vocabulary(file.path, file.entries))),
        "hidden_size": hidden,
        "intermediate_size": entries.get("feed_forward_length"),
        "num_hidden_layers": entries.get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": entries.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rope_theta": entries.get("rope.freq_base", 10000.0),
        "rms_norm_eps": _decimal(entries.get("attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": entries.get("context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "qkv_bias": "blk.0.attn_q.bias" in file.tensors,
        "bos_token_id": bos,
        "eos_token_id": tuple(dict.fromkeys(i for i in ends if i is not None)),
        "pad_token_id": pad,
    }
    return make_config(file.path, values)


def _decimal(value: Any) -> float | None:
    """An FP32 number as the decimal that somebody wrote: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else None


def _refuse_entries(path: Path, entries: dict[str, Any]) -> None:
    """What llama.cpp reads about a model and MLA cannot say."""
    scaling = entries.get("rope.scaling.type", "none")
    factor = entries.get("rope.scaling.factor", entries.get("rope.scale_linear", 1.0))
    if scaling not in ("none", "", "linear") or factor not in (0.0, 1.0):
        raise scaled_rope(path, "linear" if scaling in ("none", "") else scaling)
    if entries.get("expert_count"):
        raise UserError(f"{path} is a mixture of {shown(entries['expert_count'])} experts; take a dense model")
    window, context = entries.get("attention.sliding_window"), entries.get("context_length")
    if window and not (isinstance(window, int) and isinstance(context, int) and window >= context):
        raise sliding_window(path, window, context)
    for key in ("attention.head_count_kv", "feed_forward_length", "attention.head_count"):
        if isinstance(entries.get(key), list):
            raise UserError(f"{path}: {key} differs from layer to layer; take a model whose layers are alike")
