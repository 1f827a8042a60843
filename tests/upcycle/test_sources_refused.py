"""What cannot be upcycled is refused in one line that names the cause and what to do."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_files import change_config, gguf_entries, gguf_tensors, tiny, write_folder, write_gguf
from safetensors.torch import load_file, save_file

from fathom.runtime import UserError
from fathom.upcycle.open import open_source


def refused(path: Path, *words: str) -> None:
    """One line, soon, with these words in it."""
    started = time.perf_counter()
    with pytest.raises(UserError) as caught:
        open_source(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500, message
    assert str(path) in message, message
    for word in words:
        assert word in message, message
    assert time.perf_counter() - started < 2


@pytest.fixture(scope="module")
def folder_of() -> Callable[[Path, str], Path]:
    models = {kind: tiny(kind) for kind in ("llama", "mistral", "qwen2")}
    return lambda path, kind: write_folder(path, models[kind])


# ---- folders

CONFIGS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("llama", {"model_type": "gemma3"}, ["'gemma3'", "llama, mistral, qwen2"]),
    ("llama", {"model_type": "qwen3"}, ["norms each head of q and k", "take a model of"]),
    ("llama", {"model_type": None}, ["'None'", "llama, mistral, qwen2"]),
    ("mistral", {"sliding_window": 64}, ["last 64 of 128", "set max_position_embeddings"]),
    ("mistral", {"sliding_window": "x"}, ["last 'x' of 128", "sliding window"]),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 32, "layer_types": None, "max_window_layers": 1},
        ["last 32 of 128", "sliding window"],
    ),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 32, "layer_types": ["full_attention", "sliding_attention"]},
        ["last 32 of 128", "sliding window"],
    ),
    (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}},
        ["llama3", "take"],
    ),
    ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, ["linear", "take a model"]),
    (
        "qwen2",
        {"rope_parameters": None, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        ["yarn", "take a model"],
    ),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["differs between layers", "take"]),
    ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["only 0.5", "take"]),
    ("llama", {"attention_bias": True}, ["attention_bias", "output projection", "take"]),
    ("llama", {"mlp_bias": True}, ["mlp_bias", "FFN", "take"]),
    ("llama", {"hidden_act": "gelu"}, ["'gelu'", "SwiGLU", "take"]),
    ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantised ('gptq')", "unquantised"]),
    ("llama", {"hidden_size": 128}, ["shape [320, 64]", "[320, 128]", "take the config"]),
    ("llama", {"num_hidden_layers": 3}, ["lacks model.layers.2.", "and 6 more", "download"]),
    ("llama", {"num_hidden_layers": 1}, ["model.layers.1.", "not part"]),
    ("llama", {"num_hidden_layers": 10**9}, ["num_hidden_layers is 1000000000", "1024"]),
    ("llama", {"num_key_value_heads": 3}, ["4 query heads", "3 key heads"]),
    ("llama", {"num_attention_heads": 0}, ["num_attention_heads is 0"]),
    ("llama", {"vocab_size": "many"}, ["vocab_size is 'many'"]),
    ("llama", {"head_dim": 15}, ["head_dim is 15", "even"]),
    ("llama", {"rope_parameters": {"rope_theta": -1.0}}, ["rope_theta is -1.0"]),
    ("llama", {"rope_parameters": {"rope_theta": float("nan")}}, ["rope_theta is nan"]),
    ("llama", {"eos_token_id": 4000}, ["4000"]),
]


@pytest.mark.parametrize(("kind", "changes", "words"), CONFIGS)
def test_configs(
    tmp_path: Path, folder_of: Callable[[Path, str], Path], kind: str, changes: dict[str, Any], words: list[str]
) -> None:
    change_config(folder_of(tmp_path, kind), **changes)
    refused(tmp_path, *words)


def test_a_window_as_wide_as_the_context_is_no_window(tmp_path: Path, folder_of: Callable[[Path, str], Path]) -> None:
    change_config(folder_of(tmp_path / "a", "mistral"), sliding_window=128)
    change_config(folder_of(tmp_path / "b", "qwen2"), sliding_window=64, use_sliding_window=False)
    unused = {"use_sliding_window": True, "layer_types": None, "max_window_layers": 2}
    change_config(folder_of(tmp_path / "c", "qwen2"), sliding_window=64, **unused)
    for name in "abc":
        open_source(tmp_path / name).close()


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_config_values_of_any_type_are_never_a_traceback(
    tmp_path: Path, folder_of: Callable[[Path, str], Path], kind: str
) -> None:
    folder = folder_of(tmp_path, kind)
    original = json.loads((folder / "config.json").read_text())
    more = ["rope_scaling", "use_sliding_window", "head_dim", "quantization_config", "rope_theta"]
    for key in [*original, *more, "tie_word_embeddings", "partial_rotary_factor"]:
        for value in ("x", -1, 1e30, None, [1, "a"], {"rope_type": ["x"]}, {"rope_theta": "x"}):
            (folder / "config.json").write_text(json.dumps(original | {key: value}))
            try:
                open_source(folder).close()
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 500


def _without(folder: Path, name: str, replacement: torch.Tensor | None = None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name)
    if replacement is not None:
        tensors[name] = replacement
    save_file(tensors, folder / "model.safetensors")


def test_folders_with_something_amiss(tmp_path: Path, folder_of: Callable[[Path, str], Path]) -> None:
    def fresh() -> Path:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        return folder_of(path, "llama")

    refused(tmp_path / "nowhere", "does not exist", "give a folder")
    refused(tmp_path / ("x" * 300), "cannot be read", "check the path")
    (path := tmp_path / "empty").mkdir()
    refused(path, "config.json does not exist")
    (path := fresh()).joinpath("tokenizer.json").unlink()
    refused(path, "no tokenizer.json", "save_pretrained")
    (path := fresh()).joinpath("tokenizer.json").write_text("{}")
    refused(path, "not a tokenizer file")
    (path := fresh()).joinpath("model.safetensors").unlink()
    refused(path, "holds no safetensors checkpoint")
    (path / "pytorch_model.bin").touch()
    refused(path, "pickle", "convert it to safetensors")
    (path := fresh()).joinpath("config.json").write_text("[]")
    refused(path, "JSON object")
    path = fresh()
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(path, "truncated", "download it again")
    refused(file, "not a GGUF file", "folder of safetensors files")
    path = fresh()
    _without(path, "model.layers.1.mlp.up_proj.weight")
    refused(path, "lacks model.layers.1.mlp.up_proj.weight", "download it again")
    path = fresh()
    _without(path, "model.norm.weight", torch.ones(64, dtype=torch.int8))
    refused(path, "model.norm.weight is stored as I8", "unquantised")
    path = fresh()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    refused(path, "1 of 1 files are missing", "download the rest")


# ---- GGUF files


@pytest.fixture(scope="module")
def llama() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    model = tiny()
    return gguf_entries("llama", model.config), gguf_tensors("llama", model)


ENTRIES: list[tuple[dict[str, Any], list[str]]] = [
    ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, ["yarn", "take a model"]),
    ({"llama.rope.scale_linear": 2.0}, ["linear", "take a model"]),
    ({"llama.expert_count": 8}, ["8 experts", "dense"]),
    ({"llama.attention.sliding_window": 64}, ["last 64 of 128"]),
    ({"llama.attention.head_count_kv": [1, 2]}, ["differs from layer to layer"]),
    ({"llama.rope.dimension_count": 8}, ["rope.dimension_count is 8", "rotated whole"]),
    ({"llama.block_count": 3}, ["lacks model.layers.2."]),
    ({"llama.block_count": 0}, ["num_hidden_layers is 0"]),
    ({"llama.embedding_length": None}, ["hidden_size is None"]),
    ({"tokenizer.ggml.model": None}, ["brings no tokenizer"]),
    ({"tokenizer.ggml.model": "t5"}, ["'t5'", "Hugging Face folder"]),
    ({"tokenizer.ggml.pre": "falcon3"}, ["'falcon3'", "smollm", "Hugging Face folder"]),
    ({"tokenizer.ggml.pre": None}, ["does not say how", "smollm"]),
    ({"tokenizer.ggml.tokens": None}, ["brings no tokenizer"]),
    ({"tokenizer.ggml.merges": None}, ["no list of merges"]),
    ({"tokenizer.ggml.merges": ["xyzzy plugh"]}, ["does not hold together", "download"]),
    ({"tokenizer.ggml.token_type": [1, 2]}, ["2 token types", "download"]),
    ({"tokenizer.ggml.eos_token_id": 9999}, ["eos_token_id is 9999"]),
    ({"tokenizer.ggml.model": "llama"}, ["of 256 byte tokens", "Hugging Face folder"]),
    ({"llama.context_length": [7] * 1000}, ["max_position_embeddings is [7, 7"]),
    ({"split.count": 2}, ["2 parts", "llama-gguf-split --merge"]),
]


@pytest.mark.parametrize(("changes", "words"), ENTRIES)
def test_gguf_entries(tmp_path: Path, llama: Any, changes: dict[str, Any], words: list[str]) -> None:
    entries = {k: v for k, v in (llama[0] | changes).items() if v is not None}
    refused(write_gguf(tmp_path / "m.gguf", "llama", entries, llama[1]), *words)


@pytest.mark.parametrize("arch", ["qwen3", "gemma3", "deepseek2"])
def test_gguf_architectures(tmp_path: Path, llama: Any, arch: str) -> None:
    refused(write_gguf(tmp_path / "m.gguf", arch, llama[0], llama[1]), arch, "llama, mistral, qwen2")


def test_gguf_tensors(tmp_path: Path, llama: Any) -> None:
    entries, tensors = llama
    cases: list[tuple[dict[str, torch.Tensor], list[str]]] = [
        (tensors | {"rope_freqs.weight": torch.ones(8)}, ["rope_freqs.weight", "Llama 3.1"]),
        (tensors | {"blk.0.attn_output.bias": torch.ones(64)}, ["o_proj.bias", "no place"]),
        (tensors | {"blk.0.attn_q_norm.weight": torch.ones(16)}, ["q_norm.weight", "norms each head"]),
        ({k: v for k, v in tensors.items() if k != "output_norm.weight"}, ["lacks model.norm.weight"]),
    ]
    for number, (changed, words) in enumerate(cases):
        refused(write_gguf(tmp_path / f"{number}.gguf", "llama", entries, changed), *words)


def test_broken_gguf_files(tmp_path: Path, llama: Any) -> None:
    good = write_gguf(tmp_path / "good.gguf", "llama", *llama).read_bytes()

    def case(data: bytes, *words: str, name: str = "m.gguf") -> None:
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, *words)

    case(b"", "not a GGUF file")
    case(b"PK\x03\x04" + good[4:], "not a GGUF file", "give one")
    case(b"lmgg" + good[4:], "before GGUF")
    case(good[:4] + struct.pack("<I", 1) + good[8:], "version 1", "convert the model again")
    case(good[:4] + struct.pack(">I", 3) + good[8:], "big-endian")
    case(good[:100], "truncated within its header", "download it again")
    case(good[:-5000], "is truncated", "download it again")
    case(good[:8] + struct.pack("<Q", 2**60) + good[16:], "promises 1152921504606846976 tensors")
    case(good[:16] + struct.pack("<Q", 2**40) + good[24:], "promises 1099511627776 entries")
    case(good[:24] + struct.pack("<Q", 2**62) + good[32:], "bytes of text")
    tokens = good.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    case(good[:tokens] + struct.pack("<Q", 2**21) + good[tokens + 8 :], "items of an array")
    case(good[: tokens - 4] + struct.pack("<I", 9) + good[tokens:], "items of type number 9")
    name = good.index(b"token_embd.weight") + len(b"token_embd.weight")
    case(good[:name] + struct.pack("<I", 9) + good[name + 4 :], "9 dimensions")
    case(good[: name + 4] + struct.pack("<Q", 2**50) + good[name + 12 :], "has shape")
    case(good[: name + 20] + struct.pack("<I", 77) + good[name + 24 :], "has type 77")
    case(good[: name + 20] + struct.pack("<I", 26) + good[name + 24 :], "has type I32", "take such a file")
    case(good[: name + 20] + struct.pack("<I", 12) + good[name + 24 :], "blocks of its type")
    case(good[: name + 24] + struct.pack("<Q", 2**63) + good[name + 32 :], "is truncated")
    case(good, "part 2 of 3", "llama-gguf-split --merge", name="m-00002-of-00003.gguf")


def test_noise_in_a_header_is_never_a_traceback(tmp_path: Path, llama: Any) -> None:
    good = bytearray(write_gguf(tmp_path / "good.gguf", "llama", *llama).read_bytes())
    generator = torch.Generator().manual_seed(1)
    end = good.index(b"output.weight") + 64
    for _ in range(150):
        data = bytearray(good)
        for place in torch.randint(24, end, (3,), generator=generator).tolist():
            data[place] ^= int(torch.randint(1, 256, (1,), generator=generator))
        (tmp_path / "noise.gguf").write_bytes(data)
        try:
            source = open_source(tmp_path / "noise.gguf")
            for name in source.names():
                source.tensor(name)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("value", ["x", 3, 4294967295, float("nan"), True, [1, 2], [1.5], ["a", "b"]])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_entries_of_any_type_are_never_a_traceback(tmp_path: Path, llama: Any, kind: str, value: Any) -> None:
    more = [
        "rope.scaling.type",
        "rope.scaling.factor",
        "expert_count",
        "attention.sliding_window",
        "attention.key_length",
    ]
    entries = llama[0] | {"tokenizer.ggml.model": kind}
    for key in [*entries, *(f"llama.{k}" for k in more), "tokenizer.ggml.scores", "tokenizer.ggml.add_bos_token"]:
        try:
            open_source(write_gguf(tmp_path / "m.gguf", "llama", entries | {key: value}, llama[1])).close()
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
