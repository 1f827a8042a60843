"""How one checkpoint tensor becomes its output: copied, cast, dequantised or quantised, a chunk of rows at a time.

FP8 comes in 128x128 blocks (report section 3.3): value = q * scale_inv. A chunk of rows is a multiple of 128, so that
blocks never straddle chunks and peak memory is a few chunks, whatever the tensor.

Quantising again what was quantised must change nothing, or a checkpoint drifts with every conversion. Dividing the
largest magnitude by 448 is not enough for that, in two cases, which `canonical` settles:
 1. scale_fmt ue8m0 rounds the scale up to a power of two. A block whose largest value lands between 224 and 232 scales
    is rounded to 224 exactly; seen again it asks for half the scale and twice the codes. The same values, other bytes.
    Canonical form: codes doubled and scale halved at once.
 2. A block under the floor of 1e-4 whose largest code is 448: BF16(448 * scale) lies above the floor, so the second
    time the scale is another. Canonical form: the scale that the BF16 values will ask for.
What is quantised is always BF16 (FP32 is rounded first), so FP32 -> FP8 equals FP32 -> BF16 -> FP8. With this,
FP8 -> BF16 -> FP8 is byte-equal for everything Fathom wrote. A foreign FP8 checkpoint may change once: its scales by at
most 2^-8, which moves no code (half a step of E4M3 is 2^-5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.checkpoint.finite import require_finite
from fathom.checkpoint.names import SCALE, TensorSpec, scale_shape
from fathom.checkpoint.safetensors_io import Entry
from fathom.checkpoint.sources import Source, row_chunks, whole
from fathom.config import QuantizationConfig
from fathom.kernels.reference import FP8, FP8_MAX, dequantize_blocks, quantize_blocks
from fathom.runtime import UserError

Target = Literal["keep", "bf16", "fp8", "fp32"]
Block = tuple[int, int]
Piece = tuple[str, int, Tensor]  # output name, first row, rows
CODE_448, CODE_224 = 0x7E, 0x76  # E4M3 bit patterns


@dataclass(frozen=True)
class StoredWeight:
    """A weight as a checkpoint (or a model) holds it, with its scale when it is FP8."""

    spec: TensorSpec
    weight: Source
    scale: Source | None = None
    block: Block = (128, 128)

    def values(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows in `dtype`), dequantised; the first row is a multiple of the block. NaN is refused."""
        scale = None if self.scale is None else read_scale(self.spec.name, self.scale)
        high = self.block[0]
        for start, stop in row_chunks(self.weight, high):
            rows = self.weight.rows(start, stop)
            require_finite(self.spec.name, rows)
            if scale is None:
                yield start, rows.to(dtype)
            else:
                yield start, dequantize_blocks(rows, scale[start // high : -(-stop // high)], self.block, dtype)


@dataclass(frozen=True)
class Recipe:
    """The tensors that come out of one weight, and how to make them. `run` can be called again, to compare."""

    entries: tuple[Entry, ...]
    run: Callable[[], Iterator[Piece]]

    @property
    def nbytes(self) -> int:
        """Bytes of data it writes."""
        return sum(e.nbytes for e in self.entries)


def read_scale(name: str, source: Source) -> Tensor:
    """A weight's scale as FP32; anything but finite numbers of at least zero is an error."""
    scale = whole(source).float()
    if not bool((scale.isfinite() & (scale >= 0)).all()):
        raise UserError(f"{name}{SCALE} holds a NaN, infinite or negative scale; the checkpoint is damaged")
    return scale


def recipe(
    stored: StoredWeight,
    to: Target,
    quantization: QuantizationConfig | None = None,
    name: str | None = None,
    scale_name: str | None = None,
) -> Recipe:
    """How to write `stored` as `to`: the table's dtype rule decides which tensors "fp8" quantises."""
    name = name or stored.spec.name
    scale_name = scale_name or name + SCALE
    if to == "keep":
        return _copy(stored, name, scale_name)
    if to == "fp8" and stored.spec.kind == "fp8":
        return _quantise(stored, name, scale_name, quantization or QuantizationConfig())
    return _cast(stored, name, torch.float32 if to == "fp32" or stored.spec.kind == "fp32" else torch.bfloat16)


def _copy(stored: StoredWeight, name: str, scale_name: str) -> Recipe:
    weight, scale = stored.weight, stored.scale
    entries = [Entry(name, weight.dtype, weight.shape)]
    if scale is not None:
        entries.append(Entry(scale_name, scale.dtype, scale.shape))

    def run() -> Iterator[Piece]:
        for start, stop in row_chunks(weight):
            rows = weight.rows(start, stop)
            require_finite(name, rows)
            yield name, start, rows
        if scale is not None:
            read_scale(name, scale)
            yield scale_name, 0, whole(scale)

    return Recipe(tuple(entries), run)


def _cast(stored: StoredWeight, name: str, dtype: torch.dtype) -> Recipe:
    def run() -> Iterator[Piece]:
        for start, rows in stored.values(dtype):
            yield name, start, rows

    return Recipe((Entry(name, dtype, stored.weight.shape),), run)


def _quantise(stored: StoredWeight, name: str, scale_name: str, quantization: QuantizationConfig) -> Recipe:
    block, shape = quantization.weight_block_size, stored.weight.shape
    entries = (Entry(name, FP8, shape), Entry(scale_name, torch.float32, scale_shape(shape, block)))
    assert stored.block[0] % block[0] == 0

    def run() -> Iterator[Piece]:
        for start, rows in stored.values(torch.bfloat16):
            q, scale = quantize_blocks(rows, block, quantization.scale_fmt)
            if not bool(scale.isfinite().all()):
                raise UserError(f"{name} holds a value beyond the range of BF16, which FP8 is made from")
            q, scale = canonical(q, scale, block, quantization.scale_fmt)
            yield name, start, q
            yield scale_name, start // block[0], scale

    return Recipe(entries, run)


def canonical(q: Tensor, scale: Tensor, block: Block, scale_fmt: str | None) -> tuple[Tensor, Tensor]:
    """The form that quantising the dequantised BF16 values gives again; see the head of this file."""
    largest = _largest_code(q, block)
    if scale_fmt != "ue8m0":
        asked = (scale * FP8_MAX).to(torch.bfloat16).float() / FP8_MAX
        return q, torch.where(largest == CODE_448, asked, scale)
    halve = largest == CODE_224
    if not bool(halve.any()):
        return q, scale
    factor = torch.where(halve, 2.0, 1.0)
    return dequantize_blocks(q, factor, block).to(FP8), scale / factor


def _largest_code(q: Tensor, block: Block) -> Tensor:
    """Largest E4M3 magnitude pattern per block, uint8; patterns without the sign bit order as their values do."""
    codes = q.view(torch.uint8) & 0x7F
    rows, columns = codes.shape
    codes = F.pad(codes, (0, -columns % block[1], 0, -rows % block[0]))
    codes = codes.view(codes.shape[0] // block[0], block[0], codes.shape[1] // block[1], block[1])
    return codes.amax(3).amax(1)
