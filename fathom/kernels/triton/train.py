"""The FP8 operations of a training step on a GPU: fp8.py's names, for the table in kernels/train_ops.py."""

from __future__ import annotations

from fathom.kernels.triton.gemm import dgrad, fprop, grouped_dgrad, grouped_fprop, grouped_wgrad, wgrad
from fathom.kernels.triton.quantise import (
    quantise_block_tiles,
    quantise_blocks,
    quantise_columns,
    quantise_tiles,
    retile,
)

__all__ = [
    "dgrad", "fprop", "grouped_dgrad", "grouped_fprop", "grouped_wgrad", "quantise_block_tiles", "quantise_blocks",
    "quantise_columns", "quantise_tiles", "retile", "wgrad",
]  # fmt: skip
