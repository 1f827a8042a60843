"""RMSNorm, rotary embedding and rows by index for training: values and gradients against float64 PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fathom.kernels import fp8
from fathom.kernels.cpu import train
from fathom.kernels.pointwise import rms_norm, rotate
from fathom.kernels.train_ops import pick_training

EPS = 1e-6
FAST = pytest.mark.skipif(train.available() is not None, reason="no C++ compiler here")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(mine: Tensor | None, exact: Tensor | None) -> None:
    assert mine is not None and exact is not None and mine.shape == exact.shape
    assert float((mine - exact).abs().max()) <= 2e-6 * float(exact.abs().max())


def norm_in_float64(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight


@pytest.mark.parametrize("rows", [1, 5, 300])
@pytest.mark.parametrize("width", [7, 32, 100, 128])
@pytest.mark.parametrize("rest", [0, 3])
def test_rms_norm(rows: int, width: int, rest: int) -> None:
    """Also of a part of wider rows (`rest` more values), as the latent is of kv_a_proj's output."""
    whole, weight, up = random(2, rows, width + rest), random(width, seed=1), random(2, rows, width, seed=2)
    results = []
    for dtype in (torch.float32, torch.float64):
        x, w = (value.detach().to(dtype).requires_grad_() for value in (whole, weight))
        part = x[..., :width]
        y = rms_norm(part, w, EPS) if dtype == torch.float32 else norm_in_float64(part, w)
        y.backward(up.to(dtype))
        results.append((y.detach(), x.grad, w.grad))
    for mine, exact in zip(*results, strict=True):
        close(mine, exact)


@FAST
def test_a_weights_gradient_does_not_depend_on_threads() -> None:
    x, weight, up = random(1000, 64), random(64, seed=1), random(1000, 64, seed=2)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            _, inverse = train.rms_norm(x, weight, EPS)
            found.append(train.rms_norm_backward(up, x, weight, inverse))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("own_positions", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("width", [2, 6, 32])
def test_rotate(own_positions: bool, heads: int, width: int) -> None:
    """Of the last part of wider heads, with one row of positions for all sequences or one for each."""
    sequences, tokens = 2, 5
    whole, up = random(sequences, tokens, heads, 7 + width), random(sequences, tokens, heads, width, seed=1)
    angle = random(*((sequences, tokens) if own_positions else (tokens,)), width // 2, seed=2)
    results = []
    for dtype in (torch.float32, torch.float64):
        x, a = whole.detach().to(dtype).requires_grad_(), angle.to(dtype)
        part = x[..., 7:]
        if dtype == torch.float32:
            y = rotate(part, a.cos(), a.sin())
        else:  # a pair is a complex number
            turned = torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous())
            y = torch.view_as_real(turned * torch.polar(torch.ones_like(a), a)[..., None, :]).flatten(-2)
        y.backward(up.to(dtype))
        results.append((y.detach(), x.grad))
    for mine, exact in zip(*results, strict=True):
        close(mine, exact)


@FAST
def test_both_are_taken_where_a_gradient_is_wanted_and_only_there() -> None:
    x, weight, angle = random(2, 5, 1, 8).requires_grad_(), random(8), random(5, 4)
    names = [str(f(x).grad_fn) for f in (lambda x: rms_norm(x, weight, EPS), lambda x: rotate(x, angle, angle))]
    assert "_RMSNorm" in names[0] and "_Rotate" in names[1]
    with torch.no_grad():
        close(rms_norm(x, weight, EPS), norm_in_float64(x.double(), weight.double()))
    assert rotate(x.double(), angle, angle).dtype == torch.float64


@pytest.mark.parametrize("name", ["plain", pytest.param("cpu", marks=FAST)])
def test_rows_by_index(name: str) -> None:
    ops, rows = pick_training(name), torch.tensor([3, 0, 3, 2])
    for x in (random(4, 5), random(4, 5).to(torch.bfloat16), random(4), random(8, 5)[::2]):
        assert torch.equal(ops.take(x, rows), x[rows])
    bytes_ = fp8.quantise_tiles(random(4, 130)).values
    taken = ops.take(bytes_, rows)
    assert taken.dtype == bytes_.dtype and torch.equal(taken.view(torch.uint8), bytes_.view(torch.uint8)[rows])
    assert ops.take(random(4, 5), rows[:0]).shape == (0, 5)
