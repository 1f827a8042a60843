"""Load balancing without an auxiliary loss (report section 2.1.2).

After each step, over the load of the WHOLE batch:   b_i += gamma * sign(mean load - load_i)
The bias moves selection only; it never enters a gate value and never gets a gradient.

The complementary sequence-wise loss keeps single sequences from extremes:   alpha * sum_i f_i P_i
  f_i = E / (K T) * #{t : i in top-K of the UNBIASED scores}      P_i = mean_t s_i / sum_j s_j
Perfect balance gives exactly alpha. The report states no reduction; here: mean over sequences, sum over layers.

What both replace, kept for comparison (report section 4.5.3): an auxiliary loss over the tokens of a batch, stronger,
whose gradient pulls at the gate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fathom.model.moe import Gate, Routing


def gates(model: nn.Module) -> list[Gate]:
    """All gates in the order in which forward passes record their routing: main layers, then MTP modules."""
    return [m for m in model.modules() if isinstance(m, Gate)]


def expert_load(routing: Routing, keep_BT: Tensor | None = None) -> Tensor:
    """[E] int64: how many (token, slot) pairs chose each expert. Where `keep_BT` is false (padding) nothing counts."""
    indices = routing.indices if keep_BT is None else routing.indices[keep_BT[:, : routing.indices.shape[1]]]
    return torch.bincount(indices.flatten(), minlength=routing.scores.shape[-1])


@torch.no_grad()
def update_bias(gate: Gate, load_E: Tensor, gamma: float) -> None:
    """One sign step towards equal load."""
    if gate.config.has_router_bias and gamma:
        load = load_E.float()
        gate.e_score_correction_bias += gamma * torch.sign(load.mean() - load)


def sequence_balance_loss(routing: Routing, top_k: int, keep_BT: Tensor | None = None) -> Tensor:
    """sum_i f_i P_i, mean over sequences; scalar FP32, without alpha. Tokens where `keep_BT` is false are not there."""
    scores_BTE = routing.scores
    experts = scores_BTE.shape[-1]
    counted_BT = _counted(scores_BTE, keep_BT)
    tokens_B1 = counted_BT.sum(1, keepdim=True).clamp(min=1)  # a row of padding alone adds nothing
    chosen = scores_BTE.detach().topk(top_k, dim=-1).indices.flatten(1)
    counts_BE = torch.zeros(scores_BTE.shape[0], experts, device=scores_BTE.device)
    counts_BE.scatter_add_(1, chosen, counted_BT.repeat_interleave(top_k, dim=1))
    f_BE = counts_BE * (experts / (top_k * tokens_B1))
    shares_BTE = scores_BTE / (scores_BTE.sum(-1, keepdim=True) + 1e-20)
    p_BE = (shares_BTE * counted_BT[..., None]).sum(1) / tokens_B1
    return (f_BE * p_BE).sum(-1).mean()


def batch_balance_loss(routing: Routing, top_k: int, keep_BT: Tensor | None = None) -> Tensor:
    """The same sum with all tokens of the micro-batch as one sequence: experts may specialise within it."""
    scores = routing.scores.flatten(0, 1)[None]
    counted = _counted(routing.scores, keep_BT).flatten()[None] > 0
    return sequence_balance_loss(Routing(scores, routing.indices, routing.weights), top_k, counted)


def _counted(scores_BTE: Tensor, keep_BT: Tensor | None) -> Tensor:
    """[B, T] FP32: 1 for a token that counts. MTP modules see fewer positions than the batch has."""
    tokens = scores_BTE.shape[1]
    if keep_BT is None:
        return torch.ones(scores_BTE.shape[:2], device=scores_BTE.device)
    return keep_BT[:, :tokens].float()


def dead_experts(load_E: Tensor) -> int:
    """How many experts nobody chose."""
    return int((load_E == 0).sum())


def max_over_mean(load_E: Tensor) -> float:
    """Largest expert's load over the mean: 1.0 is perfect. The field's MaxVio is this minus 1."""
    return float(load_E.max() / load_E.float().mean().clamp(min=1e-9))
