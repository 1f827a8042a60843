"""The fused serving step on CPUs: whole blocks in C++ (block.cpp), called through ctypes.

Why: at one token per step PyTorch spends more time between its operators than in them. Here a block is one parallel
region of seven or eight phases, weights are read as they are stored (FP32, BF16, FP8), and everything between two
matrices stays in the cache of a core. Activations and sums are FP32.

Long chunks of prompts take another way through the same library (plan.h, prefill.h): weights are unpacked panel by
panel for all tokens, keys and values are expanded. Which way a token goes depends on how many tokens of its own
sequence the step has, and on how many keys they see. On one way its result is the same bit for bit, alone or in any
company, on any number of threads; the two ways differ by FP32's rounding.

Threads are OpenMP's, the pool that PyTorch uses, as many as `torch.get_num_threads()` says.

Shapes: T tokens, D hidden, K experts per token; see kernels/step.py for the rest.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from fathom.kernels.cpu import build
from fathom.kernels.cpu.structs import CBlock, CMatrix, CPool, CStep, Holder, make_block, make_pool, make_step
from fathom.kernels.step import BlockWeights, Matrix, PagedLatents, StepBatch
from fathom.runtime import UserError

ERRORS = {1: "a slot, row, key count or page of the step lies outside the cache", 2: "there is not enough memory"}


@cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none. Looked for once per process."""
    try:
        lib = ctypes.CDLL(str(build.library()))
    except build.BuildError as error:
        return str(error)
    except OSError as error:
        return f"the compiled C++ step cannot be loaded ({error})"
    lib.fathom_sizes.restype = ctypes.c_int64
    lib.fathom_sizes.argtypes = [ctypes.c_int64]
    for which, struct in enumerate((CMatrix, CBlock, CPool, CStep)):
        assert lib.fathom_sizes(which) == ctypes.sizeof(struct), struct
    pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    lib.fathom_blocks.argtypes = [pointer, pointer, count, pointer, pointer, pointer, number]
    lib.fathom_latents.argtypes = [pointer, pointer, pointer, pointer, number]
    lib.fathom_linear.argtypes = [pointer, pointer, ctypes.c_float, pointer, count, pointer, number]
    lib.fathom_norm.argtypes = [pointer, ctypes.c_float, pointer, count, count, pointer]
    return lib


def available() -> str | None:
    """None when the C++ step can be used; else why not, in one line. The first call may compile (seconds)."""
    lib = _load()
    return lib if isinstance(lib, str) else None


def _library() -> ctypes.CDLL:
    lib = _load()
    if isinstance(lib, str):
        raise UserError(f"the C++ step is not available: {lib}")
    return lib


def _checked(status: int) -> None:
    if status:
        raise UserError(f"the C++ step was refused: {ERRORS[status]}")


class CpuBlocks:
    """Consecutive blocks, run by one call. Weights are read where they lie: they must not be moved or changed in shape.

    The pools of the last call are remembered, so that a step costs no work per layer in Python.
    """

    def __init__(self, weights: Sequence[BlockWeights]) -> None:
        self._lib = _library()
        self._hold = Holder()
        blocks = [make_block(w, self._hold) for w in weights]
        self._blocks = (ctypes.POINTER(CBlock) * len(blocks))(*(ctypes.pointer(b) for b in blocks))
        self._count = len(blocks)
        self._moe = [w.router is not None for w in weights]
        self._moe_index = [sum(self._moe[:i]) if moe else None for i, moe in enumerate(self._moe)]
        self._top_k = max((w.router.top_k for w in weights if w.router is not None), default=0)
        assert all(w.router is None or w.router.top_k == self._top_k for w in weights), "one top_k for all blocks"
        self._hidden = int(blocks[0].hidden)
        self._caches: tuple[PagedLatents, ...] = ()
        self._pools = (CPool * 0)()
        self._pool_tensors = Holder()

    def __call__(
        self, x_TD: Tensor, batch: StepBatch, caches: Sequence[PagedLatents]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """x FP32 [T, D] -> (FP32 [T, D], chosen experts int64 [T, K] of every block, None where it is dense).

        The tokens' latents and rope keys are written to the pools first; then every token attends to the slots
        first_key .. last_key of its sequence, so tokens of one sequence in one step see each other causally.
        """
        assert x_TD.dtype == torch.float32 and x_TD.shape == (batch.rows.shape[0], self._hidden), x_TD.shape
        self._bind(caches)
        out = x_TD.detach().contiguous().clone()
        step, tokens = make_step(batch), len(out)
        experts = torch.empty(sum(self._moe), tokens, self._top_k, dtype=torch.int64)
        rows, address, size = iter(experts.unbind(0)), experts.data_ptr(), tokens * self._top_k * 8
        chosen = [next(rows) if moe else None for moe in self._moe]
        pointers = (ctypes.c_void_p * self._count)(
            *(None if at is None else address + at * size for at in self._moe_index)
        )
        _checked(
            self._lib.fathom_blocks(
                self._blocks, self._pools, self._count, ctypes.addressof(step), out.data_ptr(), pointers,
                torch.get_num_threads(),
            )
        )  # fmt: skip
        return out, chosen

    def write_latents(self, x_TD: Tensor, batch: StepBatch, caches: Sequence[PagedLatents]) -> None:
        """Only what the first block caches for tokens x: norm, kv_a, latent norm, rotation, storage."""
        assert x_TD.dtype == torch.float32 and x_TD.shape == (batch.rows.shape[0], self._hidden), x_TD.shape
        self._bind(caches)
        x, step = x_TD.detach().contiguous(), make_step(batch)
        _checked(
            self._lib.fathom_latents(
                self._blocks[0], self._pools, ctypes.addressof(step), x.data_ptr(), torch.get_num_threads()
            )
        )

    def _bind(self, caches: Sequence[PagedLatents]) -> None:
        if len(caches) == len(self._caches) and all(a is b for a, b in zip(caches, self._caches, strict=True)):
            return
        assert len(caches) == self._count, "one cache per block"
        self._pool_tensors = Holder()
        self._pools = (CPool * len(caches))(*(make_pool(c, self._pool_tensors) for c in caches))
        self._caches = tuple(caches)


class CpuBlock:
    """One block; several run faster as CpuBlocks."""

    def __init__(self, weights: BlockWeights) -> None:
        self._blocks = CpuBlocks([weights])

    def __call__(self, x_TD: Tensor, batch: StepBatch, cache: PagedLatents) -> tuple[Tensor, Tensor | None]:
        """See CpuBlocks."""
        out, chosen = self._blocks(x_TD, batch, [cache])
        return out, chosen[0]

    def write_latents(self, x_TD: Tensor, batch: StepBatch, cache: PagedLatents) -> None:
        """See CpuBlocks."""
        self._blocks.write_latents(x_TD, batch, [cache])


class CpuLinear:
    """y = W norm(x), the norm optional: the head, or any other matrix."""

    def __init__(self, matrix: Matrix, norm: Tensor | None = None, eps: float = 1e-6) -> None:
        self._lib = _library()
        self._hold = Holder()
        self._matrix = self._hold.matrix(matrix)
        self._gain = self._hold.vector(norm)
        self._eps = eps
        self._shape = (int(self._matrix.rows), int(self._matrix.cols))

    def __call__(self, x_TN: Tensor) -> Tensor:
        """FP32 [T, in] -> FP32 [T, out]"""
        assert x_TN.dtype == torch.float32 and x_TN.shape[1] == self._shape[1], x_TN.shape
        x = x_TN.detach().contiguous()
        out = torch.empty(x.shape[0], self._shape[0])
        _checked(
            self._lib.fathom_linear(
                ctypes.addressof(self._matrix), self._gain, self._eps, x.data_ptr(), x.shape[0], out.data_ptr(),
                torch.get_num_threads(),
            )
        )  # fmt: skip
        return out


class CpuNorm:
    """RMSNorm in FP32."""

    def __init__(self, gain: Tensor, eps: float) -> None:
        self._lib = _library()
        self._gain = gain.detach().float().contiguous()
        self._eps = eps

    def __call__(self, x_TN: Tensor) -> Tensor:
        """FP32 [T, N] -> FP32 [T, N]"""
        assert x_TN.dtype == torch.float32 and x_TN.shape[1:] == self._gain.shape, x_TN.shape
        x = x_TN.detach().contiguous()
        out = torch.empty_like(x)
        self._lib.fathom_norm(self._gain.data_ptr(), self._eps, x.data_ptr(), *x.shape, out.data_ptr())
        return out


def write_latents(x_TD: Tensor, weights: BlockWeights, batch: StepBatch, cache: PagedLatents) -> None:
    """CpuBlock.write_latents without keeping the block: for a single use."""
    CpuBlock(weights).write_latents(x_TD, batch, cache)


def linear(x_TN: Tensor, matrix: Matrix, norm: tuple[Tensor, float] | None = None) -> Tensor:
    """CpuLinear without keeping it: for a single use."""
    gain, eps = norm if norm is not None else (None, 0.0)
    return CpuLinear(matrix, gain, eps)(x_TN)
