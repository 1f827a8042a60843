"""What a training step calls besides plain matmuls: one table, the definition and the fast version of each operation.

    FP8         quantisers and products of kernels/fp8.py
    rows        SwiGLU with its backward, rows by index and the weighted sum of a token's experts, roundings: below

`plain` is PyTorch alone and runs anywhere; `cpu` is C++ with the same bits for FP8 and the same function for the rest;
`triton` has the FP8 operations for GPUs and takes the rest from `plain`.

Shapes: R rows = (token, expert) pairs, I expert width, D hidden, T tokens, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels import fp8
from fathom.runtime import UserError


@dataclass(frozen=True)
class TrainOps:
    """One implementation of every operation."""

    name: str
    quantise_tiles: Callable[..., fp8.Tiles]
    quantise_columns: Callable[..., Any]
    quantise_blocks: Callable[..., fp8.Blocks]
    quantise_block_tiles: Callable[..., fp8.Tiles]
    retile: Callable[..., Any]
    fprop: Callable[[fp8.Tiles, fp8.Blocks], Tensor]
    dgrad: Callable[[fp8.Tiles, fp8.Blocks], Tensor]
    wgrad: Callable[[Any, Any, Tensor], None]
    grouped_fprop: Callable[[fp8.Tiles, fp8.Blocks, Tensor], Tensor]
    grouped_dgrad: Callable[[fp8.Tiles, fp8.Blocks, Tensor], Tensor]
    grouped_wgrad: Callable[[Any, Any, Tensor, Tensor], None]
    round_bf16: Callable[[Tensor], Tensor]
    round_e5m6: Callable[[Tensor], Tensor]
    swiglu: Callable[[Tensor], Tensor]
    swiglu_backward: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor | None]]
    combine: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    take: Callable[[Tensor, Tensor], Tensor]


def round_bf16(x: Tensor) -> Tensor:
    """FP32 values rounded to BF16's 8 significant bits."""
    return x.to(torch.bfloat16).to(torch.float32)


def round_e5m6(x: Tensor) -> Tensor:
    """What the cache of o_proj's input keeps of [..., n], as FP32; BF16 can hold every such value exactly."""
    return fp8.dequantise_tiles(fp8.quantise_e5m6(x))


def swiglu(h_RI: Tensor) -> Tensor:
    """[R, 2I] = (gate | up) -> [R, I]."""
    gate, up = h_RI.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_backward(h: Tensor, da: Tensor, weight_R: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradient da [R, I] of one unweighted row -> (dh [R, 2I], a [R, I] recomputed, d weight [R]).

    The row enters the output times `weight`; its weight's gradient is da . a, so y itself need not be kept.
    """
    gate, up = h.chunk(2, dim=-1)
    s = gate.sigmoid()
    silu = gate * s
    a = silu * up
    dw = None if weight_R is None else (da * a).sum(-1)
    if weight_R is not None:
        da = da * weight_R[:, None]
    return torch.cat((da * up * (s + silu * (1 - s)), da * silu), dim=-1), a, dw


def combine(y_RD: Tensor, place_TK: Tensor, weight_TK: Tensor | None) -> Tensor:
    """[R, D] -> [T, D]: the (weighted) sum of each token's rows, in order of K."""
    y = y_RD[place_TK]
    return y.sum(1) if weight_TK is None else (y * weight_TK[..., None].to(y.dtype)).sum(1)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """[T, ...], int64 [R] -> [R, ...], any dtype."""
    if x.dtype == torch.float8_e4m3fn:  # PyTorch indexes bytes faster than FP8, or FP8 not at all
        return x.view(torch.uint8)[rows].view(x.dtype)
    return x[rows]


def _plain() -> TrainOps:
    return _table("plain", fp8, globals())


def _cpu() -> TrainOps:
    from fathom.kernels.cpu import train

    return _table("cpu", train, vars(train))


def _triton() -> TrainOps:
    from fathom.kernels.triton import train

    return _table("triton", train, globals())


def _table(name: str, formats: Any, rows: dict[str, Any]) -> TrainOps:
    fields = [f for f in TrainOps.__dataclass_fields__ if f != "name"]
    return TrainOps(name, **{f: rows[f] if f in rows else getattr(formats, f) for f in fields})


def pick_training(name: str = "auto", device: torch.device | None = None) -> TrainOps:
    """By name; `auto` takes C++ on a CPU with a compiler, Triton on a GPU with the package, else plain PyTorch."""
    if name not in ("auto", "plain", "cpu", "triton"):
        raise UserError(f"training kernels {name!r} are not known; use auto, plain, cpu or triton")
    on_cpu = device is None or device.type == "cpu"
    if name == "plain":
        return _plain()
    if name == "triton" or (name == "auto" and not on_cpu):
        from fathom.kernels import triton

        missing = triton.unavailable()
        if missing is None and not on_cpu:
            return _triton()
        if name == "triton":
            raise UserError(f"the Triton kernels cannot run here: {missing or 'the model is on a CPU'}; use auto")
        return _plain()
    from fathom.kernels.cpu import train

    missing = train.available() if on_cpu else "the model is not on a CPU"
    if missing is None:
        return _cpu()
    if name == "cpu":
        raise UserError(f"the C++ training kernels cannot be used: {missing}")
    return _plain()
