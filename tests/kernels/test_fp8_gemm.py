"""The FP8 definition: its products bit by bit against loops over single numbers, its tiles on ragged shapes, E5M6."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.kernels import fp8, reference
from fathom.runtime import UserError

SCALES = list(fp8.SCALE_FORMATS)
SHAPES = [(3, 150, 5), (130, 4, 2), (2, 3, 260), (1, 128, 1), (4, 1, 3)]  # tokens, inputs, outputs
ENDS = torch.tensor([3, 3, 135, 150])  # an expert without tokens, one with two tiles


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Gaussian rows of very different sizes."""
    g = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=g) * torch.randn(*shape[:-1], 1, generator=g).exp()


def plain_sum(a: Tensor, b: Tensor, scales: list[tuple[Tensor, Tensor]]) -> np.float32:
    """One result: `a` and `b` E4M3 vectors, (scale_a, scale_b) of each 128. NumPy rounds after every operation."""
    x, y, acc = a.float().numpy(), b.float().numpy(), np.float32(0)
    for j, (scale_a, scale_b) in enumerate(scales):
        part = np.float32(0)
        for k in range(j * 128, min(j * 128 + 128, len(x))):
            part = np.float32(part + np.float32(x[k] * y[k]))
        scale = np.float32(np.float32(scale_a) * np.float32(scale_b))
        acc = np.float32(acc + np.float32(part * scale))
    return acc


def table(rows: int, columns: int, one: Callable[[int, int], np.float32]) -> Tensor:
    return torch.tensor([[one(i, j) for j in range(columns)] for i in range(rows)])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_bit_by_bit(shape: tuple[int, int, int], scale: str) -> None:
    tokens, inputs, outputs = shape
    x, w, dy = normal(tokens, inputs), normal(outputs, inputs), normal(tokens, outputs, seed=1)
    xt, wb, dt = fp8.quantise_tiles(x, scale), fp8.quantise_blocks(w, scale), fp8.quantise_tiles(dy, scale)
    plain = table(tokens, outputs, lambda t, n: plain_sum(
        xt.values[t], wb.values[n], [*zip(xt.scale[t], wb.scale[n // 128], strict=True)]))  # fmt: skip
    assert torch.equal(fp8.fprop(xt, wb), plain)
    plain = table(tokens, inputs, lambda t, k: plain_sum(
        dt.values[t], wb.values[:, k], [*zip(dt.scale[t], wb.scale[:, k // 128], strict=True)]))  # fmt: skip
    assert torch.equal(fp8.dgrad(dt, wb), plain)
    xc, dc = fp8.quantise_columns(x, scale), fp8.quantise_columns(dy, scale)
    plain = table(outputs, inputs, lambda n, k: plain_sum(
        dc.values[:, n], xc.values[:, k], [*zip(dc.scale[:, n], xc.scale[:, k], strict=True)]))  # fmt: skip
    start = normal(outputs, inputs, seed=2)
    grad = start.clone()
    fp8.wgrad(dc, xc, grad)
    assert torch.equal(grad, start + plain)


def test_products_of_quantised_data_are_near_the_exact_ones() -> None:
    """E4M3 keeps 3 bits: random errors of a few percent of each product average out over the sum."""
    x, w, dy = normal(150, 300), normal(140, 300), normal(150, 140)
    grad = torch.zeros(140, 300)
    fp8.wgrad(fp8.quantise_columns(dy), fp8.quantise_columns(x), grad)
    for got, exact in (
        (fp8.fprop(fp8.quantise_tiles(x), fp8.quantise_blocks(w)), x.double() @ w.double().T),
        (fp8.dgrad(fp8.quantise_tiles(dy), fp8.quantise_blocks(w)), dy.double() @ w.double()),
        (grad, dy.double().T @ x.double()),
    ):
        assert 1e-3 < (got - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n", [1, 127, 128, 300])
def test_tiles_of_any_width(n: int, scale: str) -> None:
    """A short last tile is scaled by its own numbers alone."""
    x = normal(2, 5, n)
    tiles = fp8.quantise_tiles(x, scale)
    assert tiles.values.shape == x.shape and tiles.scale.shape == (2, 5, -(-n // 128))
    for j, part in enumerate(x.split(128, dim=-1)):
        values, scales = reference.quantize_tiles(part, part.shape[-1], fp8.SCALE_FORMATS[scale])
        assert torch.equal(tiles.values.split(128, dim=-1)[j].float(), values.float())
        assert torch.equal(tiles.scale[..., j], scales[..., 0])
    spread = tiles.scale.repeat_interleave(128, -1)[..., :n]
    assert torch.equal(fp8.dequantise_tiles(tiles), tiles.values.float() * spread)


@pytest.mark.parametrize("ends", [None, ENDS, torch.tensor([150])], ids=["dense", "experts", "one expert"])
def test_columns_are_tiles_along_the_tokens_of_each_expert(ends: Tensor | None) -> None:
    x = normal(150, 7)
    columns = fp8.quantise_columns(x, "ue8m0", ends)
    tiles = fp8.token_tiles(150, ends)
    assert tiles == ([(0, 3), (3, 131), (131, 135), (135, 150)] if ends is ENDS else [(0, 128), (128, 150)])
    assert columns.scale.shape == (len(tiles), 7)
    for row, (first, last) in enumerate(tiles):
        alone = fp8.quantise_tiles(x[first:last].T, "ue8m0")
        assert torch.equal(columns.values[first:last].float(), alone.values.float().T)
        assert torch.equal(columns.scale[row], alone.scale[:, 0])


def test_stacked_blocks_are_each_experts_own() -> None:
    w = normal(3, 140, 200)
    blocks = fp8.quantise_blocks(w)
    assert blocks.scale.shape == (3, 2, 2)
    for e in range(3):
        values, scale = reference.quantize_blocks(w[e])
        assert torch.equal(blocks.values[e].float(), values.float()) and torch.equal(blocks.scale[e], scale)


@pytest.mark.parametrize("scale", SCALES)
def test_grouped_products_are_each_experts_own(scale: str) -> None:
    x, dy, w = normal(150, 40), normal(150, 24), normal(4, 24, 40)
    blocks = fp8.quantise_blocks(w, scale)
    y = fp8.grouped_fprop(fp8.quantise_tiles(x, scale), blocks, ENDS)
    dx = fp8.grouped_dgrad(fp8.quantise_tiles(dy, scale), blocks, ENDS)
    grad = torch.ones_like(w)
    fp8.grouped_wgrad(fp8.quantise_columns(dy, scale, ENDS), fp8.quantise_columns(x, scale, ENDS), ENDS, grad)
    for e, (a, b) in enumerate([(0, 3), (3, 3), (3, 135), (135, 150)]):
        alone = fp8.quantise_blocks(w[e], scale)
        assert torch.equal(y[a:b], fp8.fprop(fp8.quantise_tiles(x[a:b], scale), alone))
        assert torch.equal(dx[a:b], fp8.dgrad(fp8.quantise_tiles(dy[a:b], scale), alone))
        wanted = torch.ones_like(w[e])
        fp8.wgrad(fp8.quantise_columns(dy[a:b], scale), fp8.quantise_columns(x[a:b], scale), wanted)
        assert torch.equal(grad[e], wanted)
    assert torch.equal(grad[1], torch.ones_like(grad[1]))  # no tokens, no gradient


def test_no_tokens_at_all() -> None:
    ends, w = torch.zeros(2, dtype=torch.int64), fp8.quantise_blocks(normal(2, 5, 6))
    assert fp8.grouped_fprop(fp8.quantise_tiles(torch.zeros(0, 6)), w, ends).shape == (0, 5)
    assert fp8.quantise_block_tiles(torch.zeros(0, 5), ends=ends).scale.shape == (0, 1)
    grad = torch.ones(2, 5, 6)
    columns = [fp8.quantise_columns(torch.zeros(0, n), ends=ends) for n in (5, 6)]
    fp8.grouped_wgrad(columns[0], columns[1], ends, grad)
    assert torch.equal(grad, torch.ones(2, 5, 6))


def test_one_outlier_token_hurts_its_block_only_when_tokens_share_scales() -> None:
    """The ablation's contrast: gradient outliers follow tokens (report appendix B.2)."""
    dy = torch.randn(150, 200, generator=torch.Generator().manual_seed(0))
    dy[7] *= 1e6
    tiles, blocks = fp8.quantise_tiles(dy), fp8.quantise_block_tiles(dy, ends=torch.tensor([100, 150]))
    assert blocks.scale.shape == tiles.scale.shape
    assert torch.equal(blocks.scale[:100], blocks.scale[:1].expand(100, 2))
    assert torch.equal(blocks.scale[100:], blocks.scale[100:101].expand(50, 2))  # blocks start anew at each expert
    own = fp8.quantise_blocks(dy[:100])
    assert torch.equal(blocks.values[:100].float(), own.values.float()) and torch.equal(blocks.scale[0], own.scale[0])
    others = [t for t in range(100) if t != 7]
    error = {name: (fp8.dequantise_tiles(q) - dy)[others].norm() / dy[others].norm() for name, q in
             (("tiles", tiles), ("blocks", blocks))}  # fmt: skip
    assert error["tiles"] < 0.04 and error["blocks"] > 0.5


def test_power_of_two_scales_survive_the_turn_to_columns() -> None:
    """Report 3.3.3: exact wherever the column's scale is not the larger one. FP32 scales round again."""
    x = normal(256, 200)
    for scale in SCALES:
        tiles = fp8.quantise_tiles(x, scale)
        columns = fp8.retile(tiles, scale)
        column_scale = columns.scale.repeat_interleave(128, 0)
        before, after = fp8.dequantise_tiles(tiles), columns.values.float() * column_scale
        finer = column_scale <= tiles.scale.repeat_interleave(128, 1)[:, :200]
        assert 0.05 < finer.float().mean() < 0.95
        assert torch.equal(before[finer], after[finer]) == (scale == "ue8m0")


# ---- E5M6


def all_e5m6() -> Tensor:
    """Every finite number whose FP16 has four zero bits at its end, sorted."""
    bits = torch.arange(4096, dtype=torch.int32) << 4
    values = torch.where(bits >= 2**15, bits - 2**16, bits).to(torch.int16).view(torch.float16).float()
    return values[values.isfinite()].unique()


def test_e5m6_numbers_are_kept_and_others_go_to_the_nearest_even() -> None:
    numbers = all_e5m6()
    assert torch.equal(fp8.round_e5m6(numbers), numbers)
    low, high = numbers[:-1].double(), numbers[1:].double()
    for share, wanted in ((0.49, low), (0.51, high)):
        assert torch.equal(fp8.round_e5m6((low + share * (high - low)).float()).double(), wanted)
    middle = fp8.round_e5m6(((low + high) / 2).float()).double()
    assert ((middle == low) | (middle == high)).all()
    assert not (middle.half().view(torch.int16) & 16).any()  # the last of the 12 bits: even
    assert torch.equal(fp8.round_e5m6(torch.tensor([7e4, -1e9, 0.0])), torch.tensor([65024.0, -65024.0, 0.0]))


@pytest.mark.parametrize("n", [1, 128, 300])
def test_e5m6_tiles(n: int) -> None:
    x = normal(6, n)
    x[0] = 0
    tiles = fp8.quantise_e5m6(x)
    assert tiles.values.shape == x.shape and tiles.scale.shape == (6, -(-n // 128))
    assert torch.isin(tiles.values, all_e5m6()).all() and (torch.frexp(tiles.scale).mantissa == 0.5).all()
    top = tiles.scale[1:] * fp8.E5M6_MAX
    amax = torch.stack([part.abs().amax(-1) for part in x[1:].split(128, dim=-1)], dim=-1)
    assert (top >= amax).all() and (top < 2 * amax).all()
    back = fp8.dequantise_tiles(tiles)
    assert ((back - x).abs() <= x.abs() * 2.0**-7 + 1e-12).all()
    assert not back[0].any()


def test_mistakes_are_named() -> None:
    x = torch.ones(4, 4)
    for quantise in (fp8.quantise_tiles, fp8.quantise_columns, fp8.quantise_blocks, fp8.quantise_block_tiles):
        with pytest.raises(UserError, match="'e8m0' is not known; use one of fp32, ue8m0"):
            quantise(x, "e8m0")
    for ends in ([2, 3], [3, 2, 4], [5]):
        with pytest.raises(UserError, match="must stop at 4"):
            partial(fp8.quantise_columns, x, ends=torch.tensor(ends))()
