"""Experts that transformers 5 saved stacked (`save_original_format=False`), seen as the single matrices of the format.

    ...mlp.experts.gate_up_proj [E, 2I, D]  ->  ...mlp.experts.{e}.gate_proj.weight and .up_proj.weight [I, D]
    ...mlp.experts.down_proj    [E, D, I]   ->  ...mlp.experts.{e}.down_proj.weight [D, I]

and the same for their FP8 scales. Nothing is read: each matrix is a range of bytes of the stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from fathom.checkpoint.safetensors_io import TensorInfo

STACK = re.compile(r"(.+\.mlp\.experts)\.(gate_up_proj|down_proj)(?:\.weight)?(_scale_inv)?")


def split(name: str, info: TensorInfo) -> Iterator[tuple[str, TensorInfo]]:
    """(name, place) of each matrix in a stack of experts; any other tensor as it is."""
    match = STACK.fullmatch(name)
    if match is None or len(info.shape) != 3:
        yield name, info
        return
    prefix, projection, scale = match[1], match[2], match[3] or ""
    experts, rows, columns = info.shape
    parts = ("gate_proj", "up_proj") if projection == "gate_up_proj" else ("down_proj",)
    if rows % len(parts):
        yield name, info  # check.py reports it
        return
    shape = (rows // len(parts), columns)
    nbytes = info.nbytes // (experts * len(parts))
    for index in range(experts * len(parts)):
        expert, part = divmod(index, len(parts))
        place = replace(info, shape=shape, offset=info.offset + index * nbytes)
        yield f"{prefix}.{expert}.{parts[part]}.weight{scale}", place
