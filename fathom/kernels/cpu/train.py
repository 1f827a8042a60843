"""FP8 training kernels on the CPU: kernels/fp8.py's operations, bit for bit, in C++ (fp8_quantise.h, fp8_gemm.h).

Every function takes and returns what its namesake there does. Products run at the speed of FP32 matmuls: E4M3 values
are decoded once into FP32 panels, and the promotion of every 128 costs a thirtieth of the arithmetic.

Shapes: T tokens, N outputs, K inputs, E experts.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from fathom.kernels import fp8
from fathom.kernels.cpu import build
from fathom.kernels.fp8 import TILE, Blocks, Columns, Tiles, ceil_tiles, check_scale
from fathom.kernels.reference import FP8
from fathom.runtime import UserError

_P, _I = c_void_p, c_int64
_SIGNATURES = {
    "quantise_tiles": (_P, _I, _I, c_int, _P, _P),
    "quantise_columns": (_P, _I, _P, _I, c_int, _P, _P),
    "retile": (_P, _P, _I, _P, _I, c_int, _P, _P),
    "quantise_blocks": (_P, _I, _I, _I, c_int, _P, _P),
    "fprop": (_P, _P, _P, _P, _P, _I, _I, _I, _P),
    "dgrad": (_P, _P, _P, _P, _P, _I, _I, _I, _P),
    "wgrad": (_P, _P, _P, _P, _P, _I, _I, _I, _P),
    "round_bf16": (_P, _I, _P),
    "round_e5m6": (_P, _I, _I, _P),
    "swiglu": (_P, _I, _I, _P),
    "swiglu_backward": (_P, _P, _P, _I, _I, _P, _P, _P),
    "combine": (_P, _P, _P, _I, _I, _I, _P),
    "exp_rows": (_P, _I, _I, _P, _P),
    "attention_forward": (_P,),
    "attention_backward": (_P,),
    "rms_norm": (_P, _I, _P, _I, _I, c_float, _P, _P),
    "rms_norm_backward": (_P, _P, _I, _P, _P, _I, _I, _P, _P),
    "rotate": (_P, _P, _P, _P, _P, c_int, c_float, _P),
    "take_rows": (_P, _I, _P, _I, _P),
    "adamw": (_P, _P, _P, _P, _I, c_int, _P),
}


@cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none. Looked for once per process."""
    try:
        lib = ctypes.CDLL(str(build.library("train")))
    except (build.BuildError, OSError) as error:
        return str(error)
    for name, arguments in _SIGNATURES.items():
        function = getattr(lib, f"fathom_{name}")
        function.argtypes, function.restype = arguments, c_int
    return lib


def available() -> str | None:
    """None when the kernels can be used; else why not, in one line. The first call may compile (seconds)."""
    lib = _load()
    return lib if isinstance(lib, str) else None


def _call(name: str, *arguments: Tensor | float | None) -> None:
    lib = _load()
    if isinstance(lib, str):
        raise UserError(f"the C++ training kernels are not available: {lib}")
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    if getattr(lib, f"fathom_{name}")(*values) != 0:
        raise MemoryError(f"no memory for the working space of {name}")


def _power(scale: str) -> int:
    return int(check_scale(scale) is not None)


def _dense(x: Tensor) -> Tensor:
    return x.detach().to(torch.float32).contiguous()


def _spans(tokens: int, ends: Tensor | None) -> Tensor:
    """[spans, 2] int64: first token and one past the last of every column tile."""
    return torch.tensor(fp8.token_tiles(tokens, ends), dtype=torch.int64).reshape(-1, 2)


def _ends(tokens: int, ends: Tensor | None) -> Tensor:
    return torch.tensor([tokens]) if ends is None else ends.to(torch.int64).contiguous()


def quantise_tiles(x: Tensor, scale: str = "fp32") -> Tiles:
    """[..., n] in tiles 1x128."""
    x = _dense(x)
    n = x.shape[-1]
    out = Tiles(torch.empty(x.shape, dtype=FP8), torch.empty(*x.shape[:-1], ceil_tiles(n)))
    _call("quantise_tiles", x, x.numel() // max(n, 1), n, _power(scale), out.values, out.scale)
    return out


def quantise_columns(x: Tensor, scale: str = "fp32", ends: Tensor | None = None) -> Columns:
    """[T, n] in tiles 128x1."""
    x, spans = _dense(x), _spans(x.shape[0], ends)
    out = Columns(torch.empty(x.shape, dtype=FP8), torch.empty(len(spans), x.shape[1]))
    _call("quantise_columns", x, x.shape[1], spans, len(spans), _power(scale), out.values, out.scale)
    return out


def retile(tiles: Tiles, scale: str = "fp32", ends: Tensor | None = None) -> Columns:
    """[T, n] from tiles 1x128 to tiles 128x1."""
    tokens, n = tiles.values.shape
    spans = _spans(tokens, ends)
    out = Columns(torch.empty_like(tiles.values), torch.empty(len(spans), n))
    _call("retile", tiles.values, tiles.scale, n, spans, len(spans), _power(scale), out.values, out.scale)
    return out


def quantise_blocks(w: Tensor, scale: str = "fp32") -> Blocks:
    """[N, K] or [E, N, K] in blocks 128x128."""
    w = _dense(w)
    rows, n = w.shape[-2:]
    shape = (*w.shape[:-2], ceil_tiles(rows), ceil_tiles(n))
    out = Blocks(torch.empty(w.shape, dtype=FP8), torch.empty(shape))
    _call("quantise_blocks", w, w.numel() // max(rows * n, 1), rows, n, _power(scale), out.values, out.scale)
    return out


def quantise_block_tiles(x: Tensor, scale: str = "fp32", ends: Tensor | None = None) -> Tiles:
    """The ablation of appendix B.2: [T, n] in blocks of 128 tokens, their scale repeated."""
    tokens, n = x.shape
    out = Tiles(torch.empty(x.shape, dtype=FP8), torch.empty(tokens, ceil_tiles(n)))
    for start, stop in fp8.segments(tokens, ends):
        if stop > start:
            part = quantise_blocks(x[start:stop], scale)
            out.values[start:stop] = part.values
            out.scale[start:stop] = part.scale.repeat_interleave(TILE, 0)[: stop - start]
    return out


def fprop(x: Tiles, w: Blocks) -> Tensor:
    """[T, K] . [N, K]^T -> FP32 [T, N]."""
    return _forward("fprop", x, w, None, w.values.shape[0])


def dgrad(dy: Tiles, w: Blocks) -> Tensor:
    """[T, N] . [N, K] -> FP32 [T, K]."""
    return _forward("dgrad", dy, w, None, w.values.shape[1])


def wgrad(dy: Columns, x: Columns, grad: Tensor) -> None:
    """grad FP32 [N, K] += [T, N]^T . [T, K]."""
    grouped_wgrad(dy, x, None, grad[None])


def grouped_fprop(x: Tiles, w: Blocks, ends: Tensor) -> Tensor:
    """Tokens [T, K] sorted by expert, w [E, N, K] -> FP32 [T, N]."""
    return _forward("fprop", x, w, ends, w.values.shape[1])


def grouped_dgrad(dy: Tiles, w: Blocks, ends: Tensor) -> Tensor:
    """Tokens [T, N] sorted by expert, w [E, N, K] -> FP32 [T, K]."""
    return _forward("dgrad", dy, w, ends, w.values.shape[2])


def grouped_wgrad(dy: Columns, x: Columns, ends: Tensor | None, grad: Tensor) -> None:
    """grad FP32 [E, N, K]: each expert's += its own tokens'."""
    assert grad.is_contiguous() and grad.dtype == torch.float32, "gradients accumulate in contiguous FP32"
    experts, n, k = grad.shape
    tokens = dy.values.shape[0]
    _call("wgrad", dy.values, dy.scale, x.values, x.scale, _ends(tokens, ends), experts, n, k, grad)


def _forward(name: str, x: Tiles, w: Blocks, ends: Tensor | None, columns: int) -> Tensor:
    tokens = x.values.shape[0]
    n, k = w.values.shape[-2:]
    y = torch.empty(tokens, columns)
    experts = 1 if ends is None else w.values.shape[0]
    _call(name, x.values, x.scale, w.values, w.scale, _ends(tokens, ends), experts, n, k, y)
    return y


# ---- rows: see train_ops.py


def round_bf16(x: Tensor) -> Tensor:
    """FP32 values rounded to BF16's 8 significant bits."""
    x = _dense(x)
    y = torch.empty_like(x)
    _call("round_bf16", x, x.numel(), y)
    return y


def round_e5m6(x: Tensor) -> Tensor:
    """[..., n] as the cache of o_proj's input keeps it."""
    x = _dense(x)
    y = torch.empty_like(x)
    _call("round_e5m6", x, x.numel() // max(x.shape[-1], 1), x.shape[-1], y)
    return y


def swiglu(h: Tensor) -> Tensor:
    """[R, 2I] -> [R, I]."""
    h = _dense(h)
    a = torch.empty(h.shape[0], h.shape[1] // 2)
    _call("swiglu", h, h.shape[0], a.shape[1], a)
    return a


def swiglu_backward(h: Tensor, da: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """dh [R, 2I], a [R, I], dw [R]."""
    h, da = _dense(h), _dense(da)
    weight = None if weight is None else _dense(weight)
    dh, a = torch.empty_like(h), torch.empty_like(da)
    dw = None if weight is None else torch.empty_like(weight)
    _call("swiglu_backward", h, da, weight, h.shape[0], da.shape[1], dh, a, dw)
    return dh, a, dw


def combine(y: Tensor, place: Tensor, weight: Tensor | None) -> Tensor:
    """[R, D] -> [T, D]."""
    y, place = _dense(y), place.contiguous()
    weight = None if weight is None else _dense(weight)
    out = torch.empty(place.shape[0], y.shape[1])
    _call("combine", y, place, weight, place.shape[0], place.shape[1], y.shape[1], out)
    return out


def take(x: Tensor, rows: Tensor) -> Tensor:
    """[T, ...], int64 [R] -> [R, ...]."""
    x, rows = x.detach().contiguous(), rows.contiguous()
    out = x.new_empty(rows.numel(), *x.shape[1:])
    _call("take_rows", x, x[0].numel() * x.itemsize, rows, rows.numel(), out)
    return out


def exp_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """FP32 logits [R, n] become e^(x - largest of the row) in place; returns (largest, sum) [R]."""
    assert x.is_contiguous() and x.dtype == torch.float32
    top, total = torch.empty(x.shape[0]), torch.empty(x.shape[0])
    _call("exp_rows", x, x.shape[0], x.shape[1], top, total)
    return top, total


def adamw(weight: Tensor, grad: Tensor, m: Tensor, v: Tensor, constants: list[float]) -> None:
    """One step in place over flat tensors; constants as train.cpp lists them."""
    half = {torch.float32: 0, torch.bfloat16: 1}[m.dtype]
    _call("adamw", weight, grad, m, v, weight.numel(), half, torch.tensor(constants, dtype=torch.float32))


# ---- norms and positions: see pointwise.py


def _strided(x: Tensor) -> tuple[Tensor, int]:
    """x [..., n] as rows [R, n] and their stride, copied only where one stride does not describe them."""
    rows = x.detach().reshape(-1, x.shape[-1])
    return (rows, rows.stride(0)) if rows.stride(1) == 1 else (rows.contiguous(), rows.shape[1])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """FP32 [..., n] -> normed [..., n] and 1 / sqrt(mean(x^2) + eps) of each row."""
    rows, stride = _strided(x)
    y, inverse = torch.empty(x.shape), torch.empty(rows.shape[0])
    _call("rms_norm", rows, stride, _dense(weight), *rows.shape, eps, y, inverse)
    return y, inverse


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    rows, stride = _strided(x)
    dx, dw = torch.empty(x.shape), torch.empty(weight.shape)
    _call("rms_norm_backward", _dense(dy), rows, stride, _dense(weight), inverse, *rows.shape, dx, dw)
    return dx, dw


def rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """FP32 x [B, T, H, R], cos and sin [T, R/2] or [B or 1, T, R/2] -> [B, T, H, R]; sign -1 turns back."""
    x, cos, sin = _rows(x.detach()), _dense(cos), _dense(sin)
    y = torch.empty(x.shape)
    shape, strides = torch.tensor(x.shape), torch.tensor(x.stride()[:3])
    _call("rotate", x, shape, strides, cos, sin, int(cos.numel() == x.shape[1] * cos.shape[-1]), sign, y)
    return y


# ---- attention: see train_attention.h


class _Heads(ctypes.Structure):
    _fields_ = (("data", _P), ("b", _I), ("h", _I), ("t", _I))

    @classmethod
    def of(cls, x: Tensor) -> _Heads:
        """x [B, H, T, width], its last axis contiguous."""
        return cls(x.data_ptr(), x.stride(0), x.stride(1), x.stride(2))


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, _Heads) for name in ("q", "k", "v", "o", "d_o", "d_q", "d_k", "d_v")),
        ("lse", _P), ("top", _P), *((name, _I) for name in ("sequences", "heads", "tokens", "width", "value_width")),
        ("scale", c_float),
    )  # fmt: skip


COLUMNS = 32  # widths that are multiples of it fit panels of every kind of vector


def attention_takes(q: Tensor, v: Tensor) -> bool:
    """Whether the C++ kernel does these: FP32 on a CPU, widths in multiples of 32."""
    plain = q.device.type == "cpu" and q.dtype == v.dtype == torch.float32
    return plain and q.shape[-1] % COLUMNS == 0 and v.shape[-1] % COLUMNS == 0 and available() is None


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _describe(q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float) -> _Attention:
    batch, heads, tokens, width = q.shape
    return _Attention(
        q=_Heads.of(q), k=_Heads.of(k), v=_Heads.of(v), o=_Heads.of(o), lse=lse.data_ptr(), sequences=batch,
        heads=heads, tokens=tokens, width=width, value_width=v.shape[-1], scale=scale,
    )  # fmt: skip


def attention_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention of [B, H, T, d], [B, H, T, d], [B, H, T, e] -> [B, H, T, e] (a view of [B, T, H, e]), lse, and
    the largest logit of every sequence and head, [B, H].
    """
    q, k, v = _rows(q), _rows(k), _rows(v)
    batch, heads, tokens, _ = q.shape
    o, lse = torch.empty(batch, tokens, heads, v.shape[-1]).transpose(1, 2), torch.empty(batch, heads, tokens)
    what, top = _describe(q, k, v, o, lse, scale), torch.empty(batch, heads)
    what.top = top.data_ptr()
    _call("attention_forward", ctypes.addressof(what))
    return o, lse, top


def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v for the gradient of o."""
    grad, q, k, v = _rows(grad), _rows(q), _rows(k), _rows(v)
    batch, heads, tokens, width = q.shape
    d_q, d_k = (torch.empty(batch, tokens, heads, width).transpose(1, 2) for _ in range(2))
    d_v = torch.empty(batch, tokens, heads, v.shape[-1]).transpose(1, 2)
    what = _describe(q, k, v, o, lse, scale)
    what.d_o, what.d_q, what.d_k, what.d_v = _Heads.of(grad), _Heads.of(d_q), _Heads.of(d_k), _Heads.of(d_v)
    _call("attention_backward", ctypes.addressof(what))
    return d_q, d_k, d_v
