"""The training kernels one by one, against PyTorch's and against their floor on this machine.

    python benchmarks/kernels.py [--tokens 4096] [--repeats 9] [--only WORD]

Floors: FLOPs at the FP32 matmul peak, bytes at the bandwidth of a copy, both measured in the same run; the larger one
counts. Contenders of a row take turns, figures are medians of wall time; the last line is one JSON document. C++ and
PyTorch compute the same function (tests/kernels), FP8 has no rival on a CPU and is shown beside the FP32 product.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels import reference
from fathom.kernels.attention import attention
from fathom.kernels.cpu import train as cpp
from fathom.kernels.pointwise import plain_rotate, rms_norm, rotate
from fathom.kernels.torch_ops import linear_cross_entropy
from fathom.kernels.train_ops import combine, swiglu, swiglu_backward
from fathom.runtime import keep_freed_memory
from fathom.train.watch import matmul_peak


@dataclass(frozen=True)
class Row:
    """One operation: what it must do, and who does it."""

    name: str
    flops: float
    bytes: float
    contenders: dict[str, Callable[[], object]]


def forward_backward(f: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
    """f with gradients of all inputs; the upstream gradient is the result itself."""
    leaves = [x.detach().requires_grad_() for x in inputs]

    def run() -> object:
        y = f(*leaves)
        return torch.autograd.grad(y, leaves, y.detach())

    return run


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, 1e-6)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def rows(tokens: int) -> Iterator[Row]:
    """At V3-like tile shapes (products) and minnow's (the rest)."""
    n, k = 1024, 1024
    x, w, dy = torch.randn(tokens, k), torch.randn(n, k), torch.randn(tokens, n)
    tx, tdy, bw = cpp.quantise_tiles(x), cpp.quantise_tiles(dy), cpp.quantise_blocks(w)
    cx, cdy, grad = cpp.quantise_columns(x), cpp.quantise_columns(dy), torch.zeros(n, k)
    flops = 2.0 * tokens * n * k
    yield Row("product, forward", flops, 0, {"fp8 c++": lambda: cpp.fprop(tx, bw), "fp32 mkl": lambda: x @ w.T})
    yield Row("product, input gradient", flops, 0, {"fp8 c++": lambda: cpp.dgrad(tdy, bw), "fp32 mkl": lambda: dy @ w})
    yield Row(
        "product, weight gradient", flops, 0,
        {"fp8 c++": lambda: cpp.wgrad(cdy, cx, grad), "fp32 mkl": lambda: grad.addmm_(dy.T, x)},
    )  # fmt: skip
    values = 5.0 * x.numel()  # four bytes read, one written
    yield Row("quantise to tiles", 0, values, {"c++": lambda: cpp.quantise_tiles(x)})
    yield Row("quantise to columns", 0, values, {"c++": lambda: cpp.quantise_columns(x)})
    yield Row("tiles to columns", 0, 2.0 * x.numel(), {"c++": lambda: cpp.retile(tx)})

    heads, width, length = 4, 64, min(512, tokens)
    q, key, v = (torch.randn(tokens // length, heads, length, width) for _ in range(3))
    causal = 7.0 * tokens * heads * length * width  # two products forward, five backward, half of the square each
    yield Row("attention, forward and backward", causal, 0, {
        "c++": forward_backward(lambda a, b, c: attention(a, b, c, None, width**-0.5), q, key, v),
        "torch sdpa": forward_backward(sdpa, q, key, v),
    })  # fmt: skip

    d, vocab = 256, 8192
    h, head, labels = torch.randn(tokens, d), torch.randn(vocab, d) * 0.02, torch.randint(vocab, (tokens,))
    yield Row("head and loss, forward and backward", 6.0 * tokens * d * vocab, 0, {
        "chunks, c++": forward_backward(lambda a, b: linear_cross_entropy(a, b, labels), h, head),
        "torch": forward_backward(lambda a, b: reference.linear_cross_entropy(a, b, labels), h, head),
    })  # fmt: skip

    gain = torch.ones(d)
    yield Row("RMSNorm, forward and backward", 0, 20.0 * h.numel(), {
        "c++": forward_backward(lambda a, b: rms_norm(a, b, 1e-6), h, gain),
        "torch": forward_backward(plain_norm, h, gain),
    })  # fmt: skip
    qr, angle = torch.randn(tokens // length, length, heads, 32), torch.randn(length, 16)
    cos, sin = angle.cos(), angle.sin()
    yield Row("rotary embedding, forward and backward", 0, 16.0 * qr.numel(), {
        "c++": forward_backward(lambda a: rotate(a, cos, sin), qr),
        "torch": forward_backward(lambda a: plain_rotate(a, cos, sin), qr),
    })  # fmt: skip

    top_k, wide = 4, 128
    pairs = tokens * top_k
    hidden, da, weight = torch.randn(pairs, 2 * wide), torch.randn(pairs, wide), torch.rand(pairs)
    yield Row(
        "SwiGLU of experts",
        0,
        12.0 * pairs * wide,
        {"c++": lambda: cpp.swiglu(hidden), "torch": lambda: swiglu(hidden)},
    )
    yield Row("SwiGLU of experts, backward", 0, 24.0 * pairs * wide, {
        "c++": lambda: cpp.swiglu_backward(hidden, da, weight), "torch": lambda: swiglu_backward(hidden, da, weight),
    })  # fmt: skip
    y, place, weights = torch.randn(pairs, d), torch.randperm(pairs).view(tokens, top_k), torch.rand(tokens, top_k)
    token = torch.arange(tokens).repeat_interleave(top_k)[torch.randperm(pairs)]
    yield Row("tokens to experts (rows by index)", 0, 4.0 * d * (tokens + pairs), {
        "c++": lambda: cpp.take(h, token), "torch": lambda: h[token],
    })  # fmt: skip
    yield Row("sum of a token's experts", 0, 4.0 * d * (tokens + pairs), {
        "c++": lambda: cpp.combine(y, place, weights), "torch": lambda: combine(y, place, weights),
    })  # fmt: skip


def bandwidth() -> float:
    """Bytes per second of a copy that no cache holds, read and written."""
    source, to = torch.ones(64 << 20), torch.empty(64 << 20)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        to.copy_(source)
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(seconds)


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", default="", metavar="WORD", help="rows whose name has it")
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    peak, rate = matmul_peak(torch.device("cpu"), torch.float32), bandwidth()
    print(f"{torch.get_num_threads()} threads; FP32 matmul {peak / 1e9:.0f} GFLOP/s, copy {rate / 1e9:.1f} GB/s")
    print(f"{'':<40} {'floor ms':>9}")
    found: dict[str, dict[str, float]] = {}
    for row in rows(args.tokens):
        if args.only not in row.name:
            continue
        seconds: dict[str, list[float]] = {name: [] for name in row.contenders}
        for turn in range(args.repeats + 1):  # the first one warms up
            for name, run in row.contenders.items():
                started = time.perf_counter()
                run()
                if turn:
                    seconds[name].append(time.perf_counter() - started)
        floor = max(row.flops / peak, row.bytes / rate)
        found[row.name] = {"floor": floor} | {name: median(s) for name, s in seconds.items()}
        cells = "".join(f"   {name} {1e3 * median(s):.2f} ms ({median(s) / floor:.1f}x)" for name, s in seconds.items())
        print(f"{row.name:<40} {1e3 * floor:9.2f}{cells}")
    print(json.dumps({"matmul_flops": peak, "copy_bytes": rate, "tokens": args.tokens, "seconds": found}))


if __name__ == "__main__":
    main()
