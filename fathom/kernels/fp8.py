"""FP8 training arithmetic in plain PyTorch (report section 3.3): the definition, bit by bit. Slow; runs anywhere.

A linear layer y = x W^T, x [T, K], W [N, K], makes three products. All six operands are E4M3, all sums are FP32:

    product                          sums over   operand 1             operand 2
    fprop  y [T, N]   = x . W^T      channels K  x   tiles 1x128       W  blocks 128x128
    dgrad  dx [T, K]  = dy . W       channels N  dy  tiles 1x128       W  blocks 128x128 (the same bytes)
    wgrad  dW [N, K] += dy^T . x     tokens T    dy  columns 128x1     x  columns 128x1

A scale belongs to 128 neighbours along the summed dimension, so it can be applied after each 128 products: that is what
the report calls promotion (the tensor core's sum of 128, added to an FP32 accumulator with its scales).

    for each 128 of the summed dimension, in order:
        part = 0;  for each of the 128, in order:  part = fl(part + a * b)     a * b is exact in FP32 (4 x 4 bits)
        acc  = fl(acc + fl(part * fl(scale_a * scale_b)))                     fl: rounded to FP32; no fused multiply-add

Then wgrad adds acc to dW, rounded once more. A machine that keeps this order gets these bits; one that sums the 128 in
another order (tensor cores do) differs within `part`'s rounding.

Scales: value = q * scale, scale = max(largest magnitude, 1e-4) / 448; "ue8m0" rounds it up to a power of two. Edges of
fewer than 128 are zero-padded, which changes no sum. Inputs must be finite.

Grouped versions: tokens sorted by expert, `ends` [E] = the token after each expert's last. Token tiles of wgrad start
anew at each expert. Ablation (appendix B.2, diverged in the report): dy in blocks of 128x128, see quantise_block_tiles.

Deviation: E5M6, of which the report tells the name only, is taken as FP16 with 6 mantissa bits, saturating.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels import reference
from fathom.kernels.reference import AMAX_FLOOR
from fathom.runtime import UserError

TILE = 128
E5M6_MAX = (2 - 2.0**-6) * 2.0**15  # 65024; exponent 31 stays free, as in FP16
SCALE_FORMATS = {"fp32": None, "ue8m0": "ue8m0"}


class Tiles(NamedTuple):
    """1x128: a scale per 128 neighbours of the last dimension. values [..., n] E4M3, scale [..., ceil(n/128)] FP32."""

    values: Tensor
    scale: Tensor


class Columns(NamedTuple):
    """128x1: one scale per 128 tokens of a column. values [T, n], scale [token tiles, n]; see `token_tiles`."""

    values: Tensor
    scale: Tensor


class Blocks(NamedTuple):
    """128x128. values [out, in] or [E, out, in], scale [ceil(out/128), ceil(in/128)] or with E before."""

    values: Tensor
    scale: Tensor


def ceil_tiles(n: int) -> int:
    """How many tiles n elements take."""
    return -(-n // TILE)


def check_scale(scale: str) -> str | None:
    """The scale's format as reference.py names it."""
    if scale not in SCALE_FORMATS:
        raise UserError(f"scale format {scale!r} is not known; use one of {', '.join(SCALE_FORMATS)}")
    return SCALE_FORMATS[scale]


def segments(tokens: int, ends: Tensor | None) -> list[tuple[int, int]]:
    """(first token, token after the last) of each expert; everything is one segment where there are none."""
    stops = [tokens] if ends is None else [int(end) for end in ends]
    starts = [0, *stops[:-1]]
    if stops[-1] != tokens or any(stop < start for start, stop in zip(starts, stops, strict=True)):
        raise UserError(f"the experts' ends {stops} must not fall and must stop at {tokens}, the number of tokens")
    return list(zip(starts, stops, strict=True))


def token_tiles(tokens: int, ends: Tensor | None) -> list[tuple[int, int]]:
    """(first token, token after the last) of each row of scales of `Columns`: expert after expert."""
    return [(t, min(t + TILE, stop)) for start, stop in segments(tokens, ends) for t in range(start, stop, TILE)]


# ---- quantising


def quantise_tiles(x: Tensor, scale: str = "fp32") -> Tiles:
    """Activations and their gradients, [..., n] of any n."""
    padded = F.pad(x.float(), (0, -x.shape[-1] % TILE))
    values, scales = reference.quantize_tiles(padded, TILE, check_scale(scale))
    return Tiles(values[..., : x.shape[-1]].contiguous(), scales)


def quantise_columns(x: Tensor, scale: str = "fp32", ends: Tensor | None = None) -> Columns:
    """Both operands of wgrad, [T, n]: tiles along the tokens."""
    parts = [quantise_tiles(x[start:stop].T, scale) for start, stop in segments(x.shape[0], ends)]
    values, scales = torch.cat([p.values for p in parts], dim=1), torch.cat([p.scale for p in parts], dim=1)
    return Columns(values.T.contiguous(), scales.T.contiguous())


def quantise_blocks(w: Tensor, scale: str = "fp32") -> Blocks:
    """Weights, [out, in] or experts stacked [E, out, in]."""
    if w.dim() == 2:
        return Blocks(*reference.quantize_blocks(w, (TILE, TILE), check_scale(scale)))
    parts = [quantise_blocks(each, scale) for each in w]
    return Blocks(torch.stack([p.values for p in parts]), torch.stack([p.scale for p in parts]))


def quantise_block_tiles(x: Tensor, scale: str = "fp32", ends: Tensor | None = None) -> Tiles:
    """The ablation: 128 tokens share a tile's scale. A block is a tile whose scale repeats, so dgrad takes it."""
    parts = [quantise_blocks(x[start:stop], scale) for start, stop in segments(x.shape[0], ends) if stop > start]
    if not parts:
        return quantise_tiles(x, scale)
    scales = [_spread(part.scale, 0, part.values.shape[0]) for part in parts]
    return Tiles(torch.cat([part.values for part in parts]), torch.cat(scales).contiguous())


def dequantise_tiles(tiles: Tiles) -> Tensor:
    """FP32 [..., n] = values * scale."""
    return tiles.values.float() * _spread(tiles.scale, -1, tiles.values.shape[-1])


def retile(tiles: Tiles, scale: str = "fp32", ends: Tensor | None = None) -> Columns:
    """Cached activations [T, n] on their way to wgrad (report 3.5.2): 1x128 dequantised, quantised again 128x1."""
    return quantise_columns(dequantise_tiles(tiles), scale, ends)


def _spread(scale: Tensor, dim: int, n: int) -> Tensor:
    """Each scale repeated for its 128 elements, cropped to n."""
    return scale.repeat_interleave(TILE, dim).narrow(dim, 0, n)


# ---- E5M6, the cache of o_proj's input (report 3.3.3): the same tensor goes into attention's backward


def round_e5m6(x: Tensor) -> Tensor:
    """The nearest 12-bit float (sign, 5 exponent bits, 6 mantissa bits; ties to even; above 65024 saturated), as FP32.

    Exponent bias 15, subnormals down to 2^-20. Its 12 bits are the upper 12 of the FP16 of the result.
    """
    x = x.float().clamp(-E5M6_MAX, E5M6_MAX)
    exponent = (torch.frexp(x).exponent - 1).clamp(min=-14)  # x in [2^e, 2^(e+1)); one step there is 2^(e-6)
    step = torch.ldexp(torch.ones_like(x), exponent - 6)
    return torch.round(x / step) * step


def quantise_e5m6(x: Tensor) -> Tiles:
    """1x128 tiles with power-of-two scales. `values` are FP32 numbers that 12 bits can hold exactly."""
    tiles = F.pad(x.float(), (0, -x.shape[-1] % TILE)).unflatten(-1, (-1, TILE))
    mantissa, exponent = torch.frexp(tiles.abs().amax(-1).clamp(min=AMAX_FLOOR) / E5M6_MAX)
    scale = torch.ldexp(torch.ones_like(mantissa), exponent - (mantissa == 0.5).int())
    values = round_e5m6(tiles / scale[..., None]).flatten(-2)
    return Tiles(values[..., : x.shape[-1]].contiguous(), scale)


# ---- the three products


def _gemm(a_MK: Tensor, b_KN: Tensor, scale: Callable[[int], Tensor]) -> Tensor:
    """The sum in the docstring above. scale(j): fl(scale_a * scale_b) [M, N] of the j-th 128."""
    a, b = a_MK.float(), b_KN.float()
    acc = torch.zeros(a.shape[0], b.shape[1], device=a.device)
    for start in range(0, a.shape[1], TILE):
        part = torch.zeros_like(acc)
        for k in range(start, min(start + TILE, a.shape[1])):
            part = part + a[:, k, None] * b[k]
        acc = acc + part * scale(start // TILE)
    return acc


def fprop(x: Tiles, w: Blocks) -> Tensor:
    """[T, K] . [N, K]^T -> FP32 [T, N]."""
    outputs = w.values.shape[0]
    return _gemm(x.values, w.values.T, lambda j: x.scale[:, j, None] * _spread(w.scale[:, j], 0, outputs))


def dgrad(dy: Tiles, w: Blocks) -> Tensor:
    """[T, N] . [N, K] -> FP32 [T, K]."""
    inputs = w.values.shape[1]
    return _gemm(dy.values, w.values, lambda j: dy.scale[:, j, None] * _spread(w.scale[j], 0, inputs))


def wgrad(dy: Columns, x: Columns, grad: Tensor) -> None:
    """grad FP32 [N, K] += [T, N]^T . [T, K]."""
    grad += _gemm(dy.values.T, x.values, lambda j: dy.scale[j, :, None] * x.scale[j])


def grouped_fprop(x: Tiles, w: Blocks, ends: Tensor) -> Tensor:
    """Tokens [T, K] sorted by expert, w [E, N, K] -> FP32 [T, N]."""
    return _by_expert(fprop, x, w, ends)


def grouped_dgrad(dy: Tiles, w: Blocks, ends: Tensor) -> Tensor:
    """Tokens [T, N] sorted by expert, w [E, N, K] -> FP32 [T, K]."""
    return _by_expert(dgrad, dy, w, ends)


def _by_expert(product: Callable[[Tiles, Blocks], Tensor], x: Tiles, w: Blocks, ends: Tensor) -> Tensor:
    spans = enumerate(segments(x.values.shape[0], ends))
    rows = [product(Tiles(x.values[a:b], x.scale[a:b]), Blocks(w.values[e], w.scale[e])) for e, (a, b) in spans]
    return torch.cat(rows)


def grouped_wgrad(dy: Columns, x: Columns, ends: Tensor, grad: Tensor) -> None:
    """grad FP32 [E, N, K]: each expert's += its own tokens'. Scales as quantise_columns(..., ends) stacks them."""
    row = 0
    for e, (start, stop) in enumerate(segments(dy.values.shape[0], ends)):
        rows = slice(row, row + ceil_tiles(stop - start))
        row = rows.stop
        wgrad(Columns(dy.values[start:stop], dy.scale[rows]), Columns(x.values[start:stop], x.scale[rows]), grad[e])
