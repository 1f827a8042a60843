"""The FP8 operations as Triton kernels, for GPUs (package extra "gpu"): quantise.py, gemm.py; tested against fp8.py.

Importing this package needs nothing; its modules import triton. With TRITON_INTERPRET=1 in the environment before that
import, the same kernels run on the CPU, one NumPy operation at a time: how they are tested where there is no GPU.
"""

from __future__ import annotations

import importlib.util
import os

import torch


def unavailable() -> str | None:
    """Why the kernels cannot run here, in words for an error message; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed; try: pip install 'fathom-lm[gpu]'"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU here"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 9):
        return "this GPU has no FP8 (compute capability 8.9 or higher is needed)"
    return None
