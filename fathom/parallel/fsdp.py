"""Fully sharded data parallelism (ZeRO-3) with torch's fully_shard, for machines that cannot hold a whole copy.

    forward    a block's weights are gathered just before it runs and dropped after it
    backward   gathered again; its gradients are reduce-scattered as soon as they are complete
    step       AdamW or Muon on the own rows; nothing to gather afterwards

Each block and each MTP module is one unit. Embedding, final norm and head are the root unit: it stays whole from one
step to the next, for losses and callers read the head's weight outside of any forward pass. A rank holds rows
[r ceil(n/N), (r+1) ceil(n/N)) of every tensor's first axis. The interface is that of zero.py, so that a trainer can
take either; the report uses ZeRO-1.

What works with it: data parallelism alone, in any precision, with recomputation, tied embeddings and MTP; layers that
add weight gradients by hand (kernels/deferred.py), as long as the queue does not make them wait: a block's gradients
are sent when its backward pass ends.

What is refused
 1. pipelines: a zero-bubble schedule computes weight gradients after that, and every micro-batch would gather again
 2. expert parallelism: routed experts are gathered like everything else here
 3. a single data rank: nothing to shard

Muon needs whole matrices. Experts are whole on their rank; of other weights the direction is gathered, and every rank
makes the whole matrix orthogonal for its own rows' sake: the work is done N times for them, not for experts.

Deviations from zero.py
 1. Gradients are summed over ranks after every micro-batch: `reduce` finds its work done.
 2. Weights seen from outside a forward pass are DTensors; evaluation is a collective, all ranks must take part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from fathom.kernels.adamw import AdamW
from fathom.kernels.muon import Muon
from fathom.model.moe import Gate, Routing
from fathom.model.transformer import DeepseekV3
from fathom.parallel.matrices import Run, Shape, matrix_shape, scale_rows, update
from fathom.parallel.mesh import Layout, Mesh
from fathom.parallel.piece import Piece
from fathom.parallel.zero import square_sum
from fathom.runtime import UserError

ENTRANCES = ("hidden", "mtp_hidden", "logits", "mtp_logits")  # beside forward: what callers start a model with


def check_fsdp2(layout: Layout) -> None:
    """UserError for layouts that this sharding does not do."""
    why = ""
    if layout.pipeline > 1:
        why = f"parallel.pipeline is {layout.pipeline}: its weight gradients may come after a block's have been sent"
    elif layout.expert > 1:
        why = f"parallel.expert is {layout.expert}: experts are sharded like everything else, and gathered for use"
    elif layout.data < 2:
        why = "parallel.data is 1: there is nobody to shard with"
    if why:
        raise UserError(f'parallel.sharding "fsdp2" cannot be used, {why}; use "zero1"')


@dataclass
class Shard:
    """This rank's rows of one parameter, flat, and their optimizer state."""

    name: str
    parameter: nn.Parameter  # its data is a DTensor
    start: int  # first element in the whole tensor
    m: Tensor
    v: Tensor | None  # AdamW's second moment
    matrices: Shape | None  # of Muon's matrices; None: AdamW trains it
    ema: Tensor | None

    @property
    def weight(self) -> Tensor:
        """Flat view of the own rows."""
        return _local(self.parameter)

    @property
    def gradient(self) -> Tensor:
        """Their gradient; zeros where the step did not use the tensor."""
        grad = self.parameter.grad
        return torch.zeros_like(self.weight) if grad is None else _local(grad)


def _local(tensor: Tensor) -> Tensor:
    """The flat local part of a DTensor, without a copy."""
    return cast(DTensor, tensor.detach()).to_local().view(-1)


class _Together(torch.autograd.Function):
    """(out, scores) as they are; in backward neither gradient goes on before the other is there."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return out.clone(), scores.clone()  # fully_shard warns of views

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[1]


def _with_its_routing(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    """Forward hook of a block: the scores that it recorded go backward only after its output's gradient has come.

    fully_shard gathers a block's weights when that gradient comes. A balance loss reaches the gate through the record,
    past the output, and would multiply with weights that were dropped.
    """
    record = kwargs.get("record")
    if record is None:
        record = next((a for a in args if isinstance(a, MutableSequence)), None)
    if not record or not out.requires_grad:
        return out
    last: Routing = record[-1]
    out, scores = _Together.apply(out, last.scores)  # type: ignore[no-untyped-call]
    record[-1] = Routing(scores, last.indices, last.weights)
    return out


class Fsdp2:
    """Shards a finished model in place. The same methods as Zero1, with the same meaning."""

    def __init__(
        self, model: DeepseekV3, mesh: Mesh, optim: AdamW, *, ema: float | None = None, muon: Muon | None = None
    ) -> None:
        """The model must hold the same FP32 weights on all ranks. UserError for layouts that cannot be."""
        check_fsdp2(mesh.layout)
        self.model, self.optim, self.ema, self.steps, self.device = model, optim, ema or None, 0, mesh.data.device
        self.muon = muon
        shapes = {name: p.shape for name, p in model.named_parameters()}
        group = mesh.data.process_group
        assert group is not None
        devices = DeviceMesh.from_group(group, mesh.data.device.type, mesh_dim_names=("data",))
        units: list[nn.Module] = [*model.layers, *model.mtp, model]
        for unit in units:
            if any(isinstance(m, Gate) for m in unit.modules()) and unit is not model:
                unit.register_forward_hook(_with_its_routing, with_kwargs=True, prepend=True)
            fully_shard(unit, mesh=devices)
            sharded = cast(FSDPModule, unit)
            sharded.set_gradient_divide_factor(1.0)  # the loss is normalised by the tokens of all ranks
            sharded.set_force_sum_reduction_for_comms(True)
        cast(FSDPModule, model).set_reshard_after_backward(False, recurse=False)
        for name in ENTRANCES:
            register_fsdp_forward_method(model, name)
        self.shards = [self._shard(name, p, shapes[name], mesh) for name, p in model.named_parameters()]
        self.shapes = shapes
        self.gather()

    def _shard(self, name: str, parameter: nn.Parameter, whole: torch.Size, mesh: Mesh) -> Shard:
        assert parameter.requires_grad and parameter.dtype == torch.float32, f"{name} is no FP32 master weight"
        own = _local(parameter)
        rows_per_rank = -(-whole[0] // mesh.data.size)
        start = min(mesh.data.rank * rows_per_rank, whole[0]) * (whole.numel() // whole[0])
        shape = matrix_shape(name, whole) if self.muon else None
        dtype = self.muon.moment if self.muon and shape else self.optim.moments
        m, *v = torch.zeros(1 if shape else 2, own.numel(), dtype=dtype, device=own.device)
        return Shard(name, parameter, start, m, v[0] if v else None, shape, own.clone() if self.ema else None)

    # ---- a step ----------------------------------------------------------------------------------------------------

    def reduce(self) -> None:
        """Nothing is left to do: every backward pass has summed its gradients over the ranks."""

    @torch.no_grad()
    def square_sum(self) -> Tensor:
        """FP64 scalar: squares of the own rows' gradients. Summed over the world each counts once."""
        return torch.stack([square_sum(s.gradient) for s in self.shards]).sum()

    def zero_grad(self) -> None:
        """No gradients."""
        for s in self.shards:
            s.parameter.grad = None

    @torch.no_grad()
    def step(self, *, lr: float, scale: float = 1.0, rows: Mapping[str, Tensor] | None = None) -> None:
        """One update with `scale` times the gradients, which are gone afterwards; `rows` as in zero.py."""
        self.steps += 1
        for s in self.shards:
            decay, weight = s.parameter.dim() >= 2, s.weight
            if s.v is None:
                self._muon(s, lr, scale)
            else:
                self.optim.update(weight, s.gradient, s.m, s.v, lr=lr, step=self.steps, decay=decay, scale=scale)
            if rows and s.name in rows:
                scale_rows(weight, s.start, s.parameter.shape[-1], rows[s.name])
            if s.ema is not None and self.ema is not None:
                s.ema.mul_(self.ema).add_(weight, alpha=1 - self.ema)
        self.gather()
        self.zero_grad()

    def _muon(self, s: Shard, lr: float, scale: float) -> None:
        assert self.muon is not None and s.matrices is not None
        if s.parameter.grad is None:
            s.parameter.grad = torch.zeros_like(s.parameter)
        own = s.gradient
        self.muon.look_ahead(own, s.m, scale)
        start, directions = 0, own  # a rank's experts are whole matrices
        if s.parameter.dim() == 2:
            start, directions = s.start, cast(DTensor, s.parameter.grad).full_tensor().view(-1)
        run = Run(s.matrices, 0, directions.numel() // (s.matrices[0] * s.matrices[1]))
        update(self.muon, s.weight, start, directions, [run], lr)

    def gather(self) -> None:
        """Drop gathered copies, so that the next forward pass sees the weights as they are now; gather the root."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        cast(FSDPModule, self.model).unshard()

    # ---- state -----------------------------------------------------------------------------------------------------

    def pieces(self, *, loading: bool = False) -> list[Piece]:
        """Live views of what this rank owns, as in zero.py; `loading` makes no difference here."""
        return [piece for s in self.shards if s.m.numel() for piece in self._pieces(s)]

    def _pieces(self, s: Shard) -> Iterator[Piece]:
        state: dict[str, Any] = {f"model.{s.name}": s.weight, f"optim.{s.name}.m": s.m}
        if s.v is not None:
            state[f"optim.{s.name}.v"] = s.v
        if s.ema is not None:
            state[f"ema.{s.name}"] = s.ema
        for key, flat in state.items():
            yield Piece(key, self.shapes[s.name], s.start, flat)

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """The averaged weights in place of the current ones, for evaluation and export."""
        assert self.ema, "no average is kept: give a decay"
        kept = [s.weight.clone() for s in self.shards]
        try:
            self._put([s.ema for s in self.shards if s.ema is not None])
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, rows: list[Tensor]) -> None:
        for s, flat in zip(self.shards, rows, strict=True):
            s.weight.copy_(flat)
        self.gather()
