"""The structures of the C interface (linear.h, work.h), field by field, and how tensors become them."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fathom.kernels.reference import FP8
from fathom.kernels.step import AttentionWeights, BlockWeights, FeedForwardWeights, Matrix, PagedLatents, StepBatch
from fathom.runtime import UserError

KINDS = {torch.float32: 0, torch.bfloat16: 1, FP8: 2}
GROUP = 64  # columns: FP8 blocks in multiples of it are read as they are, whatever the width of the vectors


class CMatrix(ctypes.Structure):
    """linear.h, Matrix."""

    _fields_ = (("data", c_void_p), ("scale", c_void_p), ("rows", c_int64), ("cols", c_int64), ("kind", c_int32),
                ("block_rows", c_int32), ("block_cols", c_int32), ("unused", c_int32))  # fmt: skip


class CBlock(ctypes.Structure):
    """work.h, Block."""

    _fields_ = (
        *((name, c_int64) for name in ("hidden", "heads", "nope", "rope", "value", "latent")),
        *((name, CMatrix) for name in ("q_a", "q_b", "kv_a", "kv_b", "o")),
        *((name, c_void_p) for name in ("input_norm", "post_norm", "q_a_norm", "kv_a_norm")),
        *((name, c_void_p) for name in ("q_a_bias", "kv_a_bias", "o_bias")),
        *((name, CMatrix) for name in ("gate", "up", "down", "router", "gate_up", "expert_down")),
        ("router_bias", c_void_p),
        *((name, c_int64) for name in ("experts", "top_k", "groups", "kept_groups")),
        *((name, c_int32) for name in ("sigmoid", "normalise")),
        *((name, c_float) for name in ("route_scale", "scale", "norm_eps", "latent_eps")),
    )


class CPool(ctypes.Structure):
    """work.h, Pool."""

    _fields_ = (("latent", c_void_p), ("k_rope", c_void_p), ("scale", c_void_p), ("pages", c_int64),
                ("page_size", c_int64), ("latent_kind", c_int32), ("rope_kind", c_int32))  # fmt: skip


class CStep(ctypes.Structure):
    """work.h, Step."""

    _fields_ = (
        *((name, c_int64) for name in ("tokens", "sequences", "pages_per_sequence", "first_key")),
        *((name, c_void_p) for name in ("rows", "slots", "last_key", "page_table", "cos", "sin")),
    )


class Holder:
    """Makes structures and keeps the tensors they point into alive."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def pointer(self, x: Tensor | None) -> int | None:
        """Address of a tensor that is kept; null for none."""
        if x is None:
            return None
        self.tensors.append(x)
        return x.data_ptr()

    def vector(self, x: Tensor | None) -> int | None:
        """A gain or bias, as FP32."""
        return None if x is None else self.pointer(x.detach().to(torch.float32).contiguous())

    def matrix(self, m: Matrix | None) -> CMatrix:
        """A matrix as it is stored. FP8 blocks that would end within a group of columns (no release has such) are
        expanded to FP32."""
        if m is None:
            return CMatrix()
        data, scale, (block_rows, block_cols) = m.data.detach(), m.scale, m.block
        if data.dtype == FP8 and scale is None:
            raise UserError("an FP8 matrix came without its scales; give scale_inv with it")
        if data.dtype == FP8 and block_cols % GROUP and block_cols < data.shape[-1]:
            data, scale = m.dense(torch.float32), None
        if data.dtype not in KINDS or (scale is not None and data.dtype != FP8):
            raise UserError(
                f"a matrix of {data.dtype} is not known; use float32, bfloat16 or float8_e4m3fn with scales"
            )
        if data.device.type != "cpu" or not data.is_contiguous():
            raise UserError("the C++ step reads contiguous CPU tensors; move the weights to the CPU")
        if scale is not None:
            blocks = (-(-data.shape[-2] // block_rows), -(-data.shape[-1] // block_cols))
            if tuple(scale.shape) != (*data.shape[:-2], *blocks):
                raise UserError(f"scales of shape {tuple(scale.shape)} do not fit a matrix {tuple(data.shape)}")
        return CMatrix(self.pointer(data), self.vector(scale), data.shape[-2], data.shape[-1], KINDS[data.dtype],
                       block_rows, block_cols, 0)  # fmt: skip


def make_block(w: BlockWeights, hold: Holder) -> CBlock:
    """One block."""
    block = CBlock()
    block.hidden = w.input_norm.shape[0]
    block.norm_eps = w.norm_eps
    block.input_norm, block.post_norm = hold.vector(w.input_norm), hold.vector(w.post_norm)
    _attention(block, w.attention, hold)
    if w.dense is not None and w.router is not None:
        raise UserError("a block is dense or a mixture of experts, not both")
    _feed_forward(block, w.dense or w.shared, hold)
    if w.router is not None:
        r = w.router
        block.router = hold.matrix(Matrix(r.weight.detach().to(torch.float32).contiguous()))
        block.router_bias = hold.vector(r.bias)
        block.gate_up, block.expert_down = hold.matrix(w.gate_up), hold.matrix(w.down)
        block.experts, block.top_k, block.groups, block.kept_groups = (
            r.weight.shape[0],
            r.top_k,
            r.groups,
            r.kept_groups,
        )
        width = block.expert_down.cols
        _fits("router", block.router, block.experts, block.hidden)
        _fits("gate_up", block.gate_up, 2 * width, block.hidden)
        _fits("expert down", block.expert_down, block.hidden, width)
        for stack in (w.gate_up, w.down):
            if stack is None or stack.data.shape[0] != block.experts:
                raise UserError(f"expert matrices do not hold {block.experts} experts; stack all of them")
        block.sigmoid, block.normalise, block.route_scale = r.sigmoid, r.normalise, r.route_scale
        if not 0 < r.top_k <= block.experts or not 0 < r.kept_groups <= r.groups <= 256 or block.experts % r.groups:
            raise UserError(f"{r.top_k} of {block.experts} experts, {r.kept_groups} of {r.groups} groups: not possible")
    return block


def _attention(block: CBlock, a: AttentionWeights, hold: Holder) -> None:
    block.heads, block.nope, block.rope, block.value, block.latent = a.heads, a.nope, a.rope, a.value, a.latent
    block.scale, block.latent_eps = a.scale, a.norm_eps
    block.q_a, block.q_b, block.kv_a = hold.matrix(a.q_a), hold.matrix(a.q_b), hold.matrix(a.kv_a)
    block.kv_b, block.o = hold.matrix(a.kv_b), hold.matrix(a.o)
    block.q_a_norm, block.kv_a_norm = hold.vector(a.q_a_norm), hold.vector(a.kv_a_norm)
    block.q_a_bias, block.kv_a_bias = hold.vector(a.q_a_bias), hold.vector(a.kv_a_bias)
    block.o_bias = hold.vector(a.o_bias)
    q_in = block.q_a.rows if a.q_a is not None else block.hidden
    _fits("q_b", block.q_b, a.heads * (a.nope + a.rope), q_in)
    _fits("kv_a", block.kv_a, a.latent + a.rope, block.hidden)
    _fits("kv_b", block.kv_b, a.heads * (a.nope + a.value), a.latent)
    _fits("o", block.o, block.hidden, a.heads * a.value)
    if a.q_a is not None:
        _fits("q_a", block.q_a, q_in, block.hidden)


def _fits(name: str, m: CMatrix, rows: int, cols: int) -> None:
    """The C++ side trusts shapes, so they are checked here."""
    if (m.rows, m.cols) != (rows, cols):
        raise UserError(f"{name} is {m.rows} x {m.cols}, the block needs {rows} x {cols}; check the weights")


def _feed_forward(block: CBlock, f: FeedForwardWeights | None, hold: Holder) -> None:
    if f is not None:
        block.gate, block.up, block.down = hold.matrix(f.gate), hold.matrix(f.up), hold.matrix(f.down)
        for name, m in (("gate", block.gate), ("up", block.up)):
            _fits(name, m, block.down.cols, block.hidden)
        _fits("down", block.down, block.hidden, block.down.cols)


def make_pool(cache: PagedLatents, hold: Holder) -> CPool:
    """One layer's pool."""
    latent, k_rope = cache.latent, cache.k_rope
    if latent.dtype not in KINDS or k_rope.dtype not in (torch.float32, torch.bfloat16):
        raise UserError(f"a cache of {latent.dtype} with keys of {k_rope.dtype} is not known to the C++ step")
    if (latent.dtype == FP8) != (cache.scale is not None):
        raise UserError("a cache has scales exactly when its latents are FP8")
    for x in (latent, k_rope, cache.scale):
        if x is not None and (x.device.type != "cpu" or not x.is_contiguous()):
            raise UserError("the C++ step works on contiguous CPU tensors; allocate the cache on the CPU")
    return CPool(hold.pointer(latent), hold.pointer(k_rope), hold.pointer(cache.scale), latent.shape[0],
                 latent.shape[1], KINDS[latent.dtype], KINDS[k_rope.dtype])  # fmt: skip


def make_step(batch: StepBatch) -> CStep:
    """The batch; the caller keeps its tensors alive during the call."""
    kinds = (torch.int32, torch.int64, torch.int32, torch.int32, torch.float32, torch.float32)
    tensors = (batch.rows, batch.slots, batch.last_key, batch.page_table, batch.cos, batch.sin)
    for x, kind in zip(tensors, kinds, strict=True):
        assert x.dtype == kind and x.is_contiguous(), (x.dtype, kind)
    sequences, pages = batch.page_table.shape
    return CStep(batch.rows.shape[0], sequences, pages, batch.first_key, *(x.data_ptr() for x in tensors))
