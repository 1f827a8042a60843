"""The difference of two checkpoints holds what changed, no more, and gives the trained one when laid over the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_models import V3, make_model

from fathom.checkpoint.reader import load_model
from fathom.checkpoint.writer import save_model
from fathom.cli import main as cli
from fathom.models.difference import difference
from fathom.models.overlay import overlay
from fathom.runtime import UserError


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """(trained, base): the same model, of which one layer's experts and the MTP module are others; base without MTP."""
    base, trained = make_model(V3.replace(num_nextn_predict_layers=0), 0), make_model(V3, 1)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if name in dict(base.named_parameters()) and "layers.1.mlp.experts" not in name:
                parameter.copy_(dict(base.named_parameters())[name])
        for name, buffer in trained.named_buffers():
            if name in dict(base.named_buffers()):
                buffer.copy_(dict(base.named_buffers())[name])
    save_model(base, tmp_path / "base", dtype="bf16")
    save_model(trained, tmp_path / "trained", dtype="bf16")
    return tmp_path / "trained", tmp_path / "base"


def test_it_holds_what_changed_and_makes_the_trained_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    trained, base = folders
    count, size = difference(trained, base, tmp_path / "delta.safetensors", to="bf16")
    tensors = load_file(tmp_path / "delta.safetensors")
    assert len(tensors) == count and size == (tmp_path / "delta.safetensors").stat().st_size
    mine = ("layers.1.mlp.experts", "layers.3.", "layers.4.")
    assert [name for name in tensors if not any(part in name for part in mine)] == []
    assert not any("embed_tokens" in name or "shared_head.head" in name for name in tensors)
    overlay(base, tmp_path / "delta.safetensors")
    made, wanted = load_model(base), load_model(trained)
    for (name, a), (_, b) in zip(made.named_parameters(), wanted.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_command_writes_fp8(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained, base = folders
    file = tmp_path / "delta.safetensors"
    assert cli(["train", "difference", str(trained), str(base), "--to", str(file)]) == 0
    assert any(tensor.dtype == torch.float8_e4m3fn for tensor in load_file(file).values())
    assert cli(["train", "difference", str(trained), str(base), "--to", str(file)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_same_and_another_model_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    trained, base = folders
    with pytest.raises(UserError, match="nothing is written"):
        difference(base, base, tmp_path / "file")
    save_model(make_model(V3.replace(moe_intermediate_size=2 * V3.moe_intermediate_size), 2), tmp_path / "wide")
    with pytest.raises(UserError, match="started from"):
        difference(trained, tmp_path / "wide", tmp_path / "file")
    assert not (tmp_path / "file").exists()
