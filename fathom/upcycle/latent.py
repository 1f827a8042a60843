"""Values (and what else need not turn) through MLA's latent, and what its norm does to them.

The latent is normed to root mean square 1 before W^UK and W^UV read it, which would change the values. Two ways round:
 exact     The latent is the normed hidden state x itself: with the input norm's gain folded into q, k and v its root
           mean square is 1 already, so the norm changes nothing. kv_lora_rank = hidden, the rows of kv_a are the
           identity, W^UV is the old W^V. The cache is hidden + R a token and layer. (The one thing that is not exact:
           norm(x) is 1 / sqrt(1 + eps / mean(h^2)) long, not 1, where a hidden state is as small as the norm's eps.)
 constant  The latent holds the values, and one place more with B (w.x), where w.x is about 1 for every token: with B
           far larger than the values the root mean square is B (w.x) / sqrt(C), and the norm's gain undoes it.
           w is a ridge regression of the constant 1 on x; values are off by what w.x is off. For large hidden sizes.

Queries without loss of either go through q_a = identity in the same way (q_lora_rank = hidden).

A bias (qwen2) needs a constant, and MLA without biases has no exact one: w.x again, so b becomes b w^T on the weights.
Only the value bias under `constant` is better off: behind the norm that place is B to (values / B)^2.

Shapes: C latent, D hidden, D' = D or, with biases as a last column, D + 1; H heads, G groups, N nope, d head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.upcycle.attention import KeyLayout, Keys

RIDGE = 1e-4  # of the mean square of the inputs
FIRST_TOKEN = 20.0  # weight of a row's first token in the regression: attention rests on it
AMPLITUDE = 20.0  # B, in norms of the values


@dataclass(frozen=True)
class Latent:
    """The latent's rows of kv_a_proj_with_mqa [C, D], the norm's gain [C], W^UK [H, N, C] and W^UV [H, d, C]."""

    rows: Tensor
    gain: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class One:
    """The linear function w [D] that is about 1, and how far off it was on the text it was fitted to."""

    w: Tensor
    mean_error: float
    worst_error: float


def fit_one(x_NTD: Tensor) -> One:
    """Ridge regression of 1 on normed hidden states, in FP64."""
    x = x_NTD.double()
    weight = torch.ones(x.shape[:2], dtype=torch.float64)
    weight[:, 0] = FIRST_TOKEN
    flat, weight = x.flatten(0, 1), weight.flatten()
    gram = flat.T @ (flat * weight[:, None])
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    w = torch.linalg.solve(gram, flat.T @ weight)
    error = (flat @ w - 1).abs()
    return One(w.float(), error.mean().item(), error.max().item())


def fold_bias(weight: Tensor, hidden: int, one: Tensor | None) -> Tensor:
    """[..., D'] -> [..., D]: the bias column, if there is one, becomes a multiple of w."""
    if weight.shape[-1] == hidden:
        return weight
    assert one is not None
    out: Tensor = weight[..., :hidden] + weight[..., hidden:] * one
    return out


def exact_latent(layout: KeyLayout, keys: Keys, v: Tensor, one: Tensor | None, hidden: int) -> Latent:
    """`v` [G d, D']: the latent is x."""
    still, v = fold_bias(keys.still, hidden, one), fold_bias(v, hidden, one)
    up_keys = v.new_zeros(layout.heads, layout.nope, hidden)
    for head, rows in enumerate(keys.choice):
        up_keys[head, : len(rows)] = still[list(rows)]
    return Latent(torch.eye(hidden), torch.ones(hidden), up_keys, _per_head(layout, v))


def constant_latent(
    layout: KeyLayout, keys: Keys, v: Tensor, one: Tensor, hidden: int, width: int, x_NTD: Tensor
) -> Latent:
    """`v` [G d, D']: the latent is [values | keys that do not turn | zeros | B w.x], `width` wide."""
    kept = torch.cat((v, keys.still))
    count, biased = len(kept), kept.shape[-1] > hidden
    features = kept[:, :hidden]
    norm = (x_NTD @ features.T).norm(dim=-1)
    amplitude = AMPLITUDE * norm.mean().item()
    rows = torch.cat((features, torch.zeros(width - 1 - count, hidden), amplitude * one[None]))
    gain = torch.full((width,), amplitude / width**0.5)
    up = torch.cat((torch.eye(count), torch.zeros(count, width - count)), dim=1)
    if biased:
        up[:, -1] = kept[:, hidden] / amplitude
    up_keys = torch.zeros(layout.heads, layout.nope, width)
    for head, choice in enumerate(keys.choice):
        up_keys[head, : len(choice)] = up[[len(v) + row for row in choice]]
    return Latent(rows, gain, up_keys, _per_head(layout, up[: len(v)]))


def _per_head(layout: KeyLayout, v: Tensor) -> Tensor:
    """[G d, ...] -> [H, d, ...]"""
    per_group: Tensor = v.unflatten(0, (layout.groups, -1))
    return per_group.repeat_interleave(layout.heads // layout.groups, dim=0)
