"""Which weights Muon trains, and where their matrices lie in a flat buffer (kernels/muon.py has the rule).

    Muon     every matrix inside the blocks: attention's projections, feed-forward networks, experts, MTP's eh_proj
    AdamW    embedding, head, router, norms, biases

A stack of experts [E, r, c] is E matrices. The rows of `gate_up` [E, 2I, D] are two matrices per expert, gate and up:
they multiply the same input but are no one map, and a dense layer has them as two weights as well. Attention's
up-projections are one matrix each, all heads together, as Moonlight has them.

A bucket of ZeRO-1 holds its matrices in order of their shape, so that those of one shape are a batch without a copy:

    bucket   | 128 x 256: q_a_proj, experts.gate_up, ... | 256 x 128: experts.down, ... | ...
    slices   |        rank 0        |        rank 1        |        rank 2        |

Slices end anywhere, also inside a matrix. The moment is elementwise; then directions are gathered (FP32), and each rank
makes those matrices orthogonal of which it owns a part (Moonlight, section 2.3: one more all-gather, and twice the work
for matrices on a border).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.kernels.muon import CHUNK, Muon

OTHERS = ("embed_tokens.weight", "lm_head.weight", ".gate.weight")  # two axes, but no hidden matrices
Shape = tuple[int, int]


def matrix_shape(name: str, shape: Sequence[int]) -> Shape | None:
    """(rows, columns) of the matrices of a parameter of the model; None: it is not Muon's."""
    if len(shape) < 2 or name.endswith(OTHERS):
        return None
    rows, columns = shape[-2:]
    return (rows // 2 if name.endswith("experts.gate_up") else rows), columns


@dataclass(frozen=True)
class Run:
    """Matrices of one shape that follow each other from element `start` of a flat buffer on."""

    shape: Shape
    start: int
    count: int

    @property
    def size(self) -> int:
        """Elements of a matrix."""
        return self.shape[0] * self.shape[1]

    def within(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The matrices that elements first .. last of the buffer touch: ranges [i, j), in batches of bounded size."""
        low = max(first - self.start, 0) // self.size
        high = min(-(-max(last - self.start, 0) // self.size), self.count)
        step = max(CHUNK // self.size, 1)
        for i in range(low, high, step):
            yield i, min(i + step, high)


def runs(spans: Mapping[str, tuple[int, int]], shapes: Mapping[str, Shape]) -> list[Run]:
    """spans: name -> (first element, elements), in order and without gaps between equal shapes."""
    out: list[Run] = []
    for name, (start, elements) in spans.items():
        shape = shapes[name]
        count = elements // (shape[0] * shape[1])
        if out and out[-1].shape == shape:
            assert out[-1].start + out[-1].count * out[-1].size == start
            out[-1] = Run(shape, out[-1].start, out[-1].count + count)
        else:
            out.append(Run(shape, start, count))
    return out


@torch.no_grad()
def update(muon: Muon, weight: Tensor, start: int, directions: Tensor, matrices: Sequence[Run], lr: float) -> None:
    """Muon's step on `weight`, elements start .. start + n of a flat buffer whose `directions` are whole."""
    last = start + weight.numel()
    for run in matrices:
        for i, j in run.within(start, last):
            first, end = run.start + i * run.size, run.start + j * run.size
            change = muon.change(directions[first:end].view(j - i, *run.shape)).reshape(-1)
            low, high = max(first, start), min(end, last)
            muon.apply(weight[low - start : high - start], change[low - first : high - first], lr)


def scale_rows(weight: Tensor, start: int, columns: int, factors: Tensor) -> None:
    """Multiply rows of a matrix by their factors: `weight`, flat, is its elements start .. start + n."""
    factor = factors.repeat_interleave(columns)[start : start + weight.numel()]
    weight.mul_(factor.to(weight))
