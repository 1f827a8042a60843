"""How sharded state is named, so that a checkpoint can be read back by any other layout.

Whatever a rank holds of a tensor, under every layout here, is a range of its elements in row-major order: whole
tensors, consecutive experts of a stack (ranges along the first axis) and ZeRO slices of flat buffers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """`data`, 1-D and contiguous, is elements start .. start + len(data) of the flattened tensor `name`."""

    name: str
    whole: torch.Size  # shape of the tensor as the model has it when nothing is sharded
    start: int
    data: Tensor

    def __post_init__(self) -> None:
        assert self.data.dim() == 1 and self.data.is_contiguous(), f"{self.name}: a piece is a flat range"
        assert self.start >= 0 and self.start + self.data.numel() <= self.whole.numel(), f"{self.name}: out of range"

    @property
    def end(self) -> int:
        """One past the last element."""
        return self.start + self.data.numel()
