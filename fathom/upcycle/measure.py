"""The result beside the original, on text that nothing was fitted to: loss, distance of the distributions, agreement.

The result is read back from its folder, one block at a time, and computed in FP32 from the weights as they are stored:
what is measured is the conversion and the rounding, not an engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.checkpoint.reader import fill_part
from fathom.config import ModelConfig
from fathom.kernels.ops import pick
from fathom.model.block import Block
from fathom.model.rope import rotation
from fathom.runtime import progress

CHUNK = 512  # positions whose logits are in memory at a time


@dataclass(frozen=True)
class Comparison:
    """In nats a token."""

    tokens: int
    row: int  # tokens
    original: float
    result: float
    divergence: float  # KL(original || result)
    same_choice: float  # share of positions with the same likeliest token
    original_end: float  # the two losses on the last quarter of each row
    result_end: float


@torch.no_grad()
def result_hidden(folder: Path, rows: Tensor) -> Tensor:
    """Hidden states [N, T, D] after the final norm of the checkpoint in `folder`, FP32."""
    config = ModelConfig.from_pretrained(folder)
    embedding = _read(folder, {"embed_tokens.weight": (config.vocab_size, config.hidden_size)})["embed_tokens.weight"]
    h, rope = embedding[rows], rotation(config, torch.arange(rows.shape[1]))
    del embedding
    with progress("measuring", config.num_hidden_layers, unit="layers") as bar:
        for index in range(config.num_hidden_layers):
            block = Block(config, index, pick(), torch.device("cpu")).eval()
            tensors = dict(block.named_parameters()) | dict(block.named_buffers())
            fill_part(folder, {f"layers.{index}.{name}": t for name, t in tensors.items()}, {})
            for row in range(len(h)):
                h[row : row + 1] = block(h[row : row + 1], rope)
            bar.advance(1)
    norm = _read(folder, {"norm.weight": (config.hidden_size,)})["norm.weight"]
    return F.rms_norm(h, norm.shape, norm, config.rms_norm_eps)


def result_head(folder: Path) -> Tensor:
    """The output matrix [V, D], FP32."""
    config = ModelConfig.from_pretrained(folder)
    name = "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return _read(folder, {name: (config.vocab_size, config.hidden_size)})[name]


def _read(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    fill_part(folder, tensors, {})
    return tensors


@torch.no_grad()
def compare(
    rows: Tensor, original_h: Tensor, original_head: Tensor, result_h: Tensor, result_head: Tensor
) -> Comparison:
    """Rows [N, T] of token ids, hidden states [N, T, D] after the final norm, heads [V, D]."""
    count, length = rows.shape
    losses = torch.zeros(2, count, length - 1, dtype=torch.float64)
    divergence, same = torch.zeros(2, count, length - 1, dtype=torch.float64)
    for row in range(count):
        for start in range(0, length - 1, CHUNK):
            at = slice(start, min(start + CHUNK, length - 1))
            p = (original_h[row, at] @ original_head.T).log_softmax(-1)
            q = (result_h[row, at] @ result_head.T).log_softmax(-1)
            following = rows[row, at.start + 1 : at.stop + 1]
            for i, x in enumerate((p, q)):
                losses[i, row, at] = F.nll_loss(x, following, reduction="none").double()
            divergence[row, at] = (p.exp() * (p - q)).sum(-1).double()
            same[row, at] = (p.argmax(-1) == q.argmax(-1)).double()
    ends = losses[:, :, -(length // 4) :].mean((1, 2)).tolist()
    means = [*losses.mean((1, 2)).tolist(), divergence.mean().item(), same.mean().item()]
    return Comparison(rows.numel(), length, *means, *ends)
