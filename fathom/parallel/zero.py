"""ZeRO-1 (report section 3.2): optimizer state is spread over the ranks that hold the same weights.

    reduce   gradients summed over those ranks; each keeps its slice of the sum      (reduce-scatter, FP32)
    step     AdamW or Muon on the own slice: 1/N of the moments, 1/N of the work
    gather   the new weights of all slices to everybody                              (all-gather, FP32)

Parameters and gradients live in flat FP32 buffers, one bucket per (who holds the same weights, whose rule, decayed or
not); what a layer sees as `weight` and `weight.grad` are views into them. Rank r of N owns elements
[r n/N, (r+1) n/N) of every bucket, whatever tensor they belong to:

    bucket   | embed_tokens.weight | q_a_proj.weight | ... | padding |        n = a multiple of N * 16
    slices   |     rank 0     |     rank 1     |     rank 2     | ...

Routed experts are held by mesh.expert_data, everything else by mesh.data: two kinds of buckets. AdamW is elementwise:
of the same gradients N ranks make the same bits as one process does. Muon needs whole matrices (matrices.py). In a
group of one rank nothing is sent, and nothing copied but once, into the buffers.

Gradients are SUMMED, never averaged: the loss is normalised by the tokens of the whole step. The average of weights
(EMA, section 3.2.3) is kept on the slice, on the weights' device; the report keeps it in CPU memory.

A tensor that two pipeline stages hold (the embedding, for MTP) has a bucket of its own: so both stages add up in the
same order, and their copies stay the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fathom.kernels.adamw import AdamW
from fathom.kernels.muon import Muon
from fathom.parallel.group import Group
from fathom.parallel.matrices import Run, Shape, matrix_shape, runs, scale_rows, update
from fathom.parallel.mesh import Mesh
from fathom.parallel.piece import Piece

ALIGN = 16  # elements: slices start at whole cache lines
CHUNK = 2**20  # elements that AdamW sees at once: bounds its temporary memory
Shapes = dict[str, tuple[torch.Size, int]]


@dataclass
class Bucket:
    """One flat buffer of weights, one of gradients, and this rank's slice of the optimizer state."""

    group: Group
    decay: bool
    counted: bool  # in square_sum: another pipeline stage counts it otherwise
    spans: dict[str, tuple[int, nn.Parameter]]  # name -> first element in the buffer
    weights: Tensor
    gradients: Tensor
    m: Tensor
    v: Tensor | None  # AdamW's second moment
    matrices: list[Run]  # Muon's; none: AdamW trains the bucket
    ema: Tensor | None = None

    @property
    def start(self) -> int:
        """First element of the own slice."""
        return self.group.rank * (self.weights.numel() // self.group.size)

    def own(self, flat: Tensor) -> Tensor:
        """The own slice of one of the buffers."""
        return flat[self.start : self.start + flat.numel() // self.group.size]

    def attach(self) -> None:
        """Make every weight.grad a view again, should somebody have dropped it."""
        for start, parameter in self.spans.values():
            parameter.grad = self.gradients[start : start + parameter.numel()].view_as(parameter)

    def attached(self) -> bool:
        """Whether backward passes have written where `reduce` will look."""
        size = self.gradients.element_size()
        return all(
            p.grad is not None and p.grad.data_ptr() == self.gradients.data_ptr() + start * size
            for start, p in self.spans.values()
        )


class Zero1:
    """Gradients, optimizer and weights of one rank. `steps` counts the updates: save it, and set it after loading."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        mesh: Mesh,
        optim: AdamW,
        *,
        routed: Callable[[str], bool],
        shapes: Shapes | None = None,
        shared: Collection[str] = (),
        shared_elsewhere: Collection[str] = (),
        ema: float | None = None,
        muon: Muon | None = None,
    ) -> None:
        """The parameters' data and grad become views into flat buffers; they stay the same nn.Parameters.

        parameters        this rank's, by their names in the whole model, tied ones once; the same order on all ranks
        routed            whether a name is a tensor of routed experts: held by mesh.expert_data, others by mesh.data
        shapes            for tensors of which this rank holds a range: (shape of the whole, first element of the range)
        shared            tensors that two pipeline stages hold, named on both
        shared_elsewhere  those of them that the other stage counts and saves
        ema               decay of the average of weights: ema = d * ema + (1 - d) * w; None or 0: no average
        muon              trains the hidden matrices (matrices.py); None: AdamW trains everything
        """
        self.optim, self.muon, self.ema, self.steps = optim, muon, ema or None, 0
        self.shapes: Shapes = {name: (p.shape, 0) for name, p in parameters.items()} | (shapes or {})
        self.shared_elsewhere = frozenset(shared_elsewhere)
        shape_of = {n: matrix_shape(n, p.shape) for n, p in parameters.items()} if muon else {}
        sorted_out: dict[tuple[bool, bool, str, bool], dict[str, nn.Parameter]] = {}
        for name, parameter in parameters.items():
            assert parameter.requires_grad and parameter.dtype == torch.float32, f"{name} is no FP32 master weight"
            alone = name if name in shared or name in shared_elsewhere else ""
            kind = routed(name), parameter.dim() >= 2, alone, shape_of.get(name) is not None
            sorted_out.setdefault(kind, {})[name] = parameter
        self.buckets = []
        for (is_routed, decay, alone, _), members in sorted_out.items():
            shaped = {name: shape for name in members if (shape := shape_of.get(name)) is not None}
            self.buckets.append(self._fill(members, mesh.expert_data if is_routed else mesh.data, decay, alone, shaped))

    @torch.no_grad()
    def _fill(
        self, members: dict[str, nn.Parameter], group: Group, decay: bool, alone: str, shaped: dict[str, Shape]
    ) -> Bucket:
        """`shaped`: shapes of Muon's matrices, of all members or none."""
        spans, end = {}, 0
        members = {name: members[name] for name in sorted(shaped, key=shaped.__getitem__)} or members
        for name, parameter in members.items():
            spans[name] = (end, parameter)
            end += parameter.numel()
        unit = ALIGN * group.size
        device = next(iter(members.values())).device
        weights = torch.zeros(-(-end // unit) * unit, device=device)
        for start, parameter in spans.values():
            flat = weights[start : start + parameter.numel()]
            flat.copy_(parameter.reshape(-1))
            parameter.data = flat.view_as(parameter)
        shape = (1 if shaped else 2), weights.numel() // group.size
        dtype = self.muon.moment if self.muon and shaped else self.optim.moments
        m, *v = torch.zeros(shape, dtype=dtype, device=device)
        counted = alone not in self.shared_elsewhere
        matrices = runs({name: (start, p.numel()) for name, (start, p) in spans.items()}, shaped) if shaped else []
        gradients = torch.zeros_like(weights)
        bucket = Bucket(group, decay, counted, spans, weights, gradients, m, v[0] if v else None, matrices)
        bucket.ema = bucket.own(weights).clone() if self.ema else None
        bucket.attach()
        return bucket

    # ---- a step ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reduce(self) -> None:
        """Sum the gradients over ranks into the own slices; what is outside them means nothing afterwards."""
        for b in self.buckets:
            assert b.attached(), "a gradient was replaced after the buffers were made; call zero_grad of this object"
            if b.group.size > 1:
                b.own(b.gradients).copy_(b.group.reduce_scatter(b.gradients))

    @torch.no_grad()
    def square_sum(self) -> Tensor:
        """FP64 scalar: squares of the reduced gradients on the own slices. Summed over the world each counts once."""
        device = self.buckets[0].weights.device
        parts = [square_sum(b.own(b.gradients)) for b in self.buckets if b.counted]
        return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64, device=device)

    def zero_grad(self) -> None:
        """All gradients zero, in place."""
        for b in self.buckets:
            b.gradients.zero_()
            if not b.attached():
                b.attach()

    @torch.no_grad()
    def step(self, *, lr: float, scale: float = 1.0, rows: Mapping[str, Tensor] | None = None) -> None:
        """One update with `scale` times the reduced gradients, then everybody's weights; gradients are zero afterwards.

        rows: name -> a factor for each row of that matrix, applied after the update (train/qk_clip.py).
        """
        self.steps += 1
        for b in self.buckets:
            own = b.own(b.weights)
            if b.v is None:
                self._muon(b, lr, scale)
            else:
                chunks = (flat.split(CHUNK) for flat in (own, b.own(b.gradients), b.m, b.v))
                for weight, gradient, m, v in zip(*chunks, strict=True):
                    self.optim.update(weight, gradient, m, v, lr=lr, step=self.steps, decay=b.decay, scale=scale)
            for name, factors in (rows or {}).items():
                if name in b.spans:
                    self._scale(b, name, factors)
            if b.ema is not None and self.ema is not None:
                b.ema.mul_(self.ema).add_(own, alpha=1 - self.ema)
        self.gather()
        self.zero_grad()

    def _muon(self, b: Bucket, lr: float, scale: float) -> None:
        assert self.muon is not None
        for gradient, m in zip(b.own(b.gradients).split(CHUNK), b.m.split(CHUNK), strict=True):
            self.muon.look_ahead(gradient, m, scale)
        if b.group.size > 1:
            b.group.all_gather(b.gradients, b.own(b.gradients))
        update(self.muon, b.own(b.weights), b.start, b.gradients, b.matrices, lr)

    def _scale(self, b: Bucket, name: str, factors: Tensor) -> None:
        start, parameter = b.spans[name]
        first, last = self._range(b, name)
        if first < last:
            scale_rows(b.weights[first:last], first - start, parameter.shape[-1], factors)

    def _range(self, b: Bucket, name: str) -> tuple[int, int]:
        """First element of the buffer, and one past the last, that is both a tensor's and in the own slice."""
        start, parameter = b.spans[name]
        end = b.start + b.weights.numel() // b.group.size
        return max(start, b.start), min(start + parameter.numel(), end)

    @torch.no_grad()
    def gather(self) -> None:
        """Weights from the slices to everybody: after a step, and after loading."""
        for b in self.buckets:
            b.group.all_gather(b.weights, b.own(b.weights))

    # ---- state -----------------------------------------------------------------------------------------------------

    def pieces(self, *, loading: bool = False) -> list[Piece]:
        """Live views of what this rank owns: model.NAME, optim.NAME.m, optim.NAME.v (AdamW's), ema.NAME.

        Over all ranks every element appears once. With `loading`, tensors that another stage saves are included.
        Writing into the views and then `gather` is loading.
        """
        return [piece for b in self.buckets if b.counted or loading for piece in self._pieces(b)]

    def _pieces(self, b: Bucket) -> Iterator[Piece]:
        own = b.own(b.weights)
        for name, (start, _) in b.spans.items():
            first, last = self._range(b, name)
            if first >= last:
                continue
            whole, offset = self.shapes[name]
            state = {f"model.{name}": own, f"optim.{name}.m": b.m}
            if b.v is not None:
                state[f"optim.{name}.v"] = b.v
            if b.ema is not None:
                state[f"ema.{name}"] = b.ema
            for key, flat in state.items():
                yield Piece(key, whole, offset + first - start, flat[first - b.start : last - b.start])

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """The averaged weights in place of the current ones, on all ranks, for evaluation and export."""
        assert self.ema, "no average is kept: give a decay"
        kept = [b.own(b.weights).clone() for b in self.buckets]
        try:
            self._put([b.ema for b in self.buckets if b.ema is not None])
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, slices: list[Tensor]) -> None:
        for b, flat in zip(self.buckets, slices, strict=True):
            b.own(b.weights).copy_(flat)
        self.gather()


def square_sum(flat: Tensor, row: int = 1024) -> Tensor:
    """FP64 scalar of FP32 [n]: rows of 1,024 in FP32, over rows in FP64. Right to 1e-8, at the speed of reading."""
    whole = flat.numel() - flat.numel() % row
    norms = torch.linalg.vector_norm(flat[:whole].view(-1, row), dim=1)
    total: Tensor = norms.double().square().sum() + flat[whole:].double().square().sum()
    return total
