"""Linear layers and routed experts of a training model: which precision each of their three products has, what is kept.

                 forward            input gradient      weight gradient        kept for backward
    fp32         x W^T              dy W                dy^T x                 x
    bf16         operands rounded to BF16, FP32 sums, results rounded to BF16  x in BF16
    fp8          E4M3, scales and promotion per 128 (kernels/fp8.py), results rounded to BF16
                                                                              x in FP8 tiles (o_proj: E5M6)
    experts                                                                   x, (gate | up) in FP8; SwiGLU again

BF16 on a machine whose BF16 matmuls are slow is the same arithmetic carried by FP32 registers: a product of two BF16
values is exact in FP32. Weights are FP32 masters and are rounded at use; their gradients are added up in FP32, by hand
and through a queue, so that a pipeline schedule may let them wait (kernels/deferred.py) and no second copy is made.

Shapes: T tokens, N outputs, D inputs, K experts per token, R = T K rows sorted by expert, E experts, I expert width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fathom.kernels import fp8
from fathom.kernels.deferred import WeightGradients
from fathom.kernels.train_ops import TrainOps, pick_training
from fathom.runtime import UserError

GEMMS = ("fp32", "bf16", "fp8")


@dataclass(frozen=True)
class Arithmetic:
    """How the products of a model are computed. `queue`: where weight gradients go; None: to autograd, as usual."""

    gemm: str = "fp32"
    scale: str = "fp32"  # of FP8 weights, activations and gradients; the report's power-of-two cases are so either way
    gradients: str = "tile"  # or "block": the ablation that diverged (appendix B.2)
    carry_bf16: bool = True  # BF16 products in FP32 registers; False where the machine has fast BF16 matmuls
    ops: TrainOps = field(default_factory=pick_training)
    queue: WeightGradients | None = field(default_factory=WeightGradients)
    last: list[tuple[Tensor, int, tuple[Tensor, ...]]] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("gemm", self.gemm, GEMMS), ("scale", self.scale, tuple(fp8.SCALE_FORMATS)),
            ("gradients", self.gradients, ("tile", "block")),
        ):  # fmt: skip
            if value not in allowed:
                raise UserError(f"precision.{name} is {value!r}, it must be one of {', '.join(allowed)}")

    def rounded(self, x: Tensor) -> Tensor:
        """An operand of a product that is not FP8."""
        if self.gemm == "fp32" or x.dtype == torch.float64:
            return x
        return self.ops.round_bf16(x) if self.carry_bf16 else x.to(torch.bfloat16)

    def result(self, y: Tensor) -> Tensor:
        """A result, as the next layer sees it."""
        return y if self.gemm == "fp32" else self.rounded(y)

    def operand(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., D] as the forward product reads it, rows flat: FP8 tiles, or one rounded tensor.

        Layers side by side read the same x (q_a and kv_a; gate and up): it is quantised once. The last x is held for
        that, so that no other tensor can take its place.
        """
        if self.last and self.last[0][0] is x and self.last[0][1] == x._version:
            return self.last[0][2]
        rows = x.detach().reshape(-1, x.shape[-1])
        made = self._tiles(rows) if self.gemm == "fp8" else tuple([self.rounded(rows)])
        self.last[:] = [(x, x._version, made)]
        return made

    def _tiles(self, rows: Tensor) -> tuple[Tensor, ...]:
        values, scale = self.ops.quantise_tiles(rows, self.scale)
        return values, scale

    def gradient_tiles(self, dy: Tensor, ends: Tensor | None = None) -> fp8.Tiles:
        """dy [T, N] as dgrad's operand."""
        if self.gradients == "block":
            return self.ops.quantise_block_tiles(dy, self.scale, ends)
        return self.ops.quantise_tiles(dy, self.scale)


def gradient_of(weight: Tensor) -> Tensor:
    """Where gradients are added up: FP32, as large as the weight, zero at first."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


# ---- linear layers --------------------------------------------------------------------------------------------------


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, how: Arithmetic, after_attention: bool, *operand: Tensor
    ) -> Tensor:
        ctx.how, ctx.shape, ctx.dtype, ctx.weight = how, x.shape, x.dtype, weight
        if how.gemm != "fp8":
            if ctx.needs_input_grad[1]:  # a frozen weight wants no gradient: x need not be kept
                ctx.save_for_backward(*operand)
            y = how.result(operand[0] @ how.rounded(weight).T)
            return y.view(*x.shape[:-1], -1)
        ctx.scale, kept = how.scale, operand
        if after_attention:  # also attention's own backward needs it: more bits, and scales that survive the turn
            rows, ctx.scale = how.ops.round_e5m6(x.reshape(-1, x.shape[-1])), "ue8m0"
            tiles, kept = how.ops.quantise_tiles(rows, "ue8m0"), (rows.to(torch.bfloat16),)
        else:
            tiles = fp8.Tiles(*operand)
        # the weight's blocks are made again in backward: a pipeline holds many micro-batches, but one weight
        ctx.operands = len(operand)
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(*kept)
        blocks = how.ops.quantise_blocks(weight, how.scale)
        return how.result(how.ops.fprop(tiles, blocks)).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        how: Arithmetic = ctx.how
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        weight, saved = ctx.weight, ctx.saved_tensors
        if how.gemm != "fp8":
            dy = how.rounded(dy)
            dx = how.result(dy @ how.rounded(weight)) if ctx.needs_input_grad[0] else None

            def add(grad: Tensor) -> None:
                x = saved[0]
                grad.addmm_(dy.T, x) if x.dtype == grad.dtype else grad.add_(dy.T @ x)
        else:
            dx = None
            if ctx.needs_input_grad[0]:
                blocks = how.ops.quantise_blocks(weight, how.scale)
                dx = how.result(how.ops.dgrad(how.gradient_tiles(dy), blocks))

            def add(grad: Tensor) -> None:
                columns = how.ops.quantise_columns(dy, how.scale)
                if len(saved) == 1:
                    x = how.ops.quantise_columns(saved[0], ctx.scale)
                else:
                    x = how.ops.retile(fp8.Tiles(*saved[:2]), ctx.scale)
                how.ops.wgrad(columns, x, grad)

        dw = deliver(how, weight, add, ctx.needs_input_grad[1])
        nothing = (None,) * (1 if how.gemm != "fp8" else ctx.operands)
        return (None if dx is None else dx.view(ctx.shape).to(ctx.dtype), dw, None, None, *nothing)


def deliver(how: Arithmetic, weight: Tensor, add: Any, needed: bool) -> Tensor | None:
    """Run `add(gradient to add to)` through the queue, or make a tensor for autograd where there is no queue."""
    if not needed:
        return None
    if how.queue is not None:
        how.queue.add(lambda: add(gradient_of(weight)))
        return None
    out = torch.zeros_like(weight)
    add(out)
    return out


def linear(x: Tensor, weight: Tensor, how: Arithmetic, *, after_attention: bool = False) -> Tensor:
    """x [..., D], weight FP32 [N, D] -> [..., N]."""
    operand = () if after_attention and how.gemm == "fp8" else how.operand(x)
    out: Tensor = _Linear.apply(x, weight, how, after_attention, *operand)  # type: ignore[no-untyped-call]
    return out


# ---- routed experts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sorted:
    """(token, expert) pairs in order of experts."""

    token: Tensor  # [R] whose row it is
    place: Tensor  # [T, K] where a token's K rows lie
    ends: Tensor  # [E] one past each expert's last row

    @classmethod
    def by_expert(cls, indices_TK: Tensor, experts: int) -> Sorted:
        """Stable: an expert sees its tokens in their order."""
        flat = indices_TK.reshape(-1)
        order = torch.argsort(flat, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        ends = torch.bincount(flat, minlength=experts).cumsum(0)
        return cls(order // indices_TK.shape[1], place.view_as(indices_TK), ends)


def _grouped(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Rows [R, a] by expert times weights [E, a, b] -> [R, b]."""
    out = x.new_empty(x.shape[0], weights.shape[-1])
    for e, (start, stop) in enumerate(fp8.segments(x.shape[0], ends)):
        if stop > start:
            torch.mm(x[start:stop], weights[e], out=out[start:stop])
    return out


def _grouped_add(grad: Tensor, dy: Tensor, x: Tensor, ends: Tensor) -> None:
    """grad [E, N, D] += dy [R, N]^T x [R, D], expert by expert."""
    for e, (start, stop) in enumerate(fp8.segments(x.shape[0], ends)):
        if stop > start:
            left, right = dy[start:stop], x[start:stop]
            grad[e].addmm_(left.T, right) if x.dtype == grad.dtype else grad[e].add_(left.T @ right)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, how: Arithmetic
    ) -> Tensor:
        ops = how.ops
        rows = Sorted.by_expert(indices, gate_up.shape[0])
        ctx.how, ctx.rows, ctx.params, ctx.dtype = how, rows, (gate_up, down), x.dtype
        if how.gemm != "fp8":
            kept = how.rounded(x)
            h = how.result(_grouped(ops.take(kept, rows.token), how.rounded(gate_up).mT, rows.ends))
            y = how.result(_grouped(how.result(ops.swiglu(h)), how.rounded(down).mT, rows.ends))
            ctx.save_for_backward(kept, h, weights)
            return ops.combine(y, rows.place, weights).to(x.dtype)
        tiles = ops.quantise_tiles(x, "ue8m0")  # once per token: this is what travels to the experts
        gate_up_q, down_q = ops.quantise_blocks(gate_up, how.scale), ops.quantise_blocks(down, how.scale)
        sent = _take(ops, tiles, rows.token)
        h = how.result(ops.grouped_fprop(sent, gate_up_q, rows.ends))
        a = ops.quantise_tiles(how.result(ops.swiglu(h)), how.scale)
        y = how.result(ops.grouped_fprop(a, down_q, rows.ends))
        ctx.save_for_backward(*tiles, *ops.quantise_tiles(h, how.scale), weights)
        return ops.combine(y, rows.place, weights).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        how: Arithmetic = ctx.how
        gate_up, down = ctx.params
        rows: Sorted = ctx.rows
        saved = ctx.saved_tensors  # read once: under recomputation each reading would compute again
        weights_TK: Tensor = saved[2 if how.gemm != "fp8" else 4]
        weight_R = torch.empty(rows.token.numel(), dtype=torch.float32, device=weights_TK.device)
        weight_R[rows.place.reshape(-1)] = weights_TK.reshape(-1).float()
        step = _backward_fp8 if how.gemm == "fp8" else _backward_plain
        wants_x = ctx.needs_input_grad[0]
        dx_R, dw_R, add_gate_up, add_down = step(how, rows, saved, gate_up, down, grads[0], weight_R, wants_x)
        d_down = deliver(how, down, add_down, ctx.needs_input_grad[4])
        d_gate_up = deliver(how, gate_up, add_gate_up, ctx.needs_input_grad[3])
        dx = None if dx_R is None else how.result(how.ops.combine(dx_R, rows.place, None)).to(ctx.dtype)
        dw = dw_R[rows.place].to(weights_TK.dtype)
        return dx, None, dw, d_gate_up, d_down, None


def _backward_plain(
    how: Arithmetic, rows: Sorted, saved: Any, gate_up: Tensor, down: Tensor, dout: Tensor, weight_R: Tensor,
    wants_x: bool,
) -> tuple[Tensor | None, Tensor, Any, Any]:  # fmt: skip
    x, h = saved[:2]
    dy = how.ops.take(how.rounded(dout), rows.token)
    da = _grouped(dy, how.rounded(down), rows.ends)
    dh, a, dw = how.ops.swiglu_backward(h, da, weight_R)
    dh = how.result(dh)
    dx = _grouped(dh, how.rounded(gate_up), rows.ends) if wants_x else None
    assert dw is not None

    def add_down(grad: Tensor) -> None:
        weighted = how.rounded(a * weight_R[:, None].to(a.dtype))  # half as wide as dy
        _grouped_add(grad, dy, weighted, rows.ends)

    def add_gate_up(grad: Tensor) -> None:
        _grouped_add(grad, dh, how.ops.take(x, rows.token), rows.ends)

    return dx, dw, add_gate_up, add_down


def _backward_fp8(
    how: Arithmetic, rows: Sorted, saved: Any, gate_up: Tensor, down: Tensor, dout: Tensor, weight_R: Tensor,
    wants_x: bool,
) -> tuple[Tensor | None, Tensor, Any, Any]:  # fmt: skip
    ops, ends = how.ops, rows.ends
    x, h = fp8.Tiles(*saved[:2]), fp8.dequantise_tiles(fp8.Tiles(*saved[2:4]))
    down_q = ops.quantise_blocks(down, how.scale)
    dout = how.result(dout)
    if how.gradients == "block":
        sent = ops.quantise_block_tiles(ops.take(dout, rows.token), how.scale, ends)
    else:
        tiles = ops.quantise_tiles(dout, "ue8m0")  # travels to the experts, as the activations did
        sent = _take(ops, tiles, rows.token)
    da = ops.grouped_dgrad(sent, down_q, ends)
    dh, a, dw = ops.swiglu_backward(h, da, weight_R)
    dh = how.result(dh)
    dx = None
    if wants_x:
        dx = ops.grouped_dgrad(how.gradient_tiles(dh, ends), ops.quantise_blocks(gate_up, how.scale), ends)
    assert dw is not None

    def add_down(grad: Tensor) -> None:
        dy = ops.take(dout, rows.token).mul_(weight_R[:, None])
        columns = ops.quantise_columns(dy, how.scale, ends)
        ops.grouped_wgrad(columns, ops.quantise_columns(how.result(a), how.scale, ends), ends, grad)

    def add_gate_up(grad: Tensor) -> None:
        columns = ops.quantise_columns(dh, how.scale, ends)
        ops.grouped_wgrad(columns, ops.retile(_take(ops, x, rows.token), "ue8m0", ends), ends, grad)

    return dx, dw, add_gate_up, add_down


def _take(ops: TrainOps, tiles: fp8.Tiles, token: Tensor) -> fp8.Tiles:
    return fp8.Tiles(ops.take(tiles.values, token), ops.take(tiles.scale, token))


def routed_experts(
    x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor, how: Arithmetic
) -> Tensor:
    """See reference.routed_experts: sum_k weights[t,k] * down_e(silu(gate_e x) * up_e x), e = indices[t,k]."""
    out: Tensor = _Experts.apply(x_TD, indices_TK, weights_TK, gate_up, down, how)  # type: ignore[no-untyped-call]
    return out
