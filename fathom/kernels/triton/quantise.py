"""Triton: FP32 or BF16 tensors to E4M3 with their scales; the bytes of fathom/kernels/fp8.py.

A program reads its part once and writes values and scales, so memory sets the speed. Two kernels: `tiles_kernel`
(scales along a row; also SwiGLU and its tiles in one pass), `tokens_kernel` (scales along 128 tokens, or of blocks).

Rounding to E4M3 is done here, in FP32: the values that reach the conversion are E4M3 numbers already. Processors differ
in that conversion (sm_90 has one; gfx942 has it for another FP8; the interpreter's is not round-to-even).

Legend: T tokens, n channels, rows = tiles of 128 tokens, each inside one expert (see TokenMap).
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fathom.kernels import fp8
from fathom.kernels.fp8 import TILE, Blocks, Tiles, ceil_tiles

TILE_ROWS = 32  # rows of tiles per program
WARPS = 8  # of a program with a whole block of 128x128


class TokenMap(NamedTuple):
    """Which tokens each row of 128 has. Made on the device without asking it: there may be empty rows at the end."""

    expert: Tensor  # [rows] int32
    first: Tensor  # [rows] int32
    last: Tensor  # [rows] int32, the token after the last

    @property
    def rows(self) -> int:
        """How many there are, empty ones included."""
        return self.expert.numel()


class PackedColumns(NamedTuple):
    """What wgrad reads, tokens last as tensor cores want it: values [n, rows * 128], each row's tokens zero-padded."""

    values: Tensor
    scale: Tensor  # [rows, n]


def row_starts(ends: Tensor) -> Tensor:
    """[E + 1] int32: expert e has rows starts[e] to starts[e + 1]."""
    counts = torch.diff(ends.to(torch.int64), prepend=ends.new_zeros(1, dtype=torch.int64))
    return F.pad((-(-counts // TILE)).cumsum(0), (1, 0)).to(torch.int32)


def token_map(tokens: int, ends: Tensor | None, device: torch.device) -> TokenMap:
    """`ends` [E] as in fp8.py; None is one expert with all tokens."""
    stops = torch.full((1,), tokens, device=device) if ends is None else ends.to(device, torch.int64)
    experts = stops.numel()
    rows = ceil_tiles(tokens) if experts == 1 else tokens // TILE + experts  # the most that there can be
    starts, begins = row_starts(stops), F.pad(stops, (1, 0))
    row = torch.arange(rows, dtype=torch.int32, device=device)
    expert = torch.searchsorted(starts[1:], row, right=True).clamp(max=experts - 1)
    first = torch.minimum(begins[expert] + (row - starts[expert]) * TILE, stops[expert])
    last = torch.minimum(first + TILE, stops[expert])
    return TokenMap(*(each.to(torch.int32) for each in (expert, first, last)))


# ---- kernels


@triton.jit
def scale_of(amax, UE8M0: tl.constexpr):
    """max(amax, 1e-4) / 448, rounded up to a power of two if asked."""
    scale = tl.div_rn(tl.maximum(amax, 1e-4), tl.full(amax.shape, 448.0, tl.float32))
    if UE8M0:
        bits = scale.to(tl.int32, bitcast=True)
        scale = ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)  # any mantissa bit carries upwards
    return scale


@triton.jit
def to_e4m3(x, scale):
    """x / scale, cut at 448, to nearest even: adding 2^(e+20) leaves FP32 no bits below E4M3's step 2^(e-3)."""
    q = tl.div_rn(x, scale)
    sign = q.to(tl.int32, bitcast=True) & -0x80000000
    q = tl.minimum(tl.abs(q), 448.0)
    exponent = tl.maximum(q.to(tl.int32, bitcast=True) >> 23, 127 - 6)  # below 2^-6 the step stays 2^-9
    magic = ((exponent + 20) << 23).to(tl.float32, bitcast=True)
    q = (q + magic) - magic
    return (q.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True).to(tl.float8e4nv)


@triton.jit
def tiles_kernel(x, values, scale, T, n, UE8M0: tl.constexpr, SWIGLU: tl.constexpr, ROWS: tl.constexpr):
    """x [T, n], or with SWIGLU [T, 2n]: gate, then up."""
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(1)
    c = tile * 128 + tl.arange(0, 128)
    inside = (t < T)[:, None] & (c < n)[None, :]
    row = t.to(tl.int64)[:, None]
    if SWIGLU:
        gate = tl.load(x + row * (2 * n) + c[None, :], inside, 0.0).to(tl.float32)
        up = tl.load(x + row * (2 * n) + n + c[None, :], inside, 0.0).to(tl.float32)
        h = gate * tl.sigmoid(gate) * up
    else:
        h = tl.load(x + row * n + c[None, :], inside, 0.0).to(tl.float32)
    s = scale_of(tl.max(tl.abs(h), axis=1), UE8M0)
    tl.store(values + row * n + c[None, :], to_e4m3(h, tl.broadcast_to(s[:, None], h.shape)), inside)
    tl.store(scale + t.to(tl.int64) * tl.cdiv(n, 128) + tile, s, t < T)


@triton.jit
def tokens_kernel(
    x, x_scale, values, scale, first, last, n, stride, UE8M0: tl.constexpr, FORM: tl.constexpr, TILED: tl.constexpr
):
    """128 tokens, 128 channels of x [T, n]. FORM: "columns", "blocks" or "block_tiles"; stride: of values' rows.

    TILED: x is E4M3 in tiles with scales x_scale [T, ceil(n/128)], multiplied as it is read.
    """
    row, tile = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, 128)
    begin, end = tl.load(first + row), tl.load(last + row)
    if begin >= end:
        return
    t, c = begin + lane, tile * 128 + lane
    is_token, is_channel = t < end, c < n
    inside = is_token[:, None] & is_channel[None, :]
    token = t.to(tl.int64)[:, None]
    h = tl.load(x + token * n + c[None, :], inside, 0.0).to(tl.float32)
    if TILED:
        h *= tl.load(x_scale + t.to(tl.int64) * tl.cdiv(n, 128) + tile, is_token, 0.0)[:, None]
    by_column = tl.max(tl.abs(h), axis=0)
    if FORM == "columns":
        s = scale_of(by_column, UE8M0)
        q = to_e4m3(h, tl.broadcast_to(s[None, :], h.shape))
        column = c.to(tl.int64)[:, None] * stride + row * 128 + lane[None, :]
        tl.store(values + column, tl.trans(q), is_channel[:, None])  # zeros where the tokens end
        tl.store(scale + row.to(tl.int64) * n + c, s, is_channel)
    else:
        s = scale_of(tl.full([128], tl.max(by_column, axis=0), tl.float32), UE8M0)
        tl.store(values + token * stride + c[None, :], to_e4m3(h, tl.broadcast_to(s[:, None], h.shape)), inside)
        tiles = tl.cdiv(n, 128)
        if FORM == "blocks":
            tl.store(scale + row.to(tl.int64) * tiles + tile + lane, s, lane == 0)
        else:
            tl.store(scale + t.to(tl.int64) * tiles + tile, s, is_token)


# ---- what fp8.py has, by the same names


def quantise_tiles(x: Tensor, scale: str = "fp32") -> Tiles:
    """fp8.quantise_tiles for [..., n]."""
    return _tiles(x, x.shape[-1], scale, swiglu=False)


def swiglu_tiles(gate_up: Tensor, scale: str = "fp32") -> Tiles:
    """quantise_tiles(silu(gate) * up) for gate_up [..., 2n], without the product ever reaching memory."""
    return _tiles(gate_up, gate_up.shape[-1] // 2, scale, swiglu=True)


def _tiles(x: Tensor, n: int, scale: str, *, swiglu: bool) -> Tiles:
    ue8m0 = fp8.check_scale(scale) is not None
    values = x.new_empty((*x.shape[:-1], n), dtype=torch.float8_e4m3fn)
    scales = x.new_empty((*x.shape[:-1], ceil_tiles(n)), dtype=torch.float32)
    tokens = scales.numel() // scales.shape[-1]
    if tokens:
        grid = (triton.cdiv(tokens, TILE_ROWS), ceil_tiles(n))
        tiles_kernel[grid](
            x.contiguous(), values, scales, tokens, n, UE8M0=ue8m0, SWIGLU=swiglu, ROWS=TILE_ROWS,
            enable_fp_fusion=False,
        )  # fmt: skip
    return Tiles(values, scales)


def quantise_columns(x: Tensor, scale: str = "fp32", ends: Tensor | None = None) -> PackedColumns:
    """fp8.quantise_columns for [T, n], transposed and padded for wgrad."""
    return _columns(x, None, scale, ends)


def retile(tiles: Tiles, scale: str = "fp32", ends: Tensor | None = None) -> PackedColumns:
    """fp8.retile in one pass: FP8 in, FP8 out, as quantise_columns leaves it."""
    return _columns(tiles.values, tiles.scale, scale, ends)


def _columns(x: Tensor, x_scale: Tensor | None, scale: str, ends: Tensor | None) -> PackedColumns:
    rows = token_map(x.shape[0], ends, x.device)
    values = x.new_empty((x.shape[1], rows.rows * TILE), dtype=torch.float8_e4m3fn)
    scales = x.new_empty((rows.rows, x.shape[1]), dtype=torch.float32)
    _tokens(x, values, scales, rows, scale, "columns", x_scale)
    return PackedColumns(values, scales)


def quantise_blocks(w: Tensor, scale: str = "fp32") -> Blocks:
    """fp8.quantise_blocks for [out, in] or [E, out, in]: an expert's output channels are its "tokens"."""
    out, n = w.shape[-2:]
    values = torch.empty_like(w, dtype=torch.float8_e4m3fn, memory_format=torch.contiguous_format)
    scales = w.new_empty((*w.shape[:-2], ceil_tiles(out), ceil_tiles(n)), dtype=torch.float32)
    experts = w.numel() // (out * n)
    row, per_expert = torch.arange(experts * ceil_tiles(out), device=w.device), ceil_tiles(out)
    expert, first = row // per_expert, row // per_expert * out + row % per_expert * TILE
    last = torch.minimum(first + TILE, (expert + 1) * out)
    rows = TokenMap(*(each.to(torch.int32) for each in (expert, first, last)))
    _tokens(w, values, scales, rows, scale, "blocks")
    return Blocks(values, scales)


def quantise_block_tiles(x: Tensor, scale: str = "fp32", ends: Tensor | None = None) -> Tiles:
    """fp8.quantise_block_tiles for [T, n]."""
    values = torch.empty_like(x, dtype=torch.float8_e4m3fn, memory_format=torch.contiguous_format)
    scales = x.new_empty((x.shape[0], ceil_tiles(x.shape[1])), dtype=torch.float32)
    _tokens(x, values, scales, token_map(x.shape[0], ends, x.device), scale, "block_tiles")
    return Tiles(values, scales)


def _tokens(
    x: Tensor, values: Tensor, scales: Tensor, rows: TokenMap, scale: str, form: str, x_scale: Tensor | None = None
) -> None:
    ue8m0 = fp8.check_scale(scale) is not None
    n, tiled = x.shape[-1], x_scale is not None
    x_scale = scales if x_scale is None else x_scale.contiguous()  # some pointer: it is not read
    if rows.rows:
        grid = (rows.rows, ceil_tiles(n))
        tokens_kernel[grid](
            x.contiguous(), x_scale, values, scales, rows.first, rows.last, n, values.stride(-2), UE8M0=ue8m0,
            FORM=form, TILED=tiled, num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
