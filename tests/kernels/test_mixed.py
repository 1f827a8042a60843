"""Linear layers and routed experts of a training model against what the docstring of kernels/mixed.py says they do.

fp32   autograd in float64            bf16   float64 with each rounding written out
fp8    the operations of kernels/fp8.py put together by hand, token group by token group: the same bits
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.kernels import fp8
from fathom.kernels.cpu import train
from fathom.kernels.deferred import WeightGradients
from fathom.kernels.mixed import Arithmetic, linear, routed_experts
from fathom.kernels.train_ops import TrainOps, pick_training
from fathom.runtime import UserError

FAST = pytest.mark.skipif(train.available() is not None, reason="no C++ compiler here")
TABLES = ["plain", pytest.param("cpu", marks=FAST)]
FP32_TOLERANCE = 5e-6  # of the largest value; sums of up to 200 products in 24 bits


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def how_of(gemm: str, table: str | TrainOps = "plain", queue: bool = True, **options: str) -> Arithmetic:
    ops = table if isinstance(table, TrainOps) else pick_training(table)
    return Arithmetic(gemm, ops=ops, queue=WeightGradients() if queue else None, **options)


def close(mine: Tensor | None, wanted: Tensor | None, tolerance: float = FP32_TOLERANCE) -> None:
    assert mine is not None and wanted is not None
    off = float((mine.double() - wanted.double()).abs().max() / wanted.double().abs().max())
    assert off < tolerance, off


def bf16(x: Tensor) -> Tensor:
    """Rounded, in the dtype it had."""
    return x.float().bfloat16().to(x.dtype)


# ---- the layers, run once


class Run(NamedTuple):
    """Output, and gradients in the order of the inputs."""

    y: Tensor
    gradients: list[Tensor]


def run_linear(how: Arithmetic, x: Tensor, w: Tensor, dy: Tensor, after_attention: bool = False) -> Run:
    x, weight = x.clone().requires_grad_(), nn.Parameter(w.clone())
    y = linear(x, weight, how, after_attention=after_attention)
    y.backward(dy)
    assert x.grad is not None and weight.grad is not None
    return Run(y.detach(), [x.grad, weight.grad])


class Case(NamedTuple):
    """Inputs of routed experts, and the gradient of their output."""

    x: Tensor
    indices: Tensor
    weights: Tensor
    gate_up: Tensor
    down: Tensor
    dout: Tensor


def experts_case(tokens: int, hidden: int, width: int, experts: int = 4, top_k: int = 2) -> Case:
    """Expert 1 gets nothing, expert 0 every token; values as a layer in BF16 gets them."""
    generator = torch.Generator().manual_seed(tokens)
    others = [torch.randperm(experts - 2, generator=generator)[: top_k - 1] + 2 for _ in range(tokens)]
    indices = torch.stack([torch.cat((o, torch.tensor([0]))) for o in others])
    weights = torch.rand(tokens, top_k, generator=generator) + 0.2
    gate_up, down = draw(experts, 2 * width, hidden, seed=1) * 0.1, draw(experts, hidden, width, seed=2) * 0.1
    return Case(bf16(draw(tokens, hidden)), indices, weights, gate_up, down, bf16(draw(tokens, hidden, seed=3)))


def run_experts(how: Arithmetic, case: Case) -> Run:
    x, weights = case.x.clone().requires_grad_(), case.weights.clone().requires_grad_()
    gate_up, down = nn.Parameter(case.gate_up.clone()), nn.Parameter(case.down.clone())
    y = routed_experts(x, case.indices, weights, gate_up, down, how)
    y.backward(case.dout)
    found = [x.grad, weights.grad, gate_up.grad, down.grad]
    return Run(y.detach(), [g for g in found if g is not None])


def plain_experts(x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Token by token."""
    rows = []
    for t in range(len(x)):
        y = torch.zeros_like(x[t])
        for k, e in enumerate(indices[t].tolist()):
            gate, up = (gate_up[e] @ x[t]).chunk(2)
            y = y + weights[t, k] * (down[e] @ (F.silu(gate) * up))
        rows.append(y)
    return torch.stack(rows)


# ---- fp32


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 33), (40, 130, 200)], ids=str)
def test_fp32_linear_is_autograds(table: str, shape: tuple[int, int, int]) -> None:
    tokens, outputs, inputs = shape
    x, w, dy = draw(tokens, inputs), draw(outputs, inputs, seed=1), draw(tokens, outputs, seed=2)
    mine = run_linear(how_of("fp32", table), x, w, dy)
    exact_x, exact_w = x.double().requires_grad_(), w.double().requires_grad_()
    y = exact_x @ exact_w.T
    y.backward(dy.double())
    close(mine.y, y.detach())
    close(mine.gradients[0], exact_x.grad)
    close(mine.gradients[1], exact_w.grad)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("shape", [(1, 5, 3), (13, 40, 17), (30, 130, 100)], ids=str)
def test_fp32_experts_are_autograds(table: str, shape: tuple[int, int, int]) -> None:
    case = experts_case(*shape, experts=5, top_k=3)
    mine = run_experts(how_of("fp32", table), case)
    exact = [case[0].double(), case[1], *(t.double() for t in case[2:5])]
    for tensor in (exact[0], *exact[2:]):
        tensor.requires_grad_()
    y = plain_experts(*exact)
    y.backward(case.dout.double())
    close(mine.y, y.detach())
    for gradient, tensor in zip(mine.gradients, (exact[0], *exact[2:]), strict=True):
        close(gradient, tensor.grad)
    assert not mine.gradients[2][1].any() and not mine.gradients[3][1].any(), "the expert without a token"


# ---- bf16


def nearly_bits(mine: Tensor, wanted: Tensor, share: float, bits: bool = True) -> float:
    """Values of BF16 that equal the definition's but for ties that FP32's last bits turn; returns how many do."""
    if bits:
        assert torch.equal(mine, bf16(mine)), "a result is a BF16 value"
    largest = float(wanted.abs().max())
    torch.testing.assert_close(mine.double(), wanted.double(), rtol=2**-7, atol=2**-8 * largest)
    same = float((mine.double() == bf16(wanted.double())).double().mean()) if bits else 1.0
    assert same >= share, same
    return same


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("carry", [True, False])
def test_bf16_linear(table: str, carry: bool) -> None:
    """Operands and results rounded; the weight gradient is a sum in FP32 and is not."""
    x, w, dy = draw(40, 200), draw(130, 200, seed=1), draw(40, 130, seed=2)
    how = dataclasses.replace(how_of("bf16", table), carry_bf16=carry)
    mine = run_linear(how, x, w, dy)
    r = bf16(x.double()), bf16(w.double()), bf16(dy.double())
    nearly_bits(mine.y.float(), r[0] @ r[1].T, 0.99)
    nearly_bits(mine.gradients[0], r[2] @ r[1], 0.99)
    assert mine.gradients[1].dtype == torch.float32
    close(mine.gradients[1], r[2].T @ r[0], FP32_TOLERANCE if carry else 2**-8)
    unrounded = bf16(x.double() @ w.double().T)
    assert float((mine.y.double() == unrounded).double().mean()) < 0.9, "the roundings of the operands must show"


@pytest.mark.parametrize("table", TABLES)
def test_bf16_experts(table: str) -> None:
    case = experts_case(30, 130, 100)
    mine = run_experts(how_of("bf16", table), case)
    x, gate_up, down = case.x.double(), bf16(case.gate_up.double()), bf16(case.down.double())
    dout, weights = case.dout.double(), case.weights.double()
    y, dx = torch.zeros_like(x), torch.zeros_like(x)
    d_gate_up, d_down, d_weights = torch.zeros_like(gate_up), torch.zeros_like(down), torch.zeros_like(weights)
    for t in range(len(x)):
        for k, e in enumerate(case.indices[t].tolist()):
            h = bf16(gate_up[e] @ x[t]).requires_grad_()
            gate, up = h.chunk(2)
            a = F.silu(gate) * up
            y[t] += weights[t, k] * bf16(down[e] @ bf16(a.detach()))
            da = down[e].T @ dout[t]
            d_weights[t, k] = da @ a.detach()
            (dh,) = torch.autograd.grad(a, h, weights[t, k] * da)
            dh = bf16(dh)
            dx[t] += gate_up[e].T @ dh
            d_gate_up[e] += torch.outer(dh, x[t])
            d_down[e] += torch.outer(dout[t], bf16(weights[t, k] * a.detach()))
    nearly_bits(mine.y, y, 0.0, bits=False)
    nearly_bits(mine.gradients[0], dx, 0.95)
    close(mine.gradients[1], d_weights, 1e-4)
    close(mine.gradients[2], d_gate_up, 1e-3)
    close(mine.gradients[3], d_down, 1e-3)
    exact = run_experts(how_of("fp32", table), case)
    for rounded, plain in zip(mine.gradients, exact.gradients, strict=True):
        assert float((rounded - plain).abs().max() / plain.abs().max()) > 1e-3, "the roundings must show"


# ---- fp8: put together by hand


def by_hand_linear(how: Arithmetic, x: Tensor, w: Tensor, dy: Tensor, after_attention: bool = False) -> Run:
    scale = how.scale
    if after_attention:
        x, scale = fp8.dequantise_tiles(fp8.quantise_e5m6(x)), "ue8m0"
    tiles, blocks = fp8.quantise_tiles(x, scale), fp8.quantise_blocks(w, how.scale)
    y = bf16(fp8.fprop(tiles, blocks))
    quantise = fp8.quantise_block_tiles if how.gradients == "block" else fp8.quantise_tiles
    dx = bf16(fp8.dgrad(quantise(dy, how.scale), blocks))
    kept = x if after_attention else fp8.dequantise_tiles(tiles)  # o_proj's input is kept in E5M6 as it is
    dw = torch.zeros_like(w)
    fp8.wgrad(fp8.quantise_columns(dy, how.scale), fp8.quantise_columns(kept, scale), dw)
    return Run(y, [dx, dw])


def by_hand_experts(how: Arithmetic, case: Case) -> Run:
    """Expert by expert; quantised once per token for the way to the experts, with scales that are powers of two."""
    x, indices, weights, gate_up, down, dout = case
    y, dx, d_weights = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(weights)
    d_gate_up, d_down = torch.zeros_like(gate_up), torch.zeros_like(down)
    quantise = fp8.quantise_block_tiles if how.gradients == "block" else fp8.quantise_tiles
    x = fp8.dequantise_tiles(fp8.quantise_tiles(x, "ue8m0"))
    sent = fp8.dequantise_tiles(fp8.quantise_tiles(dout, "ue8m0"))
    for e in range(len(gate_up)):
        token, slot = torch.where(indices == e)
        if not len(token):
            continue
        up_blocks, down_blocks = fp8.quantise_blocks(gate_up[e], how.scale), fp8.quantise_blocks(down[e], how.scale)
        rows, weight = x[token], weights[token, slot][:, None]
        h = bf16(fp8.fprop(fp8.quantise_tiles(rows, "ue8m0"), up_blocks))
        gate, up = h.chunk(2, dim=1)
        a = fp8.quantise_tiles(bf16(F.silu(gate) * up), how.scale)
        y[token] += bf16(fp8.fprop(a, down_blocks)) * weight
        # backward: h comes back from 8 bits, SwiGLU is done again
        gate, up = fp8.dequantise_tiles(fp8.quantise_tiles(h, how.scale)).chunk(2, dim=1)
        s = gate.sigmoid()
        silu = gate * s
        again = silu * up
        travelled = fp8.quantise_tiles(sent[token], "ue8m0")
        if how.gradients == "block":
            travelled = fp8.quantise_block_tiles(dout[token], how.scale)
        da = fp8.dgrad(travelled, down_blocks)
        d_weights[token, slot] = (da * again).sum(1)
        da = da * weight
        dh = bf16(torch.cat((da * up * (s + silu * (1 - s)), da * silu), dim=1))
        dx[token] += fp8.dgrad(quantise(dh, how.scale), up_blocks)
        columns = fp8.quantise_columns(dout[token] * weight, how.scale)
        fp8.wgrad(columns, fp8.quantise_columns(bf16(again), how.scale), d_down[e])
        fp8.wgrad(fp8.quantise_columns(dh, how.scale), fp8.quantise_columns(rows, "ue8m0"), d_gate_up[e])
    return Run(y, [bf16(dx), d_weights, d_gate_up, d_down])


def same_bits(mine: Run, wanted: Run) -> None:
    assert torch.equal(mine.y, wanted.y)
    for number, (one, other) in enumerate(zip(mine.gradients, wanted.gradients, strict=True)):
        assert torch.equal(one, other), (number, float((one - other).abs().max()), float(other.abs().max()))


VARIANTS = [("fp32", "tile"), ("ue8m0", "tile"), ("fp32", "block")]


@pytest.mark.parametrize(("scale", "gradients"), VARIANTS)
@pytest.mark.parametrize("after_attention", [False, True])
@pytest.mark.parametrize("table", TABLES)
def test_fp8_linear(scale: str, gradients: str, after_attention: bool, table: str) -> None:
    """Two and a bit tiles of tokens and of both widths."""
    x, w, dy = draw(260, 200), draw(130, 200, seed=1), draw(260, 130, seed=2) * 1e-3
    how = how_of("fp8", table, scale=scale, gradients=gradients)
    wanted = by_hand_linear(how, x, w, dy, after_attention)
    same_bits(run_linear(how, x, w, dy, after_attention), wanted)
    assert torch.equal(wanted.y, bf16(wanted.y))
    off = float((wanted.y - x @ w.T).abs().max() / (x @ w.T).abs().max())
    assert 1e-3 < off < 0.05, "8 bits show, and no more than that"


def test_inputs_of_o_proj_keep_more_bits() -> None:
    """Their cache has 6 mantissa bits, not 3: what wgrad sees differs, and the power-of-two scale does."""
    x, w, dy = draw(130, 140), draw(20, 140, seed=1), draw(130, 20, seed=2)
    usual, attention = (run_linear(how_of("fp8"), x, w, dy, after) for after in (False, True))
    assert not torch.equal(usual.y, attention.y) and not torch.equal(usual.gradients[1], attention.gradients[1])
    assert torch.equal(usual.gradients[0], attention.gradients[0]), "the input gradient does not see the input"


@pytest.mark.parametrize(("scale", "gradients"), VARIANTS)
def test_fp8_experts(scale: str, gradients: str) -> None:
    """Expert 0 has more than one tile of tokens."""
    case = experts_case(150, 140, 72)
    how = how_of("fp8", scale=scale, gradients=gradients)
    same_bits(run_experts(how, case), by_hand_experts(how, case))


@FAST
@pytest.mark.parametrize(("scale", "gradients"), VARIANTS)
def test_fp8_experts_in_cpp(scale: str, gradients: str) -> None:
    """FP8 operations in C++ give the same bits. With SwiGLU in C++, too, a value near a tie may round otherwise."""
    case, plain = experts_case(150, 140, 72), pick_training("plain")
    rows = dict(swiglu=plain.swiglu, swiglu_backward=plain.swiglu_backward, combine=plain.combine)
    wanted = run_experts(how_of("fp8", plain, scale=scale, gradients=gradients), case)
    mixed = dataclasses.replace(pick_training("cpu"), **rows)
    same_bits(run_experts(how_of("fp8", mixed, scale=scale, gradients=gradients), case), wanted)
    mine = run_experts(how_of("fp8", "cpu", scale=scale, gradients=gradients), case)
    for one, other in zip((mine.y, *mine.gradients), (wanted.y, *wanted.gradients), strict=True):
        close(one, other, 1e-2)
        assert float(((one - other).abs() <= 1e-5 * other.abs().max()).double().mean()) > 0.9


def test_block_wise_gradients_differ() -> None:
    """Where tokens have gradients of different sizes, one scale for 128 of them loses the small ones."""
    x, w = draw(140, 150), draw(160, 150, seed=1)
    dy = draw(140, 160, seed=2) * torch.logspace(0, -8, 140)[:, None]
    exact = dy @ w
    off = {}
    for gradients in ("tile", "block"):
        mine = run_linear(how_of("fp8", gradients=gradients), x, w, dy)
        off[gradients] = float(((mine.gradients[0] - exact).norm(dim=1) / exact.norm(dim=1))[90:125].median())
    assert off["tile"] < 0.05 and off["block"] > 0.5, off
    case = experts_case(40, 140, 72)
    tile, block = (run_experts(how_of("fp8", gradients=g), case) for g in ("tile", "block"))
    assert torch.equal(tile.y, block.y) and not torch.equal(tile.gradients[0], block.gradients[0])


# ---- the queue of weight gradients


@pytest.mark.parametrize("gemm", ["fp32", "bf16", "fp8"])
def test_weight_gradients_may_wait(gemm: str) -> None:
    """Now, later, or through autograd: the same bits, and the input gradient does not wait."""
    x, w, dy = draw(2, 40, 130), draw(50, 130, seed=1), draw(2, 40, 50, seed=2)
    case = experts_case(20, 40, 24)
    results = []
    for kind in ("now", "later", "autograd"):
        how = how_of(gemm, queue=kind != "autograd")
        weight, gate_up, down = (
            nn.Parameter(w.clone()),
            nn.Parameter(case.gate_up.clone()),
            nn.Parameter(case.down.clone()),
        )
        parameters = (weight, gate_up, down)
        if how.queue is not None:
            how.queue.waiting = kind == "later"
        inputs = []
        for micro in range(2):  # two micro-batches add up
            x_m, routed = x[micro].clone().requires_grad_(), case.x.clone().requires_grad_()
            linear(x_m, weight, how).backward(dy[micro])
            routed_experts(routed, case.indices, case.weights, gate_up, down, how).backward(case.dout * (1 + micro))
            inputs += [x_m.grad, routed.grad]
            if kind == "later":
                assert micro or all(p.grad is None for p in parameters)
                assert how.queue is not None
                work = how.queue.take()
                assert len(work) == 3 and not how.queue.take()
                for do in work:
                    do()
        results.append([*inputs, *(p.grad for p in parameters)])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one is not None and two is not None
            if gemm == "fp8" or other is results[1]:
                assert torch.equal(one, two)
            else:  # autograd adds the second micro-batch as a whole, addmm into the sum
                close(one, two, 1e-6)


@pytest.mark.parametrize("gemm", ["fp32", "bf16", "fp8"])
def test_what_needs_no_gradient_gets_none(gemm: str) -> None:
    how = how_of(gemm)
    x, w = draw(5, 20), nn.Parameter(draw(7, 20, seed=1), requires_grad=False)
    seen = x.clone().requires_grad_()
    linear(seen, w, how).sum().backward()
    assert w.grad is None and seen.grad is not None
    w.requires_grad_()
    linear(x, w, how).sum().backward()
    assert w.grad is not None and x.grad is None


@pytest.mark.parametrize("gemm", ["fp32", "bf16", "fp8"])
def test_leading_dimensions(gemm: str) -> None:
    x, w = draw(2, 3, 20), nn.Parameter(draw(7, 20, seed=1))
    y = linear(x.requires_grad_(), w, how_of(gemm))
    y.sum().backward()
    assert y.shape == (2, 3, 7) and x.grad is not None and x.grad.shape == x.shape
    assert torch.equal(y.flatten(0, 1), linear(x.detach().flatten(0, 1), w, how_of(gemm)))


@pytest.mark.parametrize(
    ("options", "words"), [({"gemm": "fp16"}, "precision.gemm"), ({"scale": "e8"}, "precision.scale"),
                           ({"gradients": "row"}, "precision.gradients")]
)  # fmt: skip
def test_wrong_options(options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Arithmetic(**options)  # type: ignore[arg-type]
