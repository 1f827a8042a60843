"""The chunked distillation loss against its definition: both gradients too, float64, ragged chunks, FP32, BF16.

Also what the formula promises: no loss and no gradient where the student is the teacher; with K = V the whole KL.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels import reference
from fathom.kernels.distillation import linear_distillation, top_log_probs

T, D, V, K = 23, 12, 90, 7


def case(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    """h, weight, labels (some ignored), the top K of another model."""
    g = torch.Generator().manual_seed(seed)
    h, weight = torch.randn(T, D, generator=g, dtype=dtype), torch.randn(V, D, generator=g, dtype=dtype)
    labels = torch.randint(V, (T,), generator=g).masked_fill_(torch.rand(T, generator=g) < 0.2, -100)
    other = h + 0.3 * torch.randn(T, D, generator=g, dtype=dtype)
    ids, log_probs = top_log_probs(other.float(), weight.float(), K, 1.3)
    return h, weight, labels, ids, log_probs


def run(op: Any, h: Tensor, weight: Tensor, *rest: Tensor, **how: Any) -> list[Tensor]:
    h, weight = h.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = op(h, weight, *rest, **how)
    return [loss.detach(), *torch.autograd.grad(3 * loss, (h, weight))]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("text_weight", [0.0, 0.4, 1.0])
def test_it_is_the_definition(reverse: bool, temperature: float, text_weight: float) -> None:
    how = dict(reverse=reverse, temperature=temperature, text_weight=text_weight)
    inputs = case()
    exact = run(reference.linear_distillation, *inputs, **how)
    for chunk in (5, 100):
        for mine, wanted in zip(run(linear_distillation, *inputs, chunk=chunk, **how), exact, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-11)
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 6e-2)):
        low = [x.to(dtype) if x.dtype == torch.float64 else x for x in inputs]
        same = [x.double() if x.dtype == dtype else x for x in low]  # only the arithmetic differs
        exact = run(reference.linear_distillation, *same, **how)
        for mine, wanted in zip(run(linear_distillation, *low, **how), exact, strict=True):
            assert (mine.double() - wanted).norm() < tolerance * wanted.norm(), (dtype, how)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_sure_teacher(reverse: bool) -> None:
    """Where the lump is empty, on one side or on both, nothing is infinite and the gradient still the definition's."""
    h, weight, labels, ids, log_probs = case()
    h = 8 * h  # a student that is sure of itself: its lump is often below what FP32 knows
    log_probs = F.log_softmax(6 * log_probs, dim=-1)  # all of the teacher's mass is on its K
    inputs = (h, weight, labels, ids, log_probs)
    exact = run(reference.linear_distillation, *inputs, reverse=reverse)
    assert all(bool(x.isfinite().all()) for x in exact)
    for mine, wanted in zip(run(linear_distillation, *inputs, reverse=reverse), exact, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("reverse", [False, True])
def test_nothing_to_learn_from_itself(reverse: bool) -> None:
    h, weight, labels, _, _ = case()
    ids, log_probs = top_log_probs(h, weight, K, 2.0)
    loss, *grads = run(
        linear_distillation, h, weight, labels, ids, log_probs.double(), reverse=reverse, temperature=2.0
    )
    assert abs(float(loss)) < 1e-5 and all(float(g.abs().max()) < 1e-5 for g in grads)


def test_all_tokens_are_the_whole_divergence() -> None:
    h, weight, labels, _, _ = case()
    other = h.flip(0)
    ids, log_probs = top_log_probs(other, weight, V)
    whole = F.kl_div(
        F.log_softmax(h @ weight.T, -1), F.log_softmax(other @ weight.T, -1), reduction="none", log_target=True
    )
    wanted = whole.sum(-1)[labels >= 0].sum()
    found = linear_distillation(h, weight, labels, ids, log_probs.double())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)  # the lump's floor is 1e-6


def test_a_frozen_head_gets_no_gradient() -> None:
    h, weight, *rest = case(torch.float32)
    loss = linear_distillation(h.requires_grad_(), weight, *rest)
    loss.backward()
    assert h.grad is not None and weight.grad is None
    with torch.no_grad():
        assert linear_distillation(h, weight, *rest).requires_grad is False
