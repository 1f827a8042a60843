"""Rows that travel to other ranks and whose gradients travel back (report sections 3.2.2 and 3.3.3).

A message carries [rows, D] values, some FP32 numbers and some small integers per row, packed into one row of bytes:

    fp32   | 4 D                         | numbers 4 K | ids 2 K |
    bf16   | 2 D                         | numbers 4 K | ids 2 K |
    fp8    | D, E4M3 | ceil(D/128) scales | numbers 4 K | ids 2 K |    a scale is a power of two: its exponent, one byte

What autograd sees is a pair of functions around the time in flight; other work may stand between them, and then stands
between them in the backward pass too:

    ticket = send(x, numbers, ids)  ...  x', numbers', ids' = receive(ticket)
    d x, d numbers = finish         ...  start(d x', d numbers')

`spread` copies rows to where they are wanted, `collect` adds up what comes back. Each is the other's gradient. Sums run
in FP32, chunk by chunk in a fixed order, a chunk holding a row at most once: the same bits every time, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fathom.kernels.fp8 import Tiles, ceil_tiles, dequantise_tiles, quantise_tiles
from fathom.kernels.reference import FP8
from fathom.parallel.group import Group, Pending

WIRES = ("fp32", "bf16", "fp8")


def encode(x: Tensor, wire: str) -> Tensor:
    """Values [rows, D] -> bytes [rows, width(D, wire)]."""
    if wire == "fp8":
        tiles = quantise_tiles(x, "ue8m0")
        exponent = torch.frexp(tiles.scale).exponent - 1 + 127  # scale = 2^e, frexp calls it 0.5 * 2^(e + 1)
        return torch.cat((tiles.values.view(torch.uint8), exponent.clamp(0, 255).to(torch.uint8)), dim=1)
    return _bytes(x.to(torch.bfloat16 if wire == "bf16" else torch.float32))


def decode(rows: Tensor, wire: str, dim: int) -> Tensor:
    """The inverse; FP32 [rows, D]."""
    if wire == "fp8":
        exponent = rows[:, dim:].int() - 127
        scale = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)
        return dequantise_tiles(Tiles(rows[:, :dim].contiguous().view(FP8), scale))
    return _values(rows, torch.bfloat16 if wire == "bf16" else torch.float32).float()


def width(dim: int, wire: str) -> int:
    """Bytes that one row of values takes."""
    return dim + ceil_tiles(dim) if wire == "fp8" else dim * (2 if wire == "bf16" else 4)


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def _values(rows: Tensor, dtype: torch.dtype) -> Tensor:
    if not rows.numel():
        return torch.empty(len(rows), rows.shape[1] // dtype.itemsize, dtype=dtype, device=rows.device)
    return rows.clone(memory_format=torch.contiguous_format).view(dtype)


@dataclass
class Message:
    """One exchange and, in the backward pass, its return. `sent[r]` rows go to rank r, `received[r]` come from it."""

    group: Group
    sent: Sequence[int]
    received: Sequence[int]
    wires: tuple[str, str]  # out, and back for the gradients
    count: Callable[[bool, Sequence[int], int], None]  # (back, rows to each rank, bytes per row)
    _flying: list[tuple[Pending, Tensor, Tensor]] = field(default_factory=list)

    def start(self, parts: Sequence[Tensor], back: bool) -> None:
        """Send the parts, [rows, some bytes] each, side by side."""
        sent, received = (self.received, self.sent) if back else (self.sent, self.received)
        rows = torch.cat(list(parts), dim=1)
        out = rows.new_empty(sum(received), rows.shape[1])
        self.count(back, sent, rows.shape[1])
        self._flying.append((self.group.all_to_all(out, rows, received, sent), out, rows))

    def finish(self) -> Tensor:
        """The bytes that have arrived."""
        pending, out, _ = self._flying.pop()
        pending.wait()
        return out


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, numbers: Tensor, ids: Tensor, message: Message) -> Tensor:
        ctx.message, ctx.dim, ctx.dtype = message, x.shape[1], x.dtype
        message.start([encode(x, message.wires[0]), _bytes(numbers.float()), _bytes(ids)], back=False)
        return torch.zeros((), device=x.device)  # carries the graph; the rows are in flight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        message = ctx.message
        rows = message.finish()
        edge = width(ctx.dim, message.wires[1])
        values = decode(rows[:, :edge], message.wires[1], ctx.dim).to(ctx.dtype)
        return values, _values(rows[:, edge:], torch.float32), None, None


class _Receive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ticket: Tensor, message: Message, dim: int, numbers: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.message = message
        rows = message.finish()
        edge = width(dim, message.wires[0])
        ids = _values(rows[:, edge + 4 * numbers :], torch.int16)
        ctx.mark_non_differentiable(ids)
        values = decode(rows[:, :edge], message.wires[0], dim).to(dtype)
        return values, _values(rows[:, edge : edge + 4 * numbers], torch.float32), ids

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        ctx.message.start([encode(grads[0], ctx.message.wires[1]), _bytes(grads[1])], back=True)
        return torch.zeros((), device=grads[0].device), None, None, None, None


def send(x: Tensor, numbers: Tensor, ids: Tensor, message: Message) -> Tensor:
    """Start the journey of x [rows, D], numbers [rows, K] and ids [rows, K'] int16; the ticket is for `receive`."""
    ticket: Tensor = _Send.apply(x, numbers, ids, message)  # type: ignore[no-untyped-call]
    return ticket


def receive(
    ticket: Tensor, message: Message, dim: int, numbers: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Wait for what the others have sent: values [rows, dim] in `dtype`, numbers [rows, K] FP32, ids [rows, K']."""
    values, weights, ids = _Receive.apply(ticket, message, dim, numbers, dtype)  # type: ignore[no-untyped-call]
    return values, weights, ids


# ---- rows here, rows there -----------------------------------------------------------------------------------------


def _sum_rows(rows: Tensor, index: Tensor, chunks: Sequence[int], out_rows: int) -> Tensor:
    wide = torch.promote_types(rows.dtype, torch.float32)
    out = torch.zeros(out_rows, *rows.shape[1:], dtype=wide, device=rows.device)
    for where, part in zip(index.split(list(chunks)), rows.split(list(chunks)), strict=True):
        out.index_add_(0, where, part.to(wide))  # no index twice in a chunk: nothing is added in a random order
    return out.to(rows.dtype)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, chunks: Sequence[int]) -> Tensor:
        ctx.save_for_backward(index)
        ctx.chunks, ctx.rows = chunks, x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return _sum_rows(grads[0], index, ctx.chunks, ctx.rows), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, chunks: Sequence[int], out_rows: int) -> Tensor:
        ctx.save_for_backward(index)
        return _sum_rows(rows, index, chunks, out_rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0].index_select(0, *ctx.saved_tensors), None, None, None


def spread(x: Tensor, index: Tensor, chunks: Sequence[int]) -> Tensor:
    """x[index]. `chunks`: lengths of consecutive parts of `index` within which no row appears twice."""
    out: Tensor = _Spread.apply(x, index, chunks)  # type: ignore[no-untyped-call]
    return out


def collect(rows: Tensor, index: Tensor, chunks: Sequence[int], out_rows: int) -> Tensor:
    """out[index[i]] += rows[i], chunk by chunk; [out_rows, ...], zeros where no index points."""
    out: Tensor = _Collect.apply(rows, index, chunks, out_rows)  # type: ignore[no-untyped-call]
    return out
