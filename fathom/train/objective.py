"""The training loss: next token + lambda/D * multi-token prediction + alpha * balance.

L_MTP's divisor is the number of trained tokens of the main loss, not the shorter one of its depth (report Eq. 24).
A depth's target is dropped where the token it reads belongs to another sample than the position that predicts.

Under pipeline parallelism the parts sit on different stages: `head_loss` on the last one, `balance_loss` on each stage
for its own layers. Their sum is the loss of the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fathom.model.moe import Routing
from fathom.model.transformer import DeepseekV3
from fathom.parallel.stage import Stage
from fathom.text.dataset import IGNORE, Batch
from fathom.train.balance import batch_balance_loss, sequence_balance_loss


@dataclass(frozen=True)
class Weights:
    """What one step's losses are weighed with. `trained_tokens` and `rows` are the WHOLE step's, over all ranks."""

    trained_tokens: int
    rows: int
    mtp_lambda: float
    alpha: float  # sequence-wise balance loss
    aux_alpha: float = 0.0  # the auxiliary loss that the bias update replaces (balance.method "aux")


@dataclass(frozen=True)
class HeadLoss:
    """`total` is differentiated; main and mtp are detached sums over the micro-batch, already normalised."""

    total: Tensor
    main: Tensor
    mtp: tuple[Tensor, ...]
    first_gate: int = 0  # number of the gate whose decisions the record begins with: not 0 where layers did not run


class Objective(Protocol):
    """What a run minimises, of a model that is not cut: `whole_loss`, or distillation."""

    def __call__(self, model: DeepseekV3, batch: Batch, w: Weights, record: list[Routing], /) -> HeadLoss: ...


def head_loss(model: DeepseekV3 | Stage, h: Tensor, batch: Batch, w: Weights, record: list[Routing]) -> HeadLoss:
    """Next-token and MTP losses from the main model's hidden states [B, T, D], after the final norm."""
    assert model.lm_head is not None, "the head is on the last stage"
    weight, cross_entropy = model.lm_head.weight, model.ops.linear_cross_entropy
    main = cross_entropy(h.flatten(0, 1), weight, batch.labels.flatten()) / w.trained_tokens
    total = main
    depths: list[Tensor] = []
    for depth in range(len(model.mtp) if w.mtp_lambda else 0):
        h = model.mtp_hidden(h, batch.tokens, depth, segments=batch.segments, record=record)
        labels = mtp_labels(batch, depth)
        loss = cross_entropy(h.flatten(0, 1), weight, labels.flatten()) / w.trained_tokens
        total = total + w.mtp_lambda / len(model.mtp) * loss
        depths.append(loss.detach())
    return HeadLoss(total, main.detach(), tuple(depths))


def real(batch: Batch) -> Tensor | None:
    """[B, T] bool: tokens that are no padding; None where there is none."""
    return None if batch.segments is None else batch.segments >= 0


def balance_loss(record: list[Routing], top_k: int, w: Weights, keep_BT: Tensor | None = None) -> Tensor | None:
    """Sum over layers of both balance losses, weighed by this micro-batch's share of the step's rows; None without."""
    if not record or not (w.alpha or w.aux_alpha):
        return None
    share = record[0].scores.shape[0] / w.rows
    total = torch.zeros((), device=record[0].scores.device)
    for routing in record:
        if w.alpha:
            total = total + w.alpha * share * sequence_balance_loss(routing, top_k, keep_BT)
        if w.aux_alpha:
            total = total + w.aux_alpha * share * batch_balance_loss(routing, top_k, keep_BT)
    return total


def whole_loss(model: DeepseekV3, batch: Batch, w: Weights, record: list[Routing]) -> HeadLoss:
    """Everything at once, on a model that is not cut."""
    h = model.hidden(batch.tokens, segments=batch.segments, record=record)
    head = head_loss(model, h, batch, w, record)
    balance = balance_loss(record, model.config.num_experts_per_tok, w, real(batch))
    return head if balance is None else HeadLoss(head.total + balance, head.main, head.mtp)


def mtp_labels(batch: Batch, depth: int) -> Tensor:
    """[B, T-1-depth]: position i's label is token i+2+depth, IGNORE where the tokens between leave the sample."""
    labels = batch.labels[:, 1 + depth :]
    if batch.segments is None:
        return labels
    same = batch.segments[:, 1 + depth :] == batch.segments[:, : -1 - depth]
    return torch.where(same, labels, IGNORE)
