"""AdamW against torch's and against its formula in float64; C++ against plain; a slice gets the bits of the whole."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.kernels.adamw import AdamW
from fathom.kernels.cpu import train

SIZES = [1, 15, 16, 17, 1003]
FAST = pytest.mark.skipif(train.available() is not None, reason="no C++ compiler here")
IMPLEMENTATIONS = [pytest.param(False, id="plain"), pytest.param(True, id="cpu", marks=FAST)]
# One step changes a weight by at most about lr. Of that, FP32 keeps all but a millionth:
LR = 0.01
TOLERANCE = 2e-8 + 1e-6 * LR


def gradients(n: int, steps: int = 4) -> list[Tensor]:
    """Of very different sizes, with zeros."""
    generator = torch.Generator().manual_seed(n)
    out = []
    for _ in range(steps):
        g = torch.randn(n, generator=generator) * torch.randn(n, generator=generator).mul(4).exp()
        out.append(g.masked_fill(torch.rand(n, generator=generator) < 0.1, 0.0))
    return out


def start(n: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(1))


def run(rule: AdamW, n: int, cuts: tuple[int, ...] = (), **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and moments after four steps, done on slices that end at `cuts`."""
    w, m, v = start(n), torch.zeros(n, dtype=rule.moments), torch.zeros(n, dtype=rule.moments)
    for step, g in enumerate(gradients(n), 1):
        first = 0
        for end in (*cuts, n):
            part = slice(first, end)
            rule.update(w[part], g[part], m[part], v[part], lr=LR, step=step, **options)
            first = end
    return w, m, v


def formula(rule: AdamW, n: int, decay: bool, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """In float64; the moments are stored in the rule's dtype after each step, the step itself uses them unrounded."""
    w = start(n).double()
    m, v = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for t, g in enumerate(gradients(n), 1):
        g = g.double() * scale
        m, v = rule.beta1 * m + (1 - rule.beta1) * g, rule.beta2 * v + (1 - rule.beta2) * g * g
        w = w * (1 - LR * rule.weight_decay * decay)
        w = w - LR * m / (1 - rule.beta1**t) / ((v / (1 - rule.beta2**t)).sqrt() + rule.eps)
        m, v = m.to(rule.moments).double(), v.to(rule.moments).double()
    return w, m, v


@pytest.mark.parametrize("fast", IMPLEMENTATIONS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("decay", "scale"), [(True, 1.0), (False, 1.0), (True, 0.3)])
def test_the_formula(fast: bool, n: int, decay: bool, scale: float) -> None:
    rule = AdamW(weight_decay=0.2, fast=fast)
    (w, m, v), (wanted, wanted_m, wanted_v) = run(rule, n, decay=decay, scale=scale), formula(rule, n, decay, scale)
    torch.testing.assert_close(w.double(), wanted, rtol=3e-7, atol=4 * TOLERANCE)
    # where steps of different signs cancel, what is left has the error of what was
    largest = torch.stack(gradients(n)).abs().amax(0).double() * scale
    assert bool(((m - wanted_m).abs() <= 1e-6 * largest).all())
    torch.testing.assert_close(v.double(), wanted_v, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("fast", IMPLEMENTATIONS)
def test_torchs_own(fast: bool) -> None:
    n = 1003
    w, m, v = run(AdamW(0.8, 0.97, 1e-6, 0.3, fast=fast), n, decay=True)
    theirs = torch.nn.Parameter(start(n))
    optimizer = torch.optim.AdamW([theirs], lr=LR, betas=(0.8, 0.97), eps=1e-6, weight_decay=0.3)
    for g in gradients(n):
        theirs.grad = g
        optimizer.step()
    torch.testing.assert_close(w, theirs.detach(), rtol=1e-6, atol=4 * TOLERANCE)
    state = optimizer.state[theirs]
    torch.testing.assert_close(v, state["exp_avg_sq"], rtol=3e-6, atol=1e-30)
    largest = torch.stack(gradients(n)).abs().amax(0)
    assert bool(((m - state["exp_avg"]).abs() <= 1e-6 * largest).all())


@pytest.mark.parametrize("fast", IMPLEMENTATIONS)
@pytest.mark.parametrize("n", SIZES)
def test_bf16_moments(fast: bool, n: int) -> None:
    """Rounded to nearest once a step. FP32 noise turns the rounding of a few near a tie: one unit of 2^-8."""
    rule = AdamW(moments=torch.bfloat16, fast=fast)
    (w, m, v), (wanted, wanted_m, wanted_v) = run(rule, n, decay=True), formula(rule, n, True, 1.0)
    assert m.dtype == v.dtype == torch.bfloat16
    for mine, definition in ((m, wanted_m), (v, wanted_v)):
        torch.testing.assert_close(mine.double(), definition, rtol=2**-7, atol=1e-30)
        assert float((mine.double() == definition).double().mean()) >= (0.99 if n > 100 else 0.9)
    same = (m.double() == wanted_m) & (v.double() == wanted_v)
    torch.testing.assert_close(w.double()[same], wanted[same], rtol=3e-7, atol=1e-2 * LR)
    exact, _, _ = run(AdamW(fast=fast), n, decay=True)
    if n > 100:
        assert not torch.equal(w, exact), "BF16 moments must show"


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fast", IMPLEMENTATIONS)
@pytest.mark.parametrize("cuts", [(16,), (512, 1000), (1, 2, 3, 500)])
def test_a_slice_gets_the_bits_of_the_whole(moments: torch.dtype, fast: bool, cuts: tuple[int, ...]) -> None:
    """What ZeRO relies on."""
    rule = AdamW(moments=moments, fast=fast)
    whole, sliced = run(rule, 1003, decay=True), run(rule, 1003, cuts, decay=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, sliced, strict=True))


@pytest.mark.parametrize("fast", IMPLEMENTATIONS)
def test_without_a_gradient_only_decay_is_left(fast: bool) -> None:
    w, m, v = start(33), torch.zeros(33), torch.zeros(33)
    before, rule = w.clone(), AdamW(weight_decay=0.1, fast=fast)
    rule.update(w, torch.zeros(33), m, v, lr=0.5, step=1, decay=False)
    assert torch.equal(w, before) and not m.any() and not v.any()
    rule.update(w, torch.zeros(33), m, v, lr=0.5, step=2, decay=True)
    torch.testing.assert_close(w, before * 0.95)


@pytest.mark.parametrize("fast", IMPLEMENTATIONS)
def test_the_first_step_has_the_size_of_lr(fast: bool) -> None:
    """Bias correction: m / sqrt(v) is the gradient's sign, whatever its size."""
    w, g = torch.zeros(4), torch.tensor([1e-3, -1.0, 1e3, -1e6])
    AdamW(fast=fast, eps=0.0).update(w, g, torch.zeros(4), torch.zeros(4), lr=0.01, step=1, decay=True)
    assert w.tolist() == pytest.approx([-0.01, 0.01, -0.01, 0.01], rel=1e-5)
    assert math.isfinite(float(w.sum()))
