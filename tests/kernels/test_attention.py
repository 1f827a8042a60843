"""Attention's core for training: the C++ kernel and its backward pass against float64, and when it is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fathom.kernels.attention import attention
from fathom.kernels.cpu import train

SHAPES = [(2, 3, 7, 32, 32), (1, 2, 100, 64, 32), (2, 2, 129, 96, 64), (1, 1, 48, 32, 64), (1, 2, 1100, 32, 32)]


def drawn(batch: int, heads: int, tokens: int, width: int, seed: int) -> Tensor:
    """[B, H, T, width] as a view of [B, T, H, width], as MLA has it."""
    x = torch.randn(batch, tokens, heads, width, generator=torch.Generator().manual_seed(seed))
    return (2 * x).transpose(1, 2)


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    scores = (q @ k.mT) * scale
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1) @ v


@pytest.mark.skipif(train.available() is not None, reason="no C++ compiler here")
@pytest.mark.parametrize("batch, heads, tokens, width, value_width", SHAPES)
def test_against_float64(batch: int, heads: int, tokens: int, width: int, value_width: int) -> None:
    parts = [drawn(batch, heads, tokens, w, i).requires_grad_() for i, w in enumerate((width, width, value_width))]
    assert train.attention_takes(parts[0], parts[2])
    out = attention(*parts, None, 0.2)
    assert "Causal" in type(out.grad_fn).__name__
    grad = drawn(batch, heads, tokens, value_width, 5)
    mine = torch.autograd.grad(out, parts, grad)
    exact = [x.detach().double().requires_grad_() for x in parts]
    wanted = plain(*exact, 0.2)
    theirs = torch.autograd.grad(wanted, exact, grad.double())
    for a, b in zip((out, *mine), (wanted, *theirs), strict=True):
        assert a.shape == b.shape
        assert float((a - b).detach().abs().max()) < 1e-5 * float(b.detach().abs().max())


@pytest.mark.parametrize("dtype, width", [(torch.float64, 32), (torch.float32, 24), (torch.bfloat16, 32)])
def test_what_it_does_not_take_goes_elsewhere(dtype: torch.dtype, width: int) -> None:
    q, k, v = (drawn(1, 2, 9, w, i).to(dtype).requires_grad_() for i, w in enumerate((width, width, 16)))
    out = attention(q, k, v, None, 0.2)
    assert "Causal" not in type(out.grad_fn).__name__
    wanted = plain(q.double(), k.double(), v.double(), 0.2)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    assert float((out - wanted).detach().abs().max()) < tolerance * float(wanted.detach().abs().max())
