"""A folder in Hugging Face layout with a Llama-type model as a Source.

Three architectures are one function here: llama, mistral (without its sliding window) and qwen2 (biases on q, k and v).
What a config.json leaves out has the default that transformers gives it. transformers 5 writes the rotary base into
`rope_parameters`, older files have `rope_theta` and `rope_scaling`; both are read.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.checkpoint.layout import Found, read_hf
from fathom.checkpoint.safetensors_io import DTYPE_NAMES, FileReader
from fathom.checkpoint.sources import row_chunks
from fathom.runtime import UserError, atomic_write, read_json
from fathom.text.tokenizer import Tokenizer, optional_json
from fathom.upcycle.llama_config import (
    check_tensors,
    make_config,
    refuse_architecture,
    scaled_rope,
    shown,
    sliding_window,
)  # fmt: skip
from fathom.upcycle.rotary_rows import adjacent_pairs
from fathom.upcycle.source import LlamaConfig

SIDE_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
_REQUIRED = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# what transformers takes where a config is silent: sliding_window, and qwen2's first layer that uses it
_DEFAULT_WINDOW, _DEFAULT_FIRST = 4096, 28


class HfSource:
    """See source.Source."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._reader = folder, FileReader()
        raw = read_json(folder / "config.json")
        if not isinstance(raw, dict):
            raise UserError(f"{folder / 'config.json'} must hold a JSON object; download it again")
        _refuse(folder, raw)
        found = read_hf(folder, self._reader)
        self._tensors = _tensors(folder, found)
        self.files = tuple(header.path for header in found.headers)
        self.config = _config(folder, raw, optional_json(folder / "generation_config.json"), set(self._tensors))
        check_tensors(folder, self.config, {name: source.shape for name, source in self._tensors.items()})
        self.name, self.origin = _names(folder)
        self.licence = _licence(folder)

    def tensor(self, name: str) -> Tensor:
        """FP32 values; UserError when there is no such tensor."""
        if name not in self._tensors:
            raise UserError(f"{self._folder} has no tensor {name}; download the complete checkpoint")
        source = self._tensors[name]
        values = torch.empty(source.shape, dtype=torch.float32)
        for start, stop in row_chunks(source):
            values[start:stop] = source.rows(start, stop)
        return adjacent_pairs(values, self.config.head_dim) if ".q_proj." in name or ".k_proj." in name else values

    def names(self) -> Iterator[str]:
        """All tensors there are."""
        return iter(self._tensors)

    def write_side_files(self, folder: Path) -> None:
        """The files of the folder, byte for byte."""
        for name in SIDE_FILES:
            if (self._folder / name).exists():
                with atomic_write(folder / name) as temporary:
                    shutil.copyfile(self._folder / name, temporary)

    def close(self) -> None:
        """Close the files."""
        self._reader.__exit__()


def _tensors(folder: Path, found: Found) -> dict[str, Any]:
    if found.problems:
        raise UserError(f"{folder}: {found.problems[0]}")
    tensors = {name: t for name, t in found.tensors.items() if not name.endswith(".rotary_emb.inv_freq")}
    for name, source in tensors.items():
        if source.dtype not in _FLOATS:
            raise UserError(
                f"{folder}: {name} is stored as {DTYPE_NAMES[source.dtype]}; only F32, F16 and BF16 are upcycled; "
                "take the model's unquantised files"
            )
    return tensors


def _refuse(folder: Path, raw: dict[str, Any]) -> None:
    """What a config may ask for and MLA cannot say."""
    kind = raw.get("model_type")
    refuse_architecture(folder, str(kind))
    quantised = raw.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UserError(
            f"{folder} is quantised ({shown(method)}); take the model's unquantised files, or a GGUF file of it"
        )
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(
            f"{folder}: hidden_act is {shown(raw['hidden_act'])}; DeepSeek-V3's FFN is SwiGLU (silu); take such a model"
        )
    for key, place in (("attention_bias", "the output projection"), ("mlp_bias", "the FFN")):
        if kind == "llama" and raw.get(key):
            raise UserError(f"{folder}: {key} puts a bias on {place}; MLA has no place for it; take a model without")
    _refuse_window(folder, raw)
    rope = raw.get("rope_parameters") or {}
    for values in (rope, raw.get("rope_scaling") or {}):
        if not isinstance(values, dict) or any(isinstance(v, dict) for v in values.values()):
            raise UserError(f"{folder}: its rotary embedding differs between layers; take a model with one for all")
        scaling = values.get("rope_type", values.get("type", "default"))
        if scaling != "default":
            raise scaled_rope(folder, scaling)
    partial = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise UserError(
            f"{folder}: only {shown(partial)} of each head is rotated; take a model that rotates whole heads"
        )


def _refuse_window(folder: Path, raw: dict[str, Any]) -> None:
    """A window that some layer uses and that is narrower than the context."""
    slides = raw["model_type"] == "mistral"
    if raw["model_type"] == "qwen2" and raw.get("use_sliding_window"):
        kinds, first = raw.get("layer_types"), raw.get("max_window_layers", _DEFAULT_FIRST)
        n_layers = raw.get("num_hidden_layers")
        full = isinstance(first, int) and isinstance(n_layers, int) and first >= n_layers
        slides = "sliding_attention" in kinds if isinstance(kinds, list) else not full
    window, context = raw.get("sliding_window", _DEFAULT_WINDOW), raw.get("max_position_embeddings")
    enough = isinstance(window, int) and isinstance(context, int) and window >= context
    if slides and window is not None and not enough:
        raise sliding_window(folder, window, context)


def _config(folder: Path, raw: dict[str, Any], generation: dict[str, Any], names: set[str]) -> LlamaConfig:
    heads, hidden = raw.get("num_attention_heads"), raw.get("hidden_size")
    even = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None
    rope = raw.get("rope_parameters") or {}
    tokenizer = _tokenizer(folder)
    pad = generation.get("pad_token_id", raw.get("pad_token_id"))
    values = {key: raw.get(key) for key in _REQUIRED}
    values |= {
        "num_key_value_heads": heads if raw.get("num_key_value_heads") is None else raw["num_key_value_heads"],
        "head_dim": even if raw.get("head_dim") is None else raw["head_dim"],
        "rope_theta": _number(rope.get("rope_theta", raw.get("rope_theta", 10000.0))),
        "rms_norm_eps": _number(raw.get("rms_norm_eps", 1e-6)),
        "tie_word_embeddings": "lm_head.weight" not in names and raw.get("tie_word_embeddings") is True,
        "qkv_bias": raw["model_type"] == "qwen2",
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_ids,
        "pad_token_id": pad if type(pad) is int and pad >= 0 else None,  # old files of Llama say -1
    }
    return make_config(folder, values)


def _number(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _tokenizer(folder: Path) -> Tokenizer:
    """The model's tokenizer, which also says where an answer ends."""
    if not (folder / "tokenizer.json").exists():
        raise UserError(
            f"{folder} has no tokenizer.json; make it with transformers: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    return Tokenizer.from_pretrained(folder)


def _names(folder: Path) -> tuple[str, str]:
    """(name, origin): a folder in the hub's cache tells both, any other has its own name."""
    for part in folder.resolve().parts:
        if part.startswith("models--"):
            hub = part.removeprefix("models--").replace("--", "/")
            return hub, f"https://huggingface.co/{hub}"
    return folder.resolve().name, folder.resolve().name


def _licence(folder: Path) -> str:
    """`license:` of the front matter of the model's card, "" where there is none."""
    card = folder / "README.md"
    if not card.exists():
        return ""
    with open(card, encoding="utf-8", errors="replace") as file:
        front = file.read(65_536).split("\n---", 1)[0]
    found = re.search(r"^license:[ \t]*([\w.+-]+)", front, re.MULTILINE) if front.startswith("---") else None
    return found[1] if found else ""
