"""`fathom.load_model`: a model by whatever names it."""

from __future__ import annotations

from pathlib import Path

from fathom.checkpoint import reader
from fathom.model.transformer import DeepseekV3
from fathom.models.resolve import resolve


def load_model(path_or_name: Path | str = "minnow", dtype: str = "auto", device: str = "auto") -> DeepseekV3:
    """The model of a folder, hub id or name (`minnow`, `smol`), in eval mode.

    dtype "auto": bfloat16 for FP8 and BF16 checkpoints, float32 or float16 for those; FP8 is dequantised. "fp8" is the
    same, but weights that are stored in FP8 stay so (model/quant.py).
    """
    return reader.load_model(resolve(path_or_name), dtype, device)
