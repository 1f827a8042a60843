"""Rows of q and k from rotary halves to adjacent pairs.

Hugging Face's Llama rotates value i of a head together with value i + head_dim/2, DeepSeek-V3 value 2i together with
2i + 1; both turn pair i by the angle position * theta^(-2i / head_dim). So the same head with its rows in the order
0, d/2, 1, d/2 + 1, ... is the same attention: a dot product does not see the order of its terms.
"""

from __future__ import annotations

from torch import Tensor


def adjacent_pairs(rows: Tensor, head_dim: int) -> Tensor:
    """[heads * head_dim, ...] (weight or bias) with halves -> the same with adjacent pairs."""
    halves = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)
