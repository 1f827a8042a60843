"""Which mixture of the key heads gets the exact place, pair by pair: a principal component, weighed by what it does.

A component that turns too slowly by D radians a position changes the score of query t and key s by about
q'_t k'_s |1 - exp(i D (t - s))|, and a change of a score moves attention by p (1 - p). So the harm done by all
components but the first is the sum over t, s of

    w_ts |k'_s|^2        w_ts = p_ts (1 - p_ts) |q_t|^2 (2 - 2 cos D (t - s))

and it is least, over unitary M, when M^H has the eigenvectors of sum w_ts k_s k_s^H as columns, largest first. (The
plain covariance of the keys, as in TransMLA's RoRoPE, is w = 1; on SmolLM2 it leaves 1.7 times the divergence.)
With cos D (t - s) = cos Dt cos Ds + sin Dt sin Ds, all weights are three products with the matrix p (1 - p).

Shapes: N rows, T tokens, H query heads, G key heads, n pairs, D inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.upcycle.attention import KeyLayout


def principal_mix(layout: KeyLayout, q: Tensor, k: Tensor, x_NTD: Tensor) -> Tensor:
    """M, complex [rotated, G, G], for q [H d, D] and k [G d, D], measured on the inputs `x`."""
    total = torch.zeros(layout.rotated, layout.groups, layout.groups, dtype=torch.complex128)
    for x_TD in x_NTD:
        q_THn, k_TGn = (torch.view_as_complex((x_TD @ w.T).unflatten(-1, (-1, layout.pairs, 2))) for w in (q, k))
        keys_TGn = k_TGn[..., : layout.rotated].to(torch.complex128)
        for group, queries in enumerate(q_THn.chunk(layout.groups, dim=1)):
            weight_Tn = _weights(layout, queries, k_TGn[:, group])
            total += torch.einsum("tn,tgn,tfn->ngf", weight_Tn.to(keys_TGn.dtype), keys_TGn, keys_TGn.conj())
    vectors = torch.linalg.eigh(total).eigenvectors.flip(-1)
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    out: Tensor = (vectors / largest.sgn()).mH  # a phase is free: the largest entry is real, on every machine
    return out


def _weights(layout: KeyLayout, q_THn: Tensor, k_Tn: Tensor) -> Tensor:
    """float64 [T, rotated]: how much the keys of one group matter, summed over its query heads and all queries."""
    rotated, length = layout.rotated, len(q_THn)
    angle = torch.arange(length)[:, None] * layout.source_frequencies()
    turn = torch.polar(torch.ones_like(angle), angle).to(q_THn.dtype)
    turned_q, turned_k = (torch.view_as_real(t).flatten(-2) for t in (q_THn * turn[:, None], k_Tn * turn))
    score_HTT = turned_q.transpose(0, 1) @ turned_k.T / layout.head_dim**0.5
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    p = score_HTT.masked_fill(future, float("-inf")).softmax(-1).double()
    frequency = layout.frequencies()
    error = torch.arange(length)[:, None] * (frequency[:rotated, 0] - frequency[:rotated, 1])
    energy_HTn = q_THn[..., :rotated].abs().square().double().transpose(0, 1)
    parts = torch.cat((energy_HTn, energy_HTn * error.cos(), energy_HTn * error.sin()), dim=-1)
    plain, cosine, sine = ((p * (1 - p)).mT @ parts).sum(0).chunk(3, dim=-1)
    weight: Tensor = 2 * (plain - error.cos() * cosine - error.sin() * sine)
    return weight.clamp(min=0)
