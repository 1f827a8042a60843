"""Folders and GGUF files of the same model are the same source, and compute what transformers computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from llama_files import TEMPLATE, gguf_entries, gguf_tensors, plain_logits, tiny, write_folder, write_gguf

from fathom.runtime import UserError
from fathom.text.chat import ChatTemplate
from fathom.text.tokenizer import Tokenizer
from fathom.upcycle.gguf_file import READABLE, read_gguf
from fathom.upcycle.llama_config import expected_shapes
from fathom.upcycle.open import open_source
from fathom.upcycle.rotary_rows import adjacent_pairs

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"head_dim": 24, "num_key_value_heads": 4}),
    ("mistral", {"num_key_value_heads": 1}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True}),
]


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.double()(ids[None]).logits[0]


@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
def test_a_folder_computes_what_transformers_computes(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    model = tiny(kind, **changes)
    source = open_source(write_folder(tmp_path, model))
    assert set(source.names()) == set(expected_shapes(source.config))
    ids = torch.randint(0, 320, (40,))
    torch.testing.assert_close(plain_logits(source, ids), _logits(model, ids), rtol=1e-4, atol=1e-5)
    source.close()


@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
def test_a_gguf_file_gives_the_same_tensors_as_the_folder(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    model = tiny(kind, **changes)
    arch = "llama" if kind == "mistral" else kind
    entries = gguf_entries(arch, model.config)
    if "head_dim" in changes:
        entries |= {f"{arch}.attention.key_length": 24, f"{arch}.attention.value_length": 24}
    folder = open_source(write_folder(tmp_path / "hf", model))
    file = open_source(write_gguf(tmp_path / "m.gguf", arch, entries, gguf_tensors(arch, model)))
    assert set(file.names()) == set(folder.names())
    for name in folder.names():
        assert torch.equal(file.tensor(name), folder.tensor(name)), name
    same = [f for f in vars(folder.config) if f != "model_type"]
    assert [getattr(file.config, f) for f in same] == [getattr(folder.config, f) for f in same]
    assert (file.name, file.licence, file.origin) == ("Tiny", "apache-2.0", "m.gguf, https://example.org/tiny")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folder_of_shards_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny().to(dtype)
    source = open_source(write_folder(tmp_path, model, max_shard_size="100KB"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(source.tensor(name), model.state_dict()[name].float())


def test_rows_for_adjacent_pairs() -> None:
    assert adjacent_pairs(torch.arange(12), 6).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize("kind", READABLE)
def test_every_type_of_gguf_is_read_as_the_library_reads_it(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces, too. The library cannot quantise to K types: there any bytes are as good."""
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.gguf_writer import GGUFWriter

    from fathom.checkpoint.safetensors_io import FileReader

    monkeypatch.setattr("fathom.upcycle.gguf_file.PIECE", 1024)
    type_ = GGMLQuantizationType[kind]
    torch.manual_seed(0)
    try:
        raw = quantize(torch.randn(7, 512).numpy(), type_)
    except NotImplementedError:
        block, size = GGML_QUANT_SIZES[type_]
        raw = torch.randint(0, 60, (7, 512 // block * size), dtype=torch.uint8).numpy()
    path = tmp_path / "one.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("x", raw, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    with FileReader() as reader:
        values = file.read("x", reader)
    assert values.shape == (7, 512) and values.isfinite().all()
    assert values.numpy().tobytes() == dequantize(raw, type_).tobytes()


def test_the_header_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    model = tiny("qwen2")
    entries = gguf_entries("qwen2", model.config) | {"a.flag": True, "a.list": [1.5, 2.5], "general.alignment": 64}
    path = write_gguf(tmp_path / "m.gguf", "qwen2", entries, gguf_tensors("qwen2", model), "Q8_0")
    ours, theirs = read_gguf(path), GGUFReader(path)
    assert ours.entries == {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert {(t.name, t.offset, t.nbytes, t.kind, t.shape) for t in ours.tensors.values()} == {
        (t.name, t.data_offset, t.n_bytes, t.tensor_type.name, tuple(t.shape.tolist()[::-1])) for t in theirs.tensors
    }


def test_side_files_of_a_folder_are_copied(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path / "a", tiny()))
    (tmp_path / "b").mkdir()
    source.write_side_files(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_name_licence_and_origin_of_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "models--owner--tiny" / "snapshots" / "0123", tiny())
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: none\n")
    source = open_source(folder)
    assert (source.name, source.licence, source.origin) == (
        "owner/tiny", "apache-2.0", "https://huggingface.co/owner/tiny"
    )  # fmt: skip
    source = open_source(write_folder(tmp_path / "mine", tiny()))
    assert (source.name, source.licence, source.origin) == ("mine", "", "mine")


def test_side_files_of_a_gguf_file_serve_our_text_modules(tmp_path: Path) -> None:
    model = tiny()
    entries = gguf_entries("llama", model.config) | {"tokenizer.ggml.eot_token_id": 0}
    source = open_source(write_gguf(tmp_path / "m.gguf", "llama", entries, gguf_tensors("llama", model)))
    source.write_side_files(tmp_path)
    tokenizer, template = Tokenizer.from_pretrained(tmp_path), ChatTemplate.from_pretrained(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (1, (2, 0), False)
    assert source.config.eos_token_id == (2, 0)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 2
    }  # fmt: skip
    assert template.source == TEMPLATE == json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"]
    assert template.render([{"role": "user", "content": "hi"}]) == "<|im_start|>user\nhi<|im_end|>\n"


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, tiny()))
    with pytest.raises(UserError, match=r"has no tensor model\.layers\.9"):
        source.tensor("model.layers.9.mlp.up_proj.weight")
