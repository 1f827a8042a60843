"""Attention's core for training: the C++ kernel and its backward pass against float64, and when it is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fathom.kernels.attention import attention, largest_logits
from fathom.kernels.cpu import train
from fathom.model.transformer import attention_mask

SHAPES = [(2, 3, 7, 32, 32), (1, 2, 100, 64, 32), (2, 2, 129, 96, 64), (1, 1, 48, 32, 64), (1, 2, 1100, 32, 32)]


def drawn(batch: int, heads: int, tokens: int, width: int, seed: int) -> Tensor:
    """[B, H, T, width] as a view of [B, T, H, width], as MLA has it."""
    x = torch.randn(batch, tokens, heads, width, generator=torch.Generator().manual_seed(seed))
    return (2 * x).transpose(1, 2)


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    scores = (q @ k.mT) * scale
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if mask is None else mask
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v


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


PACKED = {
    "two rows": [[0] * 5 + [1] * 44 + [2], [0] * 40 + [-1] * 10],
    "one row": [[3] * 50],
    "a sample that comes again": [[0] * 20 + [1] * 10 + [0] * 20],
}


@pytest.mark.skipif(train.available() is not None, reason="no C++ compiler here")
@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("shared", [False, True], ids=["a mask a row", "one mask"])
def test_packed_samples_against_float64(name: str, shared: bool) -> None:
    segments = torch.tensor(PACKED[name][:1] if shared else PACKED[name])
    rows, tokens = 2 if shared else len(segments), segments.shape[1]
    found = attention_mask(tokens, 0, segments, segments.device)
    assert found is not None
    mask = found[:, None]
    parts = [drawn(rows, 3, tokens, w, i).requires_grad_() for i, w in enumerate((64, 64, 32))]
    top = torch.full((3,), float("-inf"))
    out = attention(*parts, mask, 0.2, top)
    assert ("Causal" in type(out.grad_fn).__name__) == ("again" not in name)
    grad = drawn(rows, 3, tokens, 32, 5)
    mine = torch.autograd.grad(out, parts, grad)
    exact = [x.detach().double().requires_grad_() for x in parts]
    wanted = plain(*exact, 0.2, mask)
    theirs = torch.autograd.grad(wanted, exact, grad.double())
    for a, b in zip((out, *mine), (wanted, *theirs), strict=True):
        assert a.shape == b.shape
        assert float((a - b).detach().abs().max()) < 1e-5 * float(b.detach().abs().max())
    torch.testing.assert_close(top, largest_logits(exact[0], exact[1], mask, 0.2).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype, width", [(torch.float64, 32), (torch.float32, 24), (torch.bfloat16, 32)])
def test_what_it_does_not_take_goes_elsewhere(dtype: torch.dtype, width: int) -> None:
    q, k, v = (drawn(1, 2, 9, w, i).to(dtype).requires_grad_() for i, w in enumerate((width, width, 16)))
    out = attention(q, k, v, None, 0.2)
    assert "Causal" not in type(out.grad_fn).__name__
    wanted = plain(q.double(), k.double(), v.double(), 0.2)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    assert float((out - wanted).detach().abs().max()) < tolerance * float(wanted.detach().abs().max())
