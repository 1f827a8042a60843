"""A sparse split of a trained FFN without training: which neurons go together, and a router in closed form.

 1. Which tokens excite a neuron: it is among the strongest fifth of the token's neurons, by |activation| times the
    length of its down column.
 2. The neurons that most tokens excite are shared.
 3. The others are clustered by the tokens they share: k-means on the unit rows of the table neurons x tokens, each
    cluster filled to exactly one expert's width.
 4. The router predicts log |expert's output| from the FFN's input by ridge regression, slope W and constant c. Its
    logits are a W y with a small, so that all gates stay near 1/K and routed_scaling_factor K makes them about 1;
    sigmoid(a W y) is nearly 1/2 + a W y / 4, so e_score_correction_bias a c / 4 puts the constant into the choice.

The result is not the same function: what the experts not chosen would have said is missing. Quality says how much.

Shapes: T tokens, I neurons, D hidden, E experts of width w, K chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.upcycle.feed_forward import Experts, Tensors, split
from fathom.upcycle.llama import LlamaLayer

STRONGEST = 300 / 1536  # of the neurons of a token
ROUNDS = 12
RIDGE = 1e-3
LOGIT_STD = 0.05


@dataclass(frozen=True)
class Quality:
    """On the text the split was fitted to: the share of the K strongest experts that the router finds, and the share of
    the routed experts' output energy |y|^2 that the chosen ones hold."""

    right_experts: float
    energy_kept: float


def sparse(layer: LlamaLayer, experts: Experts, y_TD: Tensor, generator: torch.Generator) -> tuple[Tensors, Quality]:
    """The tensors of the split, from inputs of the FFN on text."""
    activation_TI = F.silu(y_TD @ layer.gate.T) * (y_TD @ layer.up.T)
    excited_IT = _excited(activation_TI.abs() * layer.down.norm(dim=0)).T.contiguous()
    by_count = excited_IT.sum(1).argsort(descending=True, stable=True)
    shared = experts.shared * experts.width
    rest = by_count[shared:]
    clusters = balanced_clusters(F.normalize(excited_IT[rest], dim=1), experts.routed, generator)
    order = torch.cat((by_count[:shared], rest[clusters.flatten()]))
    norms_TE = torch.stack([(activation_TI[:, n] @ layer.down[:, n].T).norm(dim=1) for n in rest[clusters]], dim=1)
    slope, constant = _router(y_TD, norms_TE)
    scale = LOGIT_STD / float((y_TD @ slope.T).std())
    tensors = split(layer, experts, order, slope * scale, (constant - constant.mean()) * scale / 4)
    return tensors, _quality(y_TD @ slope.T + constant, norms_TE, experts.chosen)


def _excited(strength_TI: Tensor) -> Tensor:
    """1 where a neuron is among the strongest of its token."""
    count = max(round(STRONGEST * strength_TI.shape[1]), 1)
    return torch.zeros_like(strength_TI).scatter_(1, strength_TI.topk(count, dim=1).indices, 1.0)


def balanced_clusters(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[n, dims] unit rows -> [count, n / count] row numbers: k-means whose clusters are all of one size."""
    n = len(points)
    size = n // count
    centres = points[torch.randperm(n, generator=generator)[:count]]
    members = torch.empty(0)
    for _ in range(ROUNDS):
        members = _assign(points @ F.normalize(centres, dim=1).T, size)
        centres = points[members].mean(1)
    return members


def _assign(similarity: Tensor, size: int) -> Tensor:
    """[n, count] -> [count, size]: points in the order of how much their best cluster is better than their next one."""
    best = similarity.topk(min(2, similarity.shape[1]), dim=1).values
    members: list[list[int]] = [[] for _ in range(similarity.shape[1])]
    preference = similarity.argsort(dim=1, descending=True).tolist()
    for point in (best[:, 0] - best[:, -1]).argsort(descending=True, stable=True).tolist():
        cluster = next(c for c in preference[point] if len(members[c]) < size)
        members[cluster].append(point)
    return torch.tensor(members)


def _router(y_TD: Tensor, norms_TE: Tensor) -> tuple[Tensor, Tensor]:
    """Slope [E, D] and constant [E] of the ridge regression of log norms on y, in FP64."""
    y, target = y_TD.double(), (norms_TE.double() + 1e-6).log()
    mean_y, mean_target = y.mean(0), target.mean(0)
    centred = y - mean_y
    gram = centred.T @ centred
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    slope = torch.linalg.solve(gram, centred.T @ (target - mean_target)).T
    return slope.float(), (mean_target - slope @ mean_y).float()


def _quality(predicted_TE: Tensor, norms_TE: Tensor, chosen: int) -> Quality:
    picked, best = predicted_TE.topk(chosen).indices, norms_TE.topk(chosen).indices
    right = (picked[:, :, None] == best[:, None]).any(-1).float().mean()
    energy = norms_TE.square()
    return Quality(float(right), float(energy.gather(1, picked).sum() / energy.sum()))
