"""The Triton kernels against the FP8 definition. test_triton.py runs this file in a process of its own, because where
kernels run (GPU, or the interpreter) is decided when they are imported. By hand, on a machine with a GPU:

    python -m pytest tests/kernels/triton_cases.py
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from fathom.kernels import fp8
from fathom.kernels.fp8 import Blocks, Columns, Tiles
from fathom.kernels.triton import gemm, quantise, train, unavailable
from fathom.kernels.triton.quantise import PackedColumns

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# relative to the largest result: sums in another order; Hopper's tensor cores keep 14 bits of each sum of 32
TOLERANCE = 1e-6 if INTERPRETED else 1e-3
SCALES = list(fp8.SCALE_FORMATS)
SHAPES = [(150, 200, 130), (1, 17, 140), (128, 128, 128), (33, 1, 1)]  # tokens, inputs, outputs
ENDS = [[3, 3, 140, 150], [0, 0, 128, 256, 256], [1, 2, 150], [150]]

if reason := unavailable():
    pytest.skip(reason, allow_module_level=True)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Gaussian rows of very different sizes, with zeros, both signs of it, and one row of nothing else."""
    g = torch.Generator().manual_seed(seed + sum(shape))
    x = torch.randn(shape, generator=g) * torch.randn(*shape[:-1], 1, generator=g).mul(3).exp()
    chance = torch.rand(shape, generator=g)
    x[chance < 0.05] = 0.0
    x[chance > 0.95] = -0.0
    x.flatten(0, -2)[-1] = 0.0
    return x


def same(got: Tiles | Blocks, wanted: Tiles | Blocks) -> None:
    """Bit by bit; bytes are compared, so that -0 is not 0."""
    assert got.values.dtype == torch.float8_e4m3fn and got.values.shape == wanted.values.shape
    assert torch.equal(got.values.cpu().view(torch.uint8), wanted.values.view(torch.uint8))
    assert torch.equal(got.scale.cpu(), wanted.scale)


def same_columns(got: PackedColumns, wanted: Columns, ends: Tensor | None) -> None:
    """Each row of 128 where it should be, and zeros after its tokens."""
    tiles = fp8.token_tiles(wanted.values.shape[0], ends)
    assert torch.equal(got.scale.cpu()[: len(tiles)], wanted.scale)
    packed = got.values.cpu().view(torch.uint8).unflatten(1, (-1, 128))  # [n, rows, 128]
    for row, (first, last) in enumerate(tiles):
        assert torch.equal(packed[:, row, : last - first].T, wanted.values[first:last].view(torch.uint8))
        assert not packed[:, row, last - first :].any()


def near(got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    assert (got.cpu() - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


def on_device(pair: Tiles | Blocks) -> Tiles | Blocks:
    return type(pair)(*(each.to(DEVICE) for each in pair))


def test_rounding_of_every_number_near_e4m3() -> None:
    """All E4M3 numbers, all middles between two (ties to even) and both neighbours of these in FP32; scale 1."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = numbers[numbers.isfinite()].unique()
    middles = (numbers[1:] + numbers[:-1]) / 2
    up, down = (torch.nextafter(middles, torch.tensor(s * torch.inf)) for s in (1, -1))
    x = torch.cat([numbers, middles, up, down, torch.tensor([-0.0, 1e-30, -1e-30])])
    x = torch.cat([x, x.new_zeros(-len(x) % 127)]).view(-1, 127)
    x = torch.cat([x, torch.full((len(x), 1), 448.0)], dim=1)
    got = quantise.quantise_tiles(x.to(DEVICE))
    assert torch.equal(got.scale.cpu(), torch.ones(len(x), 1))
    same(got, Tiles(x.to(torch.float8_e4m3fn), got.scale.cpu()))


@pytest.mark.parametrize(("scale", "dtype"), [("fp32", torch.float32), ("ue8m0", torch.bfloat16)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantising(shape: tuple[int, int, int], scale: str, dtype: torch.dtype) -> None:
    x = normal(*shape[:2]).to(dtype)
    same(quantise.quantise_tiles(x.to(DEVICE), scale), fp8.quantise_tiles(x, scale))
    same(quantise.quantise_blocks(x.to(DEVICE), scale), fp8.quantise_blocks(x, scale))
    same(quantise.quantise_block_tiles(x.to(DEVICE), scale), fp8.quantise_block_tiles(x, scale))
    same(quantise.quantise_tiles(x.T.to(DEVICE), scale), fp8.quantise_tiles(x.T, scale))  # not contiguous


def test_quantising_more_dimensions() -> None:
    x, w = normal(2, 3, 140), normal(3, 140, 200)
    same(quantise.quantise_tiles(x.to(DEVICE)), fp8.quantise_tiles(x))
    same(quantise.quantise_blocks(w.to(DEVICE)), fp8.quantise_blocks(w))


@pytest.mark.parametrize(("ends", "scale"), [(None, "ue8m0"), *((ends, "fp32") for ends in ENDS)], ids=str)
def test_columns_and_shared_tiles_by_expert(ends: list[int] | None, scale: str) -> None:
    tokens = ends[-1] if ends else 150
    x, stops = normal(tokens, 140 if tokens == 150 else 20), torch.tensor(ends) if ends else None
    same_columns(quantise.quantise_columns(x.to(DEVICE), scale, stops), fp8.quantise_columns(x, scale, stops), stops)
    tiles = fp8.quantise_tiles(x, scale)
    same_columns(quantise.retile(on_device(tiles), scale, stops), fp8.retile(tiles, scale, stops), stops)
    same(quantise.quantise_block_tiles(x.to(DEVICE), scale, stops), fp8.quantise_block_tiles(x, scale, stops))


@pytest.mark.parametrize("scale", SCALES)
def test_swiglu_tiles(scale: str) -> None:
    """The exponential is each machine's own: one E4M3 step of difference, rarely."""
    gate_up = normal(33, 2 * 140)
    got = quantise.swiglu_tiles(gate_up.to(DEVICE), scale)
    gate, up = gate_up.chunk(2, dim=-1)
    wanted = fp8.quantise_tiles(torch.nn.functional.silu(gate) * up, scale)
    torch.testing.assert_close(got.scale.cpu(), wanted.scale, rtol=1e-6, atol=0)
    steps = (got.values.cpu().view(torch.uint8).int() - wanted.values.view(torch.uint8).int()).abs()
    assert (steps % 128).max() <= 1 and (steps != 0).float().mean() < 5e-3


@pytest.mark.parametrize(("shape", "scale"), [*((s, "fp32") for s in SHAPES), (SHAPES[1], "ue8m0")], ids=str)
def test_products(shape: tuple[int, int, int], scale: str) -> None:
    tokens, inputs, outputs = shape
    x, w, dy = normal(tokens, inputs), normal(outputs, inputs, seed=1), normal(tokens, outputs, seed=2)
    xt, wb, dt = fp8.quantise_tiles(x, scale), fp8.quantise_blocks(w, scale), fp8.quantise_tiles(dy, scale)
    near(gemm.fprop(on_device(xt), on_device(wb)), fp8.fprop(xt, wb))
    near(gemm.dgrad(on_device(dt), on_device(wb)), fp8.dgrad(dt, wb))
    exact, half = (gemm.fprop(on_device(xt), on_device(wb), dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.bfloat16
    if INTERPRETED:  # it does not round to nearest
        assert ((half - exact).abs() <= exact.abs() * 2.0**-7).all()
    else:
        assert torch.equal(half, exact.bfloat16())
    grad, wanted = normal(outputs, inputs, seed=3).to(DEVICE), normal(outputs, inputs, seed=3)
    gemm.wgrad(quantise.quantise_columns(dy.to(DEVICE), scale), quantise.quantise_columns(x.to(DEVICE), scale), grad)
    fp8.wgrad(fp8.quantise_columns(dy, scale), fp8.quantise_columns(x, scale), wanted)
    near(grad, wanted)


@pytest.mark.parametrize("ends", ENDS, ids=str)
def test_grouped_products(ends: list[int]) -> None:
    tokens, stops = ends[-1], torch.tensor(ends)
    inputs, outputs = (140, 130) if len(ends) == 4 else (20, 30)
    x, dy, w = normal(tokens, inputs), normal(tokens, outputs), normal(len(ends), outputs, inputs)
    xt, wb, dt = fp8.quantise_tiles(x), fp8.quantise_blocks(w), fp8.quantise_tiles(dy)
    device_ends = stops.to(DEVICE, torch.int32)
    near(gemm.grouped_fprop(on_device(xt), on_device(wb), device_ends), fp8.grouped_fprop(xt, wb, stops))
    near(gemm.grouped_dgrad(on_device(dt), on_device(wb), device_ends), fp8.grouped_dgrad(dt, wb, stops))
    grad, wanted = torch.ones(w.shape, device=DEVICE), torch.ones(w.shape)
    columns = [quantise.quantise_columns(each.to(DEVICE), ends=device_ends) for each in (dy, x)]
    gemm.grouped_wgrad(columns[0], columns[1], device_ends, grad)
    fp8.grouped_wgrad(fp8.quantise_columns(dy, ends=stops), fp8.quantise_columns(x, ends=stops), stops, wanted)
    near(grad, wanted)
    for e, (first, last) in enumerate(fp8.segments(tokens, stops)):
        assert first < last or torch.equal(grad[e].cpu(), torch.ones(outputs, inputs))


def test_no_tokens() -> None:
    empty, ends = torch.zeros(0, 20, device=DEVICE), torch.zeros(2, dtype=torch.int32, device=DEVICE)
    w = quantise.quantise_blocks(torch.ones(2, 30, 20, device=DEVICE))
    assert gemm.grouped_fprop(quantise.quantise_tiles(empty), w, ends).shape == (0, 30)
    grad = torch.ones(2, 20, 20, device=DEVICE)
    gemm.grouped_wgrad(*(quantise.quantise_columns(empty, ends=ends) for _ in "ab"), ends, grad)
    assert torch.equal(grad, torch.ones_like(grad))


def test_the_table_has_what_the_definition_has() -> None:
    made = {name for name in vars(fp8) if name.startswith("quantise") or name.endswith(("prop", "grad"))}
    assert set(train.__all__) == made - {"quantise_e5m6"} | {"retile"}
    assert all(callable(getattr(train, name)) for name in train.__all__)
