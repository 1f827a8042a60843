"""Every Triton kernel compiled ahead of time, without the GPU it is for: proof that it builds, and what it will use.

A kernel's types and constants are written down here as its launcher would choose them. Triton compiles one version for
sizes that are multiples of 16 and another for the rest ("ragged"). ptxas comes inside the triton package.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fathom.kernels.triton import gemm, quantise

TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
MATRIX = {"sm_90": r"\bwgmma\.mma_async\S*", "gfx942": r"\bv_mfma_\w+"}  # the tensor cores' instructions
F32, BF16, FP8, I32 = "*fp32", "*bf16", "*fp8e4nv", "*i32"


@dataclass(frozen=True)
class Kernel:
    """One version of a kernel: types of its arguments in order, then its constants."""

    name: str
    function: Any
    arguments: tuple[str, ...]
    constants: dict[str, Any] = field(default_factory=dict)
    warps: int = 4
    ragged: bool = False


def kernels() -> list[Kernel]:
    """All that training launches: BF16 activations, FP32 master weights, both scale formats."""
    out: list[Kernel] = []
    types: tuple[str, ...]
    constants: dict[str, Any]
    for scale in ("fp32", "ue8m0"):
        ue8m0 = scale == "ue8m0"
        for name, swiglu in (("tiles", False), ("swiglu_tiles", True)):
            constants = {"UE8M0": ue8m0, "SWIGLU": swiglu, "ROWS": quantise.TILE_ROWS}
            out.append(Kernel(f"{name} {scale}", quantise.tiles_kernel, (BF16, FP8, F32, "i32", "i32"), constants))
        forms = (("columns", BF16), ("retile", FP8), ("block_tiles", BF16), ("blocks", F32))
        for form, source in forms:
            types = (source, F32, FP8, F32, I32, I32, "i32", "i32")
            tiled = form == "retile"
            constants = {"UE8M0": ue8m0, "FORM": "columns" if tiled else form, "TILED": tiled}
            out.append(Kernel(f"{form} {scale}", quantise.tokens_kernel, types, constants, quantise.WARPS))
    operands = (FP8, F32, FP8, F32)
    for y in (BF16, F32):
        types = (*operands, y, I32, I32, I32, "i32", "i32")
        out.append(Kernel(f"fprop, dgrad to {y[1:]}", gemm.rows_kernel, types, warps=gemm.WARPS))
    types = (*operands, F32, I32, "i32", "i32", "i32")
    out.append(Kernel("wgrad", gemm.tokens_sum_kernel, types, warps=gemm.WARPS))
    return out + [
        replace(k, name=f"{k.name}, ragged", ragged=True) for k in out if not ("block" in k.name or "ue8m0" in k.name)
    ]


def compile_kernel(kernel: Kernel, target: str) -> dict[str, Any]:
    """Compiles it and says what came out: registers per thread, spilled, shared memory and binary in bytes."""
    names = kernel.function.arg_names
    types = dict(zip(names, kernel.arguments, strict=False)) | dict.fromkeys(kernel.constants, "constexpr")
    sizes = [name for name, kind in types.items() if kind == "i32" and name != "stride"]  # packed columns: 128s
    aligned = [i for i in range(len(kernel.arguments)) if not (kernel.ragged and names[i] in sizes)]
    source = ASTSource(kernel.function, types, kernel.constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    stages = gemm.STAGES[TARGETS[target].backend]
    options = {"num_warps": kernel.warps, "num_stages": stages, "enable_fp_fusion": False}
    built = triton.compile(source, target=TARGETS[target], options=options)
    text = built.asm["ptx" if target == "sm_90" else "amdgcn"]
    registers, spilled = _cuda_usage(built.kernel) if target == "sm_90" else _hip_usage(text)
    matrix = re.findall(MATRIX[target], text)
    return {
        "kernel": kernel.name, "target": target, "registers": registers, "spilled": spilled,
        "shared": built.metadata.shared, "binary": len(built.kernel), "matrix": sorted(set(matrix)),
        "matrix_count": len(matrix),
    }  # fmt: skip


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread, from the binary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _number(r"REG:(\d+)", text), _number(r"STACK:(\d+)", text)


def _hip_usage(assembly: str) -> tuple[int, int]:
    """Vector registers (both files) and scratch bytes of a thread, from the metadata at the assembly's end."""
    return _number(r"\.vgpr_count:\s*(\d+)", assembly), _number(r"\.private_segment_fixed_size:\s*(\d+)", assembly)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in the compiler's output"
    return int(found[1])
