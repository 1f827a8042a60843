"""What a run that trains chosen parts leaves out of its checkpoints: tensors of the checkpoint that it started from.

    RUN/checkpoints/step-N   what trains, and a note {path, fingerprint} of the base
    export                   both together, tensor by tensor; adapters are added to their matrices on the way

The fingerprint is made of the config, the headers and a sample of the values of every file: cheap for any size, and
other weights of the same shapes show. A base that is gone or changed is refused by resume and export alike.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.checkpoint.manifest import sample
from fathom.checkpoint.names import Slot
from fathom.checkpoint.reader import Checkpoint, open_checkpoint
from fathom.checkpoint.recipes import StoredWeight, read_scale
from fathom.kernels.reference import dequantize_blocks
from fathom.runtime import UserError


def fingerprint(folder: Path) -> str:
    """A short hash of a checkpoint's config, headers and a sample of its values."""
    with open_checkpoint(folder) as checkpoint:
        files = [[h.path.name, h.size, h.digest, sample(h.path, h.size)] for h in checkpoint.found.headers]
        config = hashlib.sha256(checkpoint.config_path.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([config, files]).encode()).hexdigest()[:32]


def note(folder: Path) -> dict[str, str]:
    """What a run's checkpoints say of their base."""
    return {"path": str(folder), "fingerprint": fingerprint(folder)}


def require(noted: dict[str, Any], now: dict[str, str]) -> None:
    """UserError unless the base is still the one that a run started from."""
    if noted["fingerprint"] != now["fingerprint"]:
        raise UserError(
            f"{now['path']} has changed since this run started from it; bring the old checkpoint back, or choose "
            "another run.out"
        )


@dataclass(frozen=True)
class Dequantised:
    """Rows of a stored weight as FP32: a sources.Source."""

    stored: StoredWeight

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.weight.shape

    def rows(self, start: int, stop: int) -> Tensor:
        w, high = self.stored, self.stored.block[0]
        if w.scale is None:
            return w.weight.rows(start, stop).float()
        first, last = start // high, -(-stop // high)  # whole blocks
        rows = w.weight.rows(first * high, min(last * high, self.shape[0]))
        scale = read_scale(w.spec.name, w.scale)[first:last]
        return dequantize_blocks(rows, scale, w.block, torch.float32)[start - first * high : stop - first * high]


class Base:
    """The opened base of a run. `with Base(note) as base`."""

    def __init__(self, noted: dict[str, Any]) -> None:
        folder = Path(noted["path"])
        if not folder.is_dir():
            raise UserError(f"{folder}, where this run started, is not there (seen from {Path.cwd()}); bring it back")
        require(noted, note(folder))
        self.checkpoint: Checkpoint = open_checkpoint(folder)
        self._by_slot = {w.spec.slot: w for w in self.checkpoint.weights.values() if w.spec.slot is not None}

    def __enter__(self) -> Base:
        return self

    def __exit__(self, *_: object) -> None:
        self.checkpoint.__exit__()

    def source(self, slot: Slot) -> Dequantised:
        """The values of a slot of the model."""
        if slot not in self._by_slot:
            raise UserError(f"neither the run's checkpoint nor {self.checkpoint.path} holds {slot.param}")
        return Dequantised(self._by_slot[slot])
