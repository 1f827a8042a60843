"""Triton: the three FP8 products of fathom/kernels/fp8.py, for one weight or for experts (grouped).

One program makes a 128x128 piece of the result. Per 128 of the summed dimension: one `tl.dot` into a fresh accumulator
(four FP8 wgmma on sm_90), then acc += part * scales in FP32 registers. That is the promotion of report section 3.3.2:
Hopper's FP8 accumulation keeps about 14 bits, so it must not run longer than 128 products.

Difference from the definition: the 128 products are summed in the hardware's order, with the hardware's rounding (the
14 bits on Hopper). Scales and the sum of the parts are the definition's, so fused multiply-adds are switched off.

Grouped products are the same kernels: a TokenMap says which expert each row of 128 tokens has. Without experts there is
one. All operands end in the summed dimension, as FP8 wgmma wants them: columns are stored with tokens last, and dgrad
reads a transposed copy of the weights' bytes. The scales of 128x128 blocks are transposed with them.

The matrix cores of gfx942 know another E4M3 ("fnuz", bias 8): there the compiler widens to FP16, which holds every
number of this one. Products and sums stay the same, at half the rate.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fathom.kernels.fp8 import Blocks, Tiles, ceil_tiles
from fathom.kernels.triton.quantise import PackedColumns, row_starts, token_map

# Eight warps share a 128x128 result, twice (part and acc): with four, sm_90 runs out of registers. Each stage of loads
# takes 32 KiB, of 227 on sm_90 and of 64 on gfx942.
WARPS = 8
STAGES = {"cuda": 3, "hip": 2}


@triton.jit
def rows_kernel(a, a_scale, b, b_scale, y, expert, first, last, K, N):
    """y [T, N] = a [T, K] . b [E, N, K]^T; a_scale [T, K tiles], b_scale [E, N blocks, K blocks]."""
    row, column = tl.program_id(1), tl.program_id(0)
    lane = tl.arange(0, 128)
    begin, end = tl.load(first + row), tl.load(last + row)
    if begin >= end:
        return
    t, n = begin + lane, column * 128 + lane
    is_token, is_output = t < end, n < N
    e = tl.load(expert + row).to(tl.int64)
    tiles = tl.cdiv(K, 128)
    a += t.to(tl.int64)[:, None] * K + lane[None, :]
    a_scale += t.to(tl.int64) * tiles
    b += e * N * K + n.to(tl.int64)[:, None] * K + lane[None, :]
    b_scale += (e * tl.cdiv(N, 128) + column) * tiles
    acc = tl.zeros([128, 128], tl.float32)
    for j in range(tiles):
        is_k = (lane < K - j * 128)[None, :]
        a_part = tl.load(a + j * 128, is_token[:, None] & is_k, 0.0)
        b_part = tl.load(b + j * 128, is_output[:, None] & is_k, 0.0)
        part = tl.dot(a_part, tl.trans(b_part))
        acc += part * (tl.load(a_scale + j, is_token, 0.0) * tl.load(b_scale + j))[:, None]
    y += t.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(y, acc.to(y.dtype.element_ty), is_token[:, None] & is_output[None, :])


@triton.jit
def tokens_sum_kernel(a, a_scale, b, b_scale, grad, starts, N, K, stride):
    """grad [E, N, K] += a [N, rows * 128] . b [K, rows * 128]^T over the rows of each expert; scales [rows, N or K]."""
    e = tl.program_id(2)
    lane = tl.arange(0, 128)
    n, k = tl.program_id(1) * 128 + lane, tl.program_id(0) * 128 + lane
    is_n, is_k = n < N, k < K
    a += n.to(tl.int64)[:, None] * stride + lane[None, :]
    b += k.to(tl.int64)[:, None] * stride + lane[None, :]
    begin = tl.load(starts + e)
    a_scale += begin.to(tl.int64) * N + n
    b_scale += begin.to(tl.int64) * K + k
    acc = tl.zeros([128, 128], tl.float32)
    for row in range(begin, tl.load(starts + e + 1)):
        a_part = tl.load(a + row * 128, is_n[:, None], 0.0)
        b_part = tl.load(b + row * 128, is_k[:, None], 0.0)
        scale = tl.load(a_scale, is_n, 0.0)[:, None] * tl.load(b_scale, is_k, 0.0)[None, :]
        acc += tl.dot(a_part, tl.trans(b_part)) * scale
        a_scale += N
        b_scale += K
    grad += (e.to(tl.int64) * N + n)[:, None] * K + k[None, :]
    inside = is_n[:, None] & is_k[None, :]
    tl.store(grad, tl.load(grad, inside, 0.0) + acc, inside)


def _options() -> dict[str, int | bool]:
    stages = STAGES["hip" if torch.version.hip else "cuda"]
    return {"num_warps": WARPS, "num_stages": stages, "enable_fp_fusion": False}


def fprop(x: Tiles, w: Blocks, dtype: torch.dtype = torch.float32) -> Tensor:
    """fp8.fprop, rounded to `dtype` (FP32 or BF16)."""
    return _rows(x, Blocks(w.values[None], w.scale[None]), None, dtype)


def dgrad(dy: Tiles, w: Blocks, dtype: torch.dtype = torch.float32) -> Tensor:
    """fp8.dgrad, rounded to `dtype`."""
    return _rows(dy, transpose(Blocks(w.values[None], w.scale[None])), None, dtype)


def wgrad(dy: PackedColumns, x: PackedColumns, grad: Tensor) -> None:
    """fp8.wgrad; grad FP32 [N, K]."""
    _tokens_sum(dy, x, torch.tensor([0, dy.scale.shape[0]], dtype=torch.int32, device=grad.device), grad[None])


def grouped_fprop(x: Tiles, w: Blocks, ends: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """fp8.grouped_fprop, rounded to `dtype`."""
    return _rows(x, w, ends, dtype)


def grouped_dgrad(dy: Tiles, w: Blocks, ends: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """fp8.grouped_dgrad, rounded to `dtype`."""
    return _rows(dy, transpose(w), ends, dtype)


def transpose(w: Blocks) -> Blocks:
    """[E, out, in] -> [E, in, out], bytes and scales copied: a block stays a block."""
    bytes_ = w.values.view(torch.uint8).transpose(-1, -2).contiguous()
    return Blocks(bytes_.view(torch.float8_e4m3fn), w.scale.transpose(-1, -2).contiguous())


def _rows(x: Tiles, w: Blocks, ends: Tensor | None, dtype: torch.dtype) -> Tensor:
    (tokens, inner), outputs = x.values.shape, w.values.shape[1]
    y = x.values.new_empty((tokens, outputs), dtype=dtype)
    rows = token_map(tokens, ends, y.device)
    if tokens:
        rows_kernel[(ceil_tiles(outputs), rows.rows)](
            x.values.contiguous(), x.scale.contiguous(), w.values, w.scale, y, rows.expert, rows.first, rows.last,
            inner, outputs, **_options(),
        )  # fmt: skip
    return y


def grouped_wgrad(dy: PackedColumns, x: PackedColumns, ends: Tensor, grad: Tensor) -> None:
    """fp8.grouped_wgrad; grad FP32 [E, N, K]."""
    _tokens_sum(dy, x, row_starts(ends.to(grad.device)), grad)


def _tokens_sum(dy: PackedColumns, x: PackedColumns, starts: Tensor, grad: Tensor) -> None:
    assert grad.is_contiguous() and grad.dtype == torch.float32
    experts, outputs, inputs = grad.shape
    tokens_sum_kernel[(ceil_tiles(inputs), ceil_tiles(outputs), experts)](
        dy.values, dy.scale, x.values, x.scale, grad, starts, outputs, inputs, dy.values.shape[1],
        **_options(),
    )  # fmt: skip
