"""A difference file laid over a checkpoint: the sum is the checkpoint that it was taken from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import V3, make_model
from torch import Tensor

from fathom.checkpoint.inspect import inspect
from fathom.checkpoint.reader import load_model
from fathom.checkpoint.safetensors_io import read_header
from fathom.checkpoint.writer import save_model
from fathom.models.overlay import overlay
from fathom.models.registry import SMOL
from fathom.runtime import UserError


def made(folder: Path, seed: int, dtype: str, *, max_shard_bytes: int = 2**30, depth: int = 1) -> dict[str, Tensor]:
    """A checkpoint of random weights, and its tensors by name."""
    model = make_model(V3.replace(num_nextn_predict_layers=depth), seed)
    save_model(model, folder, dtype=dtype, max_shard_bytes=max_shard_bytes, mtp_copies=False)  # type: ignore[arg-type]
    tensors: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def trained_part(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Routed experts, routers and the MTP layer."""
    return {k: v for k, v in tensors.items() if ".mlp.experts." in k or ".mlp.gate." in k or ".layers.3." in k}


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("base_dtype", ["bf16", "fp8"])
@pytest.mark.parametrize("delta_dtype", ["bf16", "fp8"])
def test_base_and_difference_make_the_whole(tmp_path: Path, base_dtype: str, delta_dtype: str) -> None:
    stored = made(tmp_path / "stored", 1, delta_dtype)
    if (delta_dtype, base_dtype) == ("fp8", "bf16"):  # what FP8 weights become in BF16
        save_model(load_model(tmp_path / "stored", dtype="float32"), tmp_path / "trained", mtp_copies=False)
        trained = load_file(tmp_path / "trained" / "model.safetensors")
    else:
        trained = made(tmp_path / "trained", 1, base_dtype)
    base = made(tmp_path / "base", 0, base_dtype, max_shard_bytes=20_000, depth=0)
    save_file(trained_part(stored), tmp_path / "delta.safetensors")
    overlay(tmp_path / "base", tmp_path / "delta.safetensors")
    assert [p.name for p in (tmp_path / "base").glob("*.safetensors*")] == ["model.safetensors"]
    result, differs = load_file(tmp_path / "base" / "model.safetensors"), trained_part(trained)
    assert result.keys() == trained.keys() and len(differs) < len(trained)
    for name, tensor in result.items():
        assert same(tensor, differs[name] if name in differs else base[name]), name
    assert inspect(tmp_path / "base").problems == []
    assert len(load_model(tmp_path / "base").mtp) == 1


NORM, EXPERT = "model.norm.weight", "model.layers.1.mlp.experts.0.up_proj.weight"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({NORM: torch.zeros(7)}, "holds model.norm.weight as [7], the model has [48]"),
        ({"model.layers.1.nonsense": torch.zeros(7)}, "the model has none of that name"),
        ({EXPERT: torch.zeros(24, 48, dtype=torch.float8_e4m3fn)}, "not the scales that go with it"),
    ],
)
def test_a_difference_of_another_model_is_refused(tmp_path: Path, wrong: dict[str, Tensor], words: str) -> None:
    made(tmp_path / "base", 0, "bf16")
    save_file(wrong, tmp_path / "delta.safetensors")
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    with pytest.raises(UserError) as caught:
        overlay(tmp_path / "base", tmp_path / "delta.safetensors")
    assert words in str(caught.value)
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before


def test_half_an_mtp_layer_does_not_pass_for_one(tmp_path: Path) -> None:
    stored = made(tmp_path / "stored", 1, "bf16")
    made(tmp_path / "base", 0, "bf16", depth=0)
    part = {name: tensor for name, tensor in trained_part(stored).items() if not name.endswith("eh_proj.weight")}
    save_file(part, tmp_path / "delta.safetensors")
    overlay(tmp_path / "base", tmp_path / "delta.safetensors")
    with pytest.raises(UserError, match=r"eh_proj.weight is missing"):
        load_model(tmp_path / "base")


def test_what_ships_belongs_to_the_recipe() -> None:
    """smol's difference file: the experts and routers of every layer, and MTP, as large as the recipe makes them."""
    assert SMOL.recipe is not None
    options, file = SMOL.recipe.upcycle, SMOL.assets / "delta.safetensors"
    assert file.stat().st_size <= 30 * 2**20
    shapes = {name: info.shape for name, info in read_header(file).tensors.items() if not name.endswith("_scale_inv")}
    for layer in range(1, 31):  # 30: MTP
        mlp = f"model.layers.{layer}.mlp"
        assert shapes[f"{mlp}.gate.weight"] == (options.experts, 576)
        for expert in range(options.experts or 0):
            assert shapes[f"{mlp}.experts.{expert}.down_proj.weight"] == (576, options.expert_width)
    rest = {name for name in shapes if ".experts." not in name and ".mlp.gate." not in name}
    assert rest and all(name.startswith("model.layers.30.") for name in rest), "the original's weights are not in it"
