"""Muon: the fast batched rule against the plain one, and what the plain one promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fathom.kernels.muon import Muon, orthogonal, plain_update

SHAPES = [(1, 5, 9), (3, 9, 5), (2, 16, 16), (4, 7, 1), (2, 40, 96), (1, 1, 1)]
STEPS, LR, DECAY = 4, 0.02, 0.3


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run_plain(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight, m = drawn(shape, 0).to(dtype), torch.zeros(shape, dtype=dtype)
    for step in range(STEPS):
        grad = drawn(shape, step + 1).to(dtype) * 10.0 ** (step - 2)
        for i in range(shape[0]):
            plain_update(weight[i], grad[i], m[i], lr=LR, momentum=0.95, weight_decay=DECAY)
    return weight, m


def run_fast(shape: tuple[int, int, int], rule: Muon, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    weight, m = drawn(shape, 0), torch.zeros(shape, dtype=rule.moment)
    for step in range(STEPS):
        d = drawn(shape, step + 1) * 10.0 ** (step - 2) / scale
        rule.look_ahead(d.view(-1), m.view(-1), scale)
        rule.apply(weight, rule.change(d), LR)
    return weight, m


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_batch_is_the_definition_of_each(shape: tuple[int, int, int]) -> None:
    wanted, wanted_m = run_plain(shape, torch.float64)
    weight, m = run_fast(shape, Muon(weight_decay=DECAY), scale=4.0)  # a power of two: the same gradients
    torch.testing.assert_close(m.double(), wanted_m, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(weight.double(), wanted, rtol=1e-5, atol=2e-5)
    in_place, _ = run_plain(shape, torch.float32)
    torch.testing.assert_close(weight, in_place, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [s for s in SHAPES if min(s[1:]) > 1], ids=str)
def test_products_in_bf16_and_a_bf16_moment(shape: tuple[int, int, int]) -> None:
    """Within BF16's rounding of the exact one, and not the same: the choice must show."""
    wanted, _ = run_plain(shape, torch.float64)
    exact, _ = run_fast(shape, Muon(weight_decay=DECAY))
    step = LR * 0.2 * math.sqrt(max(shape[1:]))
    for rule in (Muon(weight_decay=DECAY, products=torch.bfloat16), Muon(weight_decay=DECAY, moment=torch.bfloat16)):
        weight, _ = run_fast(shape, rule)
        off = (weight - wanted).norm() / (STEPS * step * math.sqrt(min(shape[1:]) * shape[0]))
        assert 1e-5 < float(off) < 0.05
        assert not torch.equal(weight, exact)


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 64, 200), (3, 200, 64), (2, 24, 256)], ids=str)
def test_singular_values_end_near_one(products: torch.dtype, shape: tuple[int, int, int]) -> None:
    """And the vectors stay: U^T X V is diagonal."""
    d = drawn(shape, 1)
    x = orthogonal(d.double() if products == torch.float64 else d, products).double()
    values = torch.linalg.svdvals(x)
    assert float(values.min()) > 0.67 and float(values.max()) < 1.2
    u, _, vh = torch.linalg.svd(d.double(), full_matrices=False)
    inside = u.mT @ x @ vh.mT
    off = inside - torch.diag_embed(inside.diagonal(dim1=-2, dim2=-1))
    assert float(off.abs().max()) < (0.05 if products == torch.bfloat16 else 1e-4)


def test_the_update_has_adamws_size() -> None:
    """Root mean square about 0.2 of a matrix of full rank, whatever the gradient's size."""
    for shape in ((2, 96, 96), (2, 32, 128), (2, 128, 32)):
        for size in (1e-4, 1e4):
            change = Muon().change(drawn(shape, 3) * size)
            rms = float(change.square().mean().sqrt())
            assert rms == pytest.approx(0.2, rel=0.25), (shape, size)


def test_without_a_gradient_only_decay_is_left() -> None:
    weight, rule = drawn((2, 4, 6), 0), Muon(weight_decay=0.1)
    d, m = torch.zeros(2, 4, 6), torch.zeros(2, 4, 6)
    before = weight.clone()
    rule.look_ahead(d.view(-1), m.view(-1))
    rule.apply(weight, rule.change(d), 0.5)
    torch.testing.assert_close(weight, before * 0.95)
    assert not m.any()


def test_a_slice_of_the_moment_gets_the_bits_of_the_whole() -> None:
    """What ZeRO relies on."""
    for moment in (torch.float32, torch.bfloat16):
        rule = Muon(moment=moment)
        whole, m = drawn((1003,), 1), drawn((1003,), 2).to(moment)
        parts, part_m = whole.clone(), m.clone()
        rule.look_ahead(whole, m, 0.3)
        for at in ((0, 16), (16, 17), (17, 1003)):
            rule.look_ahead(parts[slice(*at)], part_m[slice(*at)], 0.3)
        assert torch.equal(whole, parts) and torch.equal(m, part_m)
