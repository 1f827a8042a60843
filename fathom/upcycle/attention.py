"""Grouped-query attention as the rotated part of MLA: several key heads share one rotated key.

MLA has one rotated key, R wide, for all heads; pair j of it turns by theta'^(-2j/R) a position. Call these frequencies
the ladder. Pair i of a Llama head turns by theta^(-2i/d). With P places of the ladder for each pair, R = P d and
theta' = theta, place j = P i has exactly that frequency. G key heads need G places a pair, and only one is exact; a
head at place P i + o has all its frequencies off by one factor, theta^(-2o/R), and reads distances as that much
shorter. Three things make this nearly free:
 1. Rotation is multiplication by a complex number, so it commutes with every complex G x G matrix M_i that mixes the
    key heads of pair i: keys k' = M k, queries q' = M^-H q have the same scores, and a query of group g has values in
    all places. M is chosen pair by pair, on text, so that what matters most gets the exact place: principal.py.
 2. Where P > G the others lie on both sides of it, o = 0, +1, -1, ... A head above has no place for its fastest pair,
    i = 0, and that one takes a place between; where all places are taken, o = 0, +1, +2, ... (measured: a head whose
    fastest pair does not turn costs more than one whose distances are shorter by a further step).
 3. Pairs so slow that they hardly turn over the context (`rotated` pairs are faster) need no place: they go to the part
    without rotation, and so do components beyond the P-th where R < G d. The ladder then ends earlier:
    R = 2 P `rotated`, theta' = theta^(2 rotated / d) keeps its frequencies.
MLA divides scores by sqrt(nope + R), Llama by sqrt(d): queries are multiplied by sqrt((nope + R) / d).

Weights are written as complex rows, value 2i + i * value 2i+1 of a head. A bias is one more column (see latent.py).
Shapes: H query heads, G key heads, n = d/2 pairs, D inputs (hidden size, + 1 with biases), N nope, R rope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeyLayout:
    """Where the pairs of the key heads go: the same in all layers."""

    heads: int
    groups: int
    head_dim: int
    per_pair: int  # P, places of the ladder per pair
    rotated: int  # pairs with a place; the slower ones do not turn
    nope: int  # width of the part without rotation, zeros behind what needs it
    theta: float  # the source's

    @property
    def pairs(self) -> int:
        """Pairs of a key head."""
        return self.head_dim // 2

    @property
    def rope(self) -> int:
        """R = qk_rope_head_dim."""
        return 2 * self.per_pair * self.rotated

    @property
    def rope_theta(self) -> float:
        """The base with which R values have the frequencies of the ladder."""
        return float(self.theta ** (self.rotated / self.pairs))

    @property
    def placed(self) -> int:
        """Components of a pair that are rotated."""
        return min(self.groups, self.per_pair)

    @property
    def still(self) -> int:
        """Values of a key that lie in the part without rotation: slow pairs, and components that have no place."""
        return 2 * (self.pairs - self.rotated) + 2 * self.rotated * (self.groups - self.placed)

    @property
    def query_scale(self) -> float:
        """What queries are multiplied by."""
        return math.sqrt((self.nope + self.rope) / self.head_dim)

    def places(self) -> Tensor:
        """int64 [rotated, placed]: the place on the ladder of each component of each pair, largest component first."""
        p, pairs = self.per_pair, self.rotated
        above = min((self.placed - 1) // 2, max(p - self.groups, 0))
        offsets = sorted([*range(-above, self.placed - above)], key=lambda o: (abs(o), -o))
        places = torch.arange(pairs)[:, None] * p + torch.tensor(offsets)
        free = sorted(set(range(p * pairs)) - set(places.flatten().tolist()))
        for component, offset in enumerate(offsets):
            if offset < 0:  # pair 0 would stand above the top of the ladder: the nearest free place
                places[0, component] = free.pop(0)
        return places

    def source_frequencies(self) -> Tensor:
        """float64 [pairs]: radians per position of each pair as the source has it."""
        out: Tensor = self.theta ** (-torch.arange(self.pairs, dtype=torch.float64) / self.pairs)
        return out

    def frequencies(self) -> Tensor:
        """float64 [pairs, groups]: radians per position of each component in the result; 0 where it stands still."""
        out = torch.zeros(self.pairs, self.groups, dtype=torch.float64)
        out[: self.rotated, : self.placed] = self.theta ** (-self.places().double() / (self.per_pair * self.pairs))
        return out


def complex_rows(weight: Tensor, head_dim: int) -> Tensor:
    """[heads * d, D] -> complex [heads, n, D]"""
    even, odd = weight.unflatten(0, (-1, head_dim // 2, 2)).unbind(2)
    return torch.complex(even, odd)


def real_rows(rows: Tensor) -> Tensor:
    """complex [..., n, D] -> [..., 2n, D], adjacent pairs"""
    return torch.stack((rows.real, rows.imag), dim=-2).flatten(-3, -2)


@dataclass(frozen=True)
class Keys:
    """The keys of one layer in MLA's terms. Still features are linear in the input; each head sees its own choice."""

    rope: Tensor  # [R, D]
    still: Tensor  # [F, D]: slow pairs of all groups, then components without a place
    choice: tuple[tuple[int, ...], ...]  # per query head: the rows of `still` that its nope part holds, in order
    queries: Tensor  # [H, N + R, D], scaled


def split_keys(layout: KeyLayout, mix: Tensor, q: Tensor, k: Tensor) -> Keys:
    """q [H d, D] and k [G d, D] with M = `mix` complex [rotated, G, G] -> MLA's keys and queries."""
    groups, placed, rotated = layout.groups, layout.placed, layout.rotated
    q_HnD, k_GnD = (complex_rows(w, layout.head_dim) for w in (q, k))
    per_group = layout.heads // groups
    inverse = torch.linalg.inv(mix).mH.to(q_HnD.dtype)  # M^-H
    mix = mix.to(k_GnD.dtype)
    k_nGD = mix @ k_GnD[:, :rotated].transpose(0, 1)
    group_of = torch.arange(layout.heads) // per_group
    q_HnGD = inverse[:, :, group_of].permute(2, 0, 1)[..., None] * q_HnD[:, :rotated, None]

    places = layout.places()
    rope = k.new_zeros(layout.rope // 2, k.shape[1], dtype=k_nGD.dtype)
    rope[places] = k_nGD[:, :placed]
    q_rope = q.new_zeros(layout.heads, layout.rope // 2, q.shape[1], dtype=q_HnGD.dtype)
    q_rope[:, places] = q_HnGD[:, :, :placed]

    slow = real_rows(k_GnD[:, rotated:])  # [G, 2 slow, D]
    rest = real_rows(k_nGD[:, placed:].transpose(0, 1)).flatten(0, 1)  # [(G - placed) 2 rotated, D]
    width = slow.shape[1]
    shared = tuple(range(groups * width, groups * width + len(rest)))
    choice = tuple((*range(g * width, (g + 1) * width), *shared) for g in group_of.tolist())
    q_slow = real_rows(q_HnD[:, rotated:])
    q_rest = real_rows(q_HnGD[:, :, placed:].transpose(1, 2)).flatten(1, 2)
    zeros = q.new_zeros(layout.heads, layout.nope - layout.still, q.shape[1])
    queries = torch.cat((q_slow, q_rest, zeros, real_rows(q_rope)), dim=1) * layout.query_scale
    return Keys(real_rows(rope), torch.cat((slow.flatten(0, 1), rest)), choice, queries)


def plain_mix(layout: KeyLayout) -> Tensor:
    """The heads as they are, the first in the exact place: complex [rotated, G, G]."""
    return torch.eye(layout.groups, dtype=torch.complex128).repeat(layout.rotated, 1, 1)
