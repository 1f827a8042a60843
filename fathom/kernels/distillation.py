"""Distillation of logits without the logits: the head's product, the loss and both gradients by chunks of tokens.

What is kept of a teacher is its K most likely tokens; all others are one lump. So both models speak about K + 1
outcomes, the teacher's K tokens and "another one", with probabilities at temperature t:

    p_k = teacher's, p_* = max(1 - sum_k p_k, 1e-6)        q_k = softmax(h W^T / t)_k,  q_* = max(1 - sum_k q_k, 1e-6)
    forward   KL(p || q) = sum p_o (log p_o - log q_o)     covers all that the teacher finds likely
    reverse   KL(q || p) = sum q_o (log q_o - log p_o)     says nothing that the teacher finds unlikely
    loss      sum over tokens of (1 - a) t^2 KL + a CE     CE: the text's own next token, at temperature 1

t^2 keeps the gradients as large as they are at t = 1 (Hinton et al., arXiv 1503.02531). With K = V the lump is empty.

The gradient. The KL sees the student through q_1 .. q_K alone. With w_k = q_k dKL/dq_k, the gradient of z / t is

    dKL / d(z_j / t) = [j is the k-th of the teacher] w_k - softmax(z / t)_j sum_k w_k

a multiple of the softmax, row by row, and K values more: the matrix that exp() left behind is scaled and corrected in
place, then it meets W (gradient of h) and h (gradient of W), as in the cross-entropy of torch_ops.py. A label of -100
is a token without loss. The definition is reference.linear_distillation.

Shapes: T tokens, D hidden, V vocabulary, K kept tokens of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fathom.kernels.reference import REST
from fathom.kernels.torch_ops import compute_dtype, exp_rows, wanted_gradients


def top_log_probs(
    h_TD: Tensor, weight_VD: Tensor, top_k: int, temperature: float = 1.0, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """A teacher's K most likely tokens: ids [T, K] int64, log-probabilities [T, K] FP32, the most likely one first."""
    ids, values = [], []
    for rows in h_TD.split(chunk or rows_at_once(weight_VD)):
        logits = (rows @ weight_VD.to(rows.dtype).T).float()
        logits = logits if temperature == 1.0 else logits / temperature
        top = logits.topk(top_k, dim=-1)
        largest, total = exp_rows(logits)
        ids.append(top.indices)
        values.append(top.values - (total.log() + largest)[:, None])
    return torch.cat(ids), torch.cat(values)


def rows_at_once(weight_VD: Tensor) -> int:
    """Tokens of a chunk: 32 MB of logits, or 256 tokens' worth."""
    return max(256, int(2**23 // weight_VD.shape[0]))


@dataclass(frozen=True)
class _How:
    """What `linear_distillation` was asked for."""

    temperature: float
    reverse: bool
    text_weight: float


def _kl(q_TK: Tensor, p_TK: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """(KL [T], w [T, K] = q dKL/dq) from probabilities of both."""
    q_raw = 1 - q_TK.sum(-1, keepdim=True)
    q_rest, p_rest = q_raw.clamp(min=REST), (1 - p_TK.sum(-1, keepdim=True)).clamp(min=REST)
    moves = (q_raw > REST).to(q_TK.dtype)  # where the lump is at its least it does not move
    tiny = torch.finfo(q_TK.dtype).tiny
    ratio = q_TK.clamp(min=tiny).log() - p_TK.clamp(min=tiny).log()
    rest_ratio = q_rest.log() - p_rest.log()
    if reverse:
        kl = (q_TK * ratio).sum(-1) + (q_rest * rest_ratio)[:, 0]
        return kl, q_TK * (ratio + 1 - (rest_ratio + 1) * moves)
    kl = -(p_TK * ratio).sum(-1) - (p_rest * rest_ratio)[:, 0]
    return kl, q_TK * (p_rest / q_rest * moves) - p_TK


@dataclass(frozen=True)
class Score:
    """How close a student is, without gradients: sums over tokens with a label, and its choice for every token [T]."""

    kl: Tensor
    ce: Tensor
    choice: Tensor


@torch.no_grad()
def score(
    h_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, ids_TK: Tensor, log_probs_TK: Tensor, *,
    temperature: float = 1.0, reverse: bool = False,
) -> Score:  # fmt: skip
    """KL at `temperature` (without t^2), cross-entropy at 1, most likely tokens: one pass over the head for all."""
    kl, ce = torch.zeros(2, dtype=torch.float64, device=h_TD.device)
    choices, size = [], rows_at_once(weight_VD)
    parts = (x.split(size) for x in (h_TD, labels_T, ids_TK, log_probs_TK))
    for rows, labels, ids, log_probs in zip(*parts, strict=True):
        logits = (rows @ weight_VD.to(rows.dtype).T).float()
        keep, label = labels >= 0, labels.clamp(min=0)[:, None]
        choices.append(logits.argmax(-1))
        wanted, known = logits.gather(1, label)[:, 0], logits.gather(1, ids) / temperature
        soft = logits if temperature == 1.0 else logits / temperature
        top, total = exp_rows(soft)
        one, _ = _kl(torch.exp(known - (total.log() + top)[:, None]), log_probs.float().exp(), reverse)
        if temperature != 1.0:
            top, total = exp_rows(logits)
        kl += one[keep].double().sum()
        ce += (total.log() + top - wanted)[keep].double().sum()
    return Score(kl, ce, torch.cat(choices))


class _LinearDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, labels: Tensor, ids: Tensor, log_probs: Tensor, how: _How, chunk: int,
        wants_h: bool, wants_weight: bool,
    ) -> Tensor:  # fmt: skip
        dtype = compute_dtype(h)
        weight_c = weight.to(dtype)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        loss = torch.zeros((), dtype=exact, device=h.device)
        grad_h = torch.empty_like(h) if wants_h else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if wants_weight else None
        for start in range(0, h.shape[0], chunk):
            part = slice(start, start + chunk)
            rows = h[part].to(dtype)
            logits = (rows @ weight_c.T).to(exact)
            total, gradient = _step(logits, labels[part], ids[part], log_probs[part].to(exact), how)
            loss += total
            if grad_h is not None:
                grad_h[part] = gradient.to(dtype) @ weight_c
            if grad_weight is not None:
                grad_weight.add_(gradient.to(dtype).T @ rows)
        ctx.save_for_backward(grad_h, None if grad_weight is None else grad_weight.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        made = (None if g is None else g * grads[0] for g in ctx.saved_tensors)
        return *made, None, None, None, None, None, None, None


def _step(logits: Tensor, labels: Tensor, ids: Tensor, log_probs: Tensor, how: _How) -> tuple[Tensor, Tensor]:
    """(sum of the losses, gradient of the logits [R, V], in their memory) of one chunk."""
    keep, a, t = labels >= 0, how.text_weight, how.temperature
    kept = keep.to(logits.dtype)[:, None]
    label = labels.clamp(min=0)[:, None]
    wanted, known = logits.gather(1, label), logits.gather(1, ids)
    soft = logits if t == 1.0 else logits / t  # a second matrix only where the text is read at another temperature
    if a == 0.0 and t != 1.0:
        logits = soft
    top, total = exp_rows(soft)
    q = torch.exp(known / t - top[:, None]) / total[:, None]
    kl, w = _kl(q, log_probs.exp(), how.reverse)
    loss = (1 - a) * t * t * kl
    w = w * ((1 - a) * t * kept)
    share = -w.sum(1, keepdim=True) / total[:, None]
    if a:
        if t != 1.0:
            top, total = exp_rows(logits)
        loss = loss + a * (total.log() + top - wanted[:, 0])
        own = a * kept / total[:, None]
        gradient = logits.mul_(share + own) if t == 1.0 else logits.mul_(own).addcmul_(soft, share)
        gradient.scatter_add_(1, label, -a * kept)
    else:
        gradient = logits.mul_(share)
    gradient.scatter_add_(1, ids, w)
    return torch.where(keep, loss, 0.0).sum(), gradient


def linear_distillation(
    h_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, ids_TK: Tensor, log_probs_TK: Tensor, *,
    temperature: float = 1.0, reverse: bool = False, text_weight: float = 0.0, chunk: int | None = None,
) -> Tensor:  # fmt: skip
    """See reference.linear_distillation; peak memory is one or two chunks of logits."""
    how = _How(temperature, reverse, text_weight)
    wanted = wanted_gradients(h_TD, weight_VD)
    loss: Tensor = _LinearDistillation.apply(  # type: ignore[no-untyped-call]
        h_TD, weight_VD, labels_T, ids_TK, log_probs_TK, how, chunk or rows_at_once(weight_VD), *wanted
    )
    return loss
