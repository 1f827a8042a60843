"""Sources for conversions, and what is in a folder afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from checkpoint_models import files, make_model
from safetensors.torch import load_file

from fathom.checkpoint.writer import save_model
from fathom.config import ModelConfig

SHARD = 1_500_000


def saved(folder: Path, config: ModelConfig, **options: Any) -> Path:
    save_model(make_model(config), folder, max_shard_bytes=SHARD, **options)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "generation_config.json").write_text("{}")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if name != ".fathom-convert.json"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        out |= load_file(path)
    return out


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
