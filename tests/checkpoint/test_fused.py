"""Experts stacked as transformers 5 saves them with `save_original_format=False`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_models import TINY_V3, make_model, state
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3ForCausalLM

from fathom.checkpoint.convert import convert
from fathom.checkpoint.inspect import inspect
from fathom.checkpoint.plan import Options
from fathom.checkpoint.reader import load_model
from fathom.checkpoint.writer import save_model
from fathom.runtime import UserError


@pytest.fixture
def stacked(tmp_path: Path) -> Path:
    """A model, through transformers, in its own form: shards with an index."""
    save_model(make_model(TINY_V3.replace(num_nextn_predict_layers=0)), tmp_path / "plain", dtype="fp32")
    theirs = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "stacked", save_original_format=False, max_shard_size="500KB")
    return tmp_path / "stacked"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_transformers_stacks_load_and_convert(stacked: Path, tmp_path: Path) -> None:
    names = tensors(stacked)
    assert "model.layers.1.mlp.experts.gate_up_proj" in names and not any(".experts.0." in name for name in names)
    assert not inspect(stacked).problems and not inspect(stacked).notes
    plain, loaded = state(load_model(tmp_path / "plain")), state(load_model(stacked))
    assert plain.keys() == loaded.keys() and all(torch.equal(plain[name], loaded[name]) for name in plain)
    convert(stacked, tmp_path / "back", Options("fp32"))
    again, before = (tensors(tmp_path / folder) for folder in ("back", "plain"))
    assert again.keys() == before.keys() and all(torch.equal(again[name], before[name]) for name in before)


def test_stacks_in_fp8_bring_their_scales(tmp_path: Path) -> None:
    config = TINY_V3.replace(moe_intermediate_size=128, hidden_size=256)
    save_model(make_model(config), tmp_path, dtype="fp8")
    whole = state(load_model(tmp_path))
    content = load_file(tmp_path / "model.safetensors")
    stacked = {name: tensor for name, tensor in content.items() if ".mlp.experts." not in name}
    for layer in (1, 2, 3):
        for suffix in ("", "_scale_inv"):
            names = [f"model.layers.{layer}.mlp.experts.{e}.{{}}_proj.weight{suffix}" for e in range(8)]
            prefix = f"model.layers.{layer}.mlp.experts."
            stacked[f"{prefix}gate_up_proj{suffix}"] = torch.stack(
                [torch.cat([content[n.format(part)].view(torch.uint8) for part in ("gate", "up")]) for n in names]
            ).view(content[names[0].format("up")].dtype)
            stacked[f"{prefix}down_proj{suffix}"] = torch.stack([content[n.format("down")] for n in names])
    save_file(stacked, tmp_path / "model.safetensors")
    loaded = state(load_model(tmp_path))
    assert all(torch.equal(whole[name], loaded[name]) for name in whole)


def test_a_stack_beside_its_own_matrices_is_refused(tmp_path: Path) -> None:
    save_model(make_model(TINY_V3), tmp_path)
    content = load_file(tmp_path / "model.safetensors")
    content["model.layers.1.mlp.experts.down_proj"] = torch.zeros(8, 144, 72, dtype=torch.bfloat16)
    save_file(content, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"experts\.0\.down_proj\.weight is there twice"):
        load_model(tmp_path)
