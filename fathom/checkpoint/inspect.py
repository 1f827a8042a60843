"""What a checkpoint holds, from headers alone unless values are asked for: parts, parameters, dtypes, MTP, size, and
whatever is missing or odd.

Nothing raises here but an unreadable config: a damaged checkpoint is described, with its problems listed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fathom.checkpoint.check import Checked
from fathom.checkpoint.finite import not_finite
from fathom.checkpoint.layout import Found
from fathom.checkpoint.reader import examine
from fathom.checkpoint.recipes import StoredWeight, read_scale
from fathom.checkpoint.safetensors_io import DTYPE_NAMES, FileReader
from fathom.checkpoint.sources import row_chunks
from fathom.config import ARCHITECTURES
from fathom.model.cost import parameters
from fathom.runtime import UserError, progress

PARTS = ("embedding", "attention", "dense FFN", "routed experts", "shared experts", "gate", "norms", "head", "MTP")
FAMILIES = {"deepseek_v3": "DeepSeek-V3", "kimi_k2": "Kimi K2 (DeepSeek-V3)", "deepseek_v2": "DeepSeek-V2"}


@dataclass
class Part:
    """One row of the table. Scales count in bytes, not in parameters."""

    name: str
    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)  # parameters per dtype

    def add(self, stored: StoredWeight) -> None:
        """Count one weight with its scale."""
        weight, scale = stored.weight, stored.scale
        self.tensors += 1 + (scale is not None)
        self.parameters += stored.spec.numel
        self.bytes += stored.spec.numel * weight.dtype.itemsize
        name = DTYPE_NAMES[weight.dtype]
        self.dtypes[name] = self.dtypes.get(name, 0) + stored.spec.numel
        if scale is not None:
            self.bytes += scale.shape[0] * scale.shape[1] * scale.dtype.itemsize


@dataclass
class Report:
    """Everything `fathom inspect` prints."""

    path: str
    family: str
    architecture: str
    layout: str
    files: int
    bytes_on_disk: int
    parameters: int  # main model, as the config says
    activated: int  # head included, embedding lookup not
    mtp_parameters: int  # unique ones of the MTP modules, as the config says
    stored_parameters: int  # what the files hold, copies included
    parts: list[Part]
    quantization: dict[str, Any] | None
    mtp_layers: int
    mtp_copies: bool
    problems: list[str]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return dataclasses.asdict(self)


def inspect(folder: Path, deep: bool = False) -> Report:
    """Describe the checkpoint in `folder`; `deep` also reads all values and lists tensors with NaN or infinite ones."""
    with FileReader() as reader:
        found, checked = examine(folder, reader)
        numbers = _damaged(checked.weights.values()) if deep else []
    config, counted = checked.config, parameters(checked.config)
    parts = {name: Part(name) for name in PARTS}
    for stored in checked.weights.values():
        parts["MTP" if stored.spec.mtp else stored.spec.part].add(stored)
    return Report(
        path=str(folder),
        family=FAMILIES[config.model_type],
        architecture=ARCHITECTURES[config.model_type],
        layout=_layout(found),
        files=len(found.headers),
        bytes_on_disk=sum(h.size for h in found.headers),
        parameters=counted.total,
        activated=counted.activated,
        mtp_parameters=counted.mtp,
        stored_parameters=sum(part.parameters for part in parts.values()),
        parts=[part for part in parts.values() if part.tensors],
        quantization=config.quantization.to_dict() if config.quantization else None,
        mtp_layers=config.num_nextn_predict_layers,
        mtp_copies=any(w.spec.copy_of for w in checked.weights.values()),
        problems=checked.problems + numbers,
        notes=checked.notes + _odd(checked),
    )


def _damaged(weights: Iterable[StoredWeight]) -> list[str]:
    """A line for every tensor with NaN or infinite values or a bad scale. Reads everything."""
    weights, lines = list(weights), []
    with progress("reading", sum(w.spec.numel for w in weights), unit="parameters") as bar:
        for stored in weights:
            try:
                if stored.scale is not None:
                    read_scale(stored.spec.name, stored.scale)
            except UserError as error:
                lines.append(str(error).partition(";")[0])
            count = 0
            for start, stop in row_chunks(stored.weight):
                rows = stored.weight.rows(start, stop)
                count += not_finite(rows)
                bar.advance(rows.numel())
            if count:
                lines.append(f"{stored.spec.name} holds {count:,} NaN or infinite values of {stored.spec.numel:,}")
    return lines


def _layout(found: Found) -> str:
    return "Hugging Face" if found.layout == "hf" else f"official demo, {found.model_parallel} ranks"


def _odd(checked: Checked) -> list[str]:
    """What loads, but is not how the family is released."""
    notes = []
    weights = checked.weights.values()
    plain = [w for w in weights if w.spec.kind == "fp8" and w.scale is None]
    if checked.config.quantization and plain:
        notes.append(
            f"quantization_config is there, but {len(plain)} matrices are not FP8, such as {plain[0].spec.name}"
        )
    unusual = [w for w in weights if w.spec.kind != "fp8" and w.scale is not None]
    if unusual:
        notes.append(f"{len(unusual)} tensors are FP8 that usually are not, such as {unusual[0].spec.name}")
    narrow = [w for w in weights if w.spec.kind == "fp32" and w.weight.dtype != torch.float32]
    if narrow:
        dtype = DTYPE_NAMES[narrow[0].weight.dtype]
        notes.append(f"{len(narrow)} router biases are stored as {dtype}, which merges distinct values; FP32 is right")
    return notes
