"""Held-out bits per byte, the figure that does not depend on a tokenizer.

bits per byte = (mean -log2 p per token) * (tokens per byte of that source)

What runs the model is a function of a batch (`Nats`): one process, or all ranks of a training run together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.model.transformer import DeepseekV3
from fathom.runtime import read_json
from fathom.text.dataset import Batch, open_streams

Nats = Callable[[Batch], float]  # sum of -log p over a batch's labels
ROWS_AT_ONCE = 8


def nats_of(model: DeepseekV3) -> Nats:
    """For a whole model in this process."""
    device = model.embed_tokens.weight.device

    @torch.no_grad()
    def nats(batch: Batch) -> float:
        batch = batch.to(device)
        h = model.hidden(batch.tokens, segments=batch.segments)
        weight = model.lm_head.weight.float()
        return float(model.ops.linear_cross_entropy(h.flatten(0, 1).float(), weight, batch.labels.flatten()))

    return nats


def bits_per_byte(nats: Nats, folder: Path, *, rows: int, length: int) -> dict[str, float]:
    """Per source of the tokenised `folder`, over its first `rows` rows of `length` tokens; "mean" weighs by bytes."""
    meta: dict[str, Any] = read_json(folder / "meta.json")
    out: dict[str, float] = {}
    bits_sum = bytes_sum = 0.0
    for name, stream in open_streams(folder).items():
        count = min(rows, (len(stream) - 1) // length)
        starts = [row * length for row in range(count)] or [0]
        size = length if count else len(stream) - 1
        if size < 1:
            continue
        bits, tokens = 0.0, 0
        for first in range(0, len(starts), ROWS_AT_ONCE):
            ids = [np.asarray(stream[s : s + size + 1]).astype(np.int64) for s in starts[first : first + ROWS_AT_ONCE]]
            both = torch.from_numpy(np.stack(ids))
            bits += nats(Batch(both[:, :-1].contiguous(), both[:, 1:].contiguous())) / math.log(2)
            tokens += both.shape[0] * size
        source = meta["sources"][name]
        covered_bytes = tokens * source["bytes"] / source["tokens"]
        out[name] = bits / covered_bytes
        bits_sum += bits
        bytes_sum += covered_bytes
    out["mean"] = bits_sum / max(bytes_sum, 1e-9)
    return out
