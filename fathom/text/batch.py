"""What every data set hands out: one optimizer step's rows.

Shapes: B rows, T tokens per row. labels[b, t] is the token after tokens[b, t], or IGNORE.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]
IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """tokens, labels [B, T] int64; segments [B, T], each token's sample, where samples must not see each other."""

    tokens: Tensor
    labels: Tensor
    segments: Tensor | None = None

    def rows(self, start: int, end: int) -> Batch:
        """Some of its rows."""
        segments = None if self.segments is None else self.segments[start:end]
        return Batch(self.tokens[start:end], self.labels[start:end], segments)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        segments = None if self.segments is None else self.segments.to(device)
        return Batch(self.tokens.to(device), self.labels.to(device), segments)


def stack(batches: Sequence[Batch]) -> Batch:
    """One batch of all their rows. Rows without segments are one sample each."""
    segments = None
    if any(b.segments is not None for b in batches):
        segments = torch.cat([torch.zeros_like(b.tokens) if b.segments is None else b.segments for b in batches])
    return Batch(torch.cat([b.tokens for b in batches]), torch.cat([b.labels for b in batches]), segments)


def digest(batch: Batch) -> str:
    """Short hash of a batch's content, for logs and tests of determinism."""
    parts = [batch.tokens, batch.labels, *([] if batch.segments is None else [batch.segments])]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]
