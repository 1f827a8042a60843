"""The C++ training kernels have the bits of kernels/fp8.py, on ragged shapes and extreme values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fathom.kernels import fp8
from fathom.kernels.cpu import train

pytestmark = pytest.mark.skipif(train.available() is not None, reason="no C++ compiler here")

SHAPES = [(1, 1, 1), (5, 17, 130), (128, 128, 128), (129, 144, 257), (300, 33, 640), (7, 200, 96)]  # T, N, K


def values(*shape: int, seed: int = 0) -> Tensor:
    """Numbers over many orders of magnitude, zeros and a row that is all zero."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    x = torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).mul(3).exp()
    x[torch.rand(shape, generator=generator) < 0.05] = 0.0
    x.view(-1, shape[-1])[0] *= 0.0
    return x


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b, strict=True))


@pytest.fixture(params=[False, True], ids=["denormals", "flushed"], autouse=True)
def flush(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    """Training flushes denormals; E4M3's own subnormals must not be lost by that."""
    torch.set_flush_denormal(request.param)
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("scale", ["fp32", "ue8m0"])
@pytest.mark.parametrize("tokens, _, n", SHAPES)
def test_quantisers(tokens: int, _: int, n: int, scale: str) -> None:
    x, w = values(tokens, n), values(3, tokens, n, seed=1)
    ends = torch.tensor([tokens // 3, tokens // 3, tokens])
    tiles = train.quantise_tiles(x, scale)
    assert same(tiles, fp8.quantise_tiles(x, scale))
    assert same(train.quantise_blocks(w, scale), fp8.quantise_blocks(w, scale))
    assert same(train.quantise_blocks(x, scale), fp8.quantise_blocks(x, scale))
    for some in (None, ends):
        assert same(train.quantise_columns(x, scale, some), fp8.quantise_columns(x, scale, some))
        assert same(train.retile(tiles, scale, some), fp8.retile(tiles, scale, some))
        assert same(train.quantise_block_tiles(x, scale, some), fp8.quantise_block_tiles(x, scale, some))


def test_every_code_and_every_tie() -> None:
    """All 254 finite codes survive, values between two codes go to the nearer, halfway to the even one."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    codes = codes[codes.isfinite()].sort().values.unique()
    between = (codes[1:] + codes[:-1]) / 2
    near = torch.cat([codes, between, torch.nextafter(between, between + 1), torch.nextafter(between, between - 1)])
    near = torch.cat([near, torch.full((-len(near) % 128,), 448.0)]).view(-1, 128).clone()
    near[:, 0] = 448.0  # scale 1
    assert same(train.quantise_tiles(near), fp8.quantise_tiles(near))


@pytest.mark.parametrize("tokens, n, k", SHAPES)
def test_products(tokens: int, n: int, k: int) -> None:
    x, w, dy = values(tokens, k), values(n, k, seed=1), values(tokens, n, seed=2)
    xt, wb, dt = fp8.quantise_tiles(x), fp8.quantise_blocks(w), fp8.quantise_tiles(dy)
    assert torch.equal(train.fprop(xt, wb), fp8.fprop(xt, wb))
    assert torch.equal(train.dgrad(dt, wb), fp8.dgrad(dt, wb))
    grad = values(n, k, seed=3)
    other = grad.clone()
    xc, dc = fp8.quantise_columns(x), fp8.quantise_columns(dy)
    train.wgrad(dc, xc, grad)
    fp8.wgrad(dc, xc, other)
    assert torch.equal(grad, other)


@pytest.mark.parametrize("tokens, n, k", SHAPES)
def test_grouped_products(tokens: int, n: int, k: int) -> None:
    ends = torch.tensor([tokens // 4, tokens // 4, tokens // 2, tokens, tokens])
    x, w, dy = values(tokens, k), values(5, n, k, seed=1), values(tokens, n, seed=2)
    xt, wb, dt = fp8.quantise_tiles(x), fp8.quantise_blocks(w), fp8.quantise_tiles(dy)
    assert torch.equal(train.grouped_fprop(xt, wb, ends), fp8.grouped_fprop(xt, wb, ends))
    assert torch.equal(train.grouped_dgrad(dt, wb, ends), fp8.grouped_dgrad(dt, wb, ends))
    grad = values(5, n, k, seed=3)
    other = grad.clone()
    xc, dc = fp8.quantise_columns(x, ends=ends), fp8.quantise_columns(dy, ends=ends)
    train.grouped_wgrad(dc, xc, ends, grad)
    fp8.grouped_wgrad(dc, xc, ends, other)
    assert torch.equal(grad, other)


def test_threads_do_not_change_a_bit() -> None:
    x, w = fp8.quantise_tiles(values(333, 384)), fp8.quantise_blocks(values(272, 384, seed=1))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(train.fprop(x, w))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(r, results[0]) for r in results)
