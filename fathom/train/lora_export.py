"""Trained adapters leave a run: added to their weights, row by row, or as a folder in PEFT's format.

    merged    W + (alpha / r) B A in FP32, then stored as any other weight
    PEFT      adapter_config.json and adapter_model.safetensors, whose names are those of Hugging Face's modules:
              base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight

PEFT (0.21, with transformers 5) takes everything called gate_proj, up_proj or down_proj in a DeepSeek-V3 for its fused
experts, shared experts and dense layers too, and has no name for adapters of each expert of a stack. So runs that adapt
attention alone can be exported in its format; others are exported merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fathom.checkpoint.names import Slot, expected
from fathom.checkpoint.safetensors_io import Entry, TensorWriter
from fathom.checkpoint.sources import Source
from fathom.checkpoint.store_reader import Reader
from fathom.config import ModelConfig
from fathom.parallel.piece import Piece
from fathom.runtime import UserError, atomic_write, require_disk, write_json
from fathom.train.config import LoraConfig
from fathom.train.lora import adapters_of


@dataclass(frozen=True)
class Adapters:
    """The adapters of a run's checkpoint; `kind`: "model", or "ema" for their average."""

    reader: Reader
    scale: float
    kind: str

    @classmethod
    def of(cls, reader: Reader, lora: LoraConfig, kind: str) -> Adapters:
        """Those of an opened checkpoint; a run without has none to add."""
        return cls(reader, lora.alpha / lora.rank if lora.rank else 0.0, kind)

    def of_parameter(self, name: str) -> tuple[Tensor, Tensor] | None:
        """(A, B) of a parameter of the model."""
        a, b = (f"{self.kind}.{adapter}" for adapter in adapters_of(name))
        return (self._whole(a), self._whole(b)) if a in self.reader.tensors else None

    def _whole(self, name: str) -> Tensor:
        shape = self.reader.tensors[name][0].range.whole
        data = torch.empty(shape.numel())
        self.reader.fill(Piece(name, shape, 0, data))
        return data.view(shape)

    def added(self, slot: Slot, base: Source) -> Source:
        """The weight of a slot with its adapters, or `base` where there are none."""
        pair = self.of_parameter(slot.param)
        if pair is None:
            return base
        a, b = pair
        if slot.expert is not None:
            a, b = a[slot.expert], b[slot.expert, slot.start : slot.stop]
        return _Sum(base, a, b, self.scale)


@dataclass(frozen=True)
class _Sum:
    """A sources.Source: base + scale B A."""

    base: Source
    a: Tensor
    b: Tensor
    scale: float

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def rows(self, start: int, stop: int) -> Tensor:
        return self.base.rows(start, stop) + self.scale * (self.b[start:stop] @ self.a)


def export_adapters(reader: Reader, config: ModelConfig, lora: LoraConfig, base: str, folder: Path, kind: str) -> None:
    """Write the adapters of a checkpoint in PEFT's format; `base` is what they belong to."""
    if not lora.rank or lora.targets != ["attention"]:
        why = f"lora.targets is {lora.targets}, PEFT takes those of attention" if lora.rank else "lora.rank is 0"
        raise UserError(f"this run's adapters cannot be written alone: {why}; export it merged")
    if (folder / "config.json").exists():
        raise UserError(f"{folder} holds a model; choose another folder for the adapters")
    adapters, tensors, modules = Adapters.of(reader, lora, kind), {}, []
    for spec in expected(config).values():
        pair = adapters.of_parameter(spec.slot.param) if spec.slot is not None and spec.slot.expert is None else None
        if pair is not None:
            modules.append(spec.name.removesuffix(".weight"))
            for letter, tensor in zip("AB", pair, strict=True):
                tensors[f"base_model.model.{modules[-1]}.lora_{letter}.weight"] = tensor
    require_disk(folder, sum(t.nbytes for t in tensors.values()))
    entries = [Entry(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    with atomic_write(folder / "adapter_model.safetensors") as part, TensorWriter(part, entries) as writer:
        for name, tensor in tensors.items():
            writer.write(name, 0, tensor)
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": lora.rank,
        "lora_alpha": lora.alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "init_lora_weights": True, "inference_mode": True, "target_modules": modules,
    }  # fmt: skip
    write_json(folder / "adapter_config.json", settings)
