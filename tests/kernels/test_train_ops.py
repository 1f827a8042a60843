"""Elementwise parts of a training step: plain PyTorch against float64, C++ against plain, on ragged shapes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels.cpu import train
from fathom.kernels.train_ops import TrainOps, pick_training
from fathom.runtime import UserError

FAST = pytest.mark.skipif(train.available() is not None, reason="no C++ compiler here")
TABLES = ["plain", pytest.param("cpu", marks=FAST)]
SHAPES = [(1, 1), (3, 7), (5, 16), (2, 31), (9, 100), (4, 384)]  # rows, width


@pytest.fixture(params=[False, True], ids=["denormals", "flushed"], autouse=True)
def flush(request: pytest.FixtureRequest) -> Iterator[None]:
    """Training flushes denormals."""
    torch.set_flush_denormal(request.param)
    yield
    torch.set_flush_denormal(False)


def draw(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).mul(spread).exp()


def close(mine: Tensor, wanted: Tensor, tolerance: float = 2e-6) -> None:
    """Relative to each value, and to a millionth of the largest where terms cancel."""
    assert mine.dtype == torch.float32 and mine.shape == wanted.shape
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    torch.testing.assert_close(mine.double(), wanted.double(), rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_swiglu(table: str, rows: int, width: int) -> None:
    ops = pick_training(table)
    h = draw(rows, 2 * width)
    gate, up = h.double().chunk(2, dim=1)
    close(ops.swiglu(h), gate / (1 + (-gate).exp()) * up)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_swiglu_backward_is_autograds(table: str, weighted: bool, rows: int, width: int) -> None:
    """Of y = weight * down(swiglu(h)): da is the gradient that has come back through `down`."""
    ops = pick_training(table)
    h, da, weight = draw(rows, 2 * width), draw(rows, width, seed=1), draw(rows, seed=2)
    dh, a, dw = ops.swiglu_backward(h, da, weight if weighted else None)
    exact_h, exact_weight = h.double().requires_grad_(), weight.double().requires_grad_()
    gate, up = exact_h.chunk(2, dim=1)
    exact_a = F.silu(gate) * up
    ((exact_weight[:, None] if weighted else 1.0) * exact_a * da.double()).sum().backward()
    assert exact_h.grad is not None
    close(dh, exact_h.grad)
    close(a, exact_a.detach())
    assert (dw is None) == (not weighted)
    if dw is not None:
        assert exact_weight.grad is not None
        largest = float((exact_a.detach() * da.double()).abs().sum(1).max())
        assert float((dw - exact_weight.grad).abs().max()) < 1e-6 * largest


@pytest.mark.parametrize("table", TABLES)
def test_swiglu_of_extreme_gates(table: str) -> None:
    """exp must neither overflow into NaN nor lose the tails."""
    ops = pick_training(table)
    gate = torch.tensor([0.0, -0.0, 1e-30, 20.0, -20.0, 88.0, -88.0, 100.0, -100.0, 1e4, -1e4, 3e38, -3e38])
    h = torch.cat([gate, torch.ones_like(gate)])[None]
    s = gate.double().sigmoid()
    a = ops.swiglu(h)
    assert a.isfinite().all()
    usual = gate.abs() < 1e5  # beyond, a tail that should be zero may be a number of FP32's smallest times 1e38
    torch.testing.assert_close(a[0][usual].double(), (gate.double() * s)[usual], rtol=5e-6, atol=1e-30)
    dh, _, _ = ops.swiglu_backward(h, torch.ones(1, len(gate)), None)
    assert dh.isfinite().all()
    wanted = s + gate.double() * s * (1 - s)
    torch.testing.assert_close(dh[0, : len(gate)][usual].double(), wanted[usual], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("top_k", [1, 2, 3, 8])
@pytest.mark.parametrize(("tokens", "width"), SHAPES)
def test_combine(table: str, top_k: int, tokens: int, width: int) -> None:
    ops = pick_training(table)
    y, weight = draw(tokens * top_k, width), draw(tokens, top_k, seed=1)
    place = torch.randperm(tokens * top_k, generator=torch.Generator().manual_seed(0)).view(tokens, top_k)
    terms = y.double()[place]
    for given, factor in ((weight, weight.double()[..., None]), (None, 1.0)):
        wanted = (terms * factor).sum(1)
        largest = float((terms * factor).abs().max())
        assert float((ops.combine(y, place, given) - wanted).abs().max()) <= 1e-6 * largest


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("n", [1, 5, 16, 33, 1000])
def test_round_bf16(table: str, n: int) -> None:
    """To nearest, ties to even; the same as a cast there and back."""
    x = draw(n, spread=8.0)
    assert torch.equal(pick_training(table).round_bf16(x), x.bfloat16().float())
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20, 0.0, -0.0, 3.0])
    wanted = [1.0, 1 + 2**-6, -1.0, 1 + 2**-7, 0.0, 0.0, 3.0]
    assert pick_training(table).round_bf16(ties).tolist() == wanted


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("rows", "width"), [*SHAPES, (3, 128), (2, 129), (2, 300)])
def test_round_e5m6(table: str, rows: int, width: int) -> None:
    """Per 128 values a power of two that brings the largest to at most 65024; then 6 mantissa bits."""
    x = draw(rows, width, spread=3.0)
    mine = pick_training(table).round_e5m6(x)
    for row, rounded in zip(x.double(), mine.double(), strict=True):
        for tile, got in zip(row.split(128), rounded.split(128), strict=True):
            scale = 1.0
            while float(tile.abs().max()) / scale > 65024:
                scale *= 2
            while float(tile.abs().max()) / (scale / 2) <= 65024 and scale > 1e-4 / 65024:
                scale /= 2
            exponent = (tile / scale).abs().clamp(min=1e-300).log2().floor().clamp(min=-14)
            step = 2.0 ** (exponent - 6) * scale
            assert bool(((tile - got).abs() <= step / 2).all()), "the nearest"
            assert bool(((got / step) == (got / step).round()).all()), "a number of the format"


@FAST
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_cpu_equals_plain(rows: int, width: int) -> None:
    """Roundings bit for bit, also of values that rest exactly between two; sums and SwiGLU to the last places."""
    cpu, plain = pick_training("cpu"), pick_training("plain")
    x = draw(rows, 2 * width, spread=6.0)
    halfway = (x.bfloat16().float().view(torch.int32) + 0x8000).view(torch.float32)
    for value in (x, halfway):
        assert torch.equal(cpu.round_bf16(value), plain.round_bf16(value))
        assert torch.equal(cpu.round_e5m6(value), plain.round_e5m6(value))
    assert torch.equal(cpu.round_e5m6(torch.zeros(2, 200)), torch.zeros(2, 200))
    h, da, weight = draw(rows, 2 * width), draw(rows, width, seed=1), draw(rows, seed=2)
    close(cpu.swiglu(h), plain.swiglu(h))
    for mine, wanted in zip(cpu.swiglu_backward(h, da, weight), plain.swiglu_backward(h, da, weight), strict=True):
        assert mine is not None and wanted is not None
        close(mine, wanted, 1e-5)


@FAST
def test_threads_do_not_change_a_bit() -> None:
    cpu, h, da, weight = pick_training("cpu"), draw(67, 200), draw(67, 100, seed=1), draw(67, seed=2)
    place = torch.randperm(67, generator=torch.Generator().manual_seed(0))[:66].view(22, 3)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        dh, a, dw = cpu.swiglu_backward(h, da, weight)
        results.append([dh, a, dw, cpu.swiglu(h), cpu.combine(h, place, None), cpu.round_e5m6(h)])
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True) if x is not None)


def test_an_operation_does_not_touch_what_it_is_given() -> None:
    for name in ("plain", *(["cpu"] if train.available() is None else [])):
        ops: TrainOps = pick_training(name)
        assert ops.name == name
        h, da, weight = draw(6, 10), draw(6, 5, seed=1), draw(6, seed=2)
        before = [t.clone() for t in (h, da, weight)]
        ops.swiglu(h)
        ops.swiglu_backward(h, da, weight)
        ops.round_bf16(h)
        ops.round_e5m6(h)
        ops.combine(h, torch.tensor([[0, 5], [1, 2]]), torch.ones(2, 2))
        assert all(torch.equal(a, b) for a, b in zip(before, (h, da, weight), strict=True))


def test_names() -> None:
    assert pick_training("auto").name == ("cpu" if train.available() is None else "plain")
    with pytest.raises(UserError, match="'gpu'"):
        pick_training("gpu")


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "available", lambda: "no compiler was found")
    assert pick_training("auto").name == "plain"
    with pytest.raises(UserError, match="no compiler was found"):
        pick_training("cpu")
