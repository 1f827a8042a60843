"""The few collectives that a split model needs, on an explicit process group.

Inference (tensor.py)
    sum         every rank holds a part of a sum; afterwards every rank holds the whole (all-reduce); largest likewise
    join        every rank holds a slice of the last axis; afterwards every rank holds all of it (all-gather)
    agree       whether every rank holds the same number

Training (zero.py, expert.py, pipeline.py); flat tensors, nothing is copied that need not be
    reduce_scatter   [size * n] on each rank -> the sum's own n elements
    all_gather       each rank's n elements -> [size * n] everywhere
    all_to_all       some rows to every rank, another number for each (ragged); returns at once
    exchange         sends to and receives from single ranks, all started together; returns at once

Sums of `sum` travel and add up in FP32 whatever the model's dtype: each rank's part is rounded once, the sum once more,
and not at every hop of a ring. That doubles the bytes of a BF16 message; the official folder reduces in BF16.

Both backends (gloo on CPUs, NCCL on GPUs) reduce each value in one place, in an order that depends on nothing but its
position, and pass on the result: all ranks get the same bits, every time. The split relies on it: the gate runs on
every rank, and all must choose the same experts. A group of one rank has no process group: its collectives are free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class CollectiveError(RuntimeError):
    """A collective failed: another rank died, hangs or left. Which one it was is for watch.py to find out."""


@dataclass(frozen=True)
class Pending:
    """Communication under way. Its tensors must be left alone until `wait` returns."""

    works: tuple[Any, ...] = ()

    def wait(self) -> None:
        """Until everything has arrived (on an accelerator: until the current stream may use it)."""
        with _named_errors():
            for work in self.works:
                work.wait()


@dataclass(frozen=True)
class Group:
    """Some ranks that do something together, seen from one of them. `process_group` is None in a group of one."""

    rank: int
    size: int
    process_group: dist.ProcessGroup | None
    device: torch.device

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, in x's dtype; integers are summed as such. `x` may be overwritten."""
        assert not x.requires_grad, "the split is for inference: a plain all-reduce has no gradient"
        if self.size == 1:
            return x
        wide = torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else x.dtype
        total = x.to(wide).contiguous()
        self._run(dist.all_reduce, total)
        return total.to(x.dtype)

    def largest(self, x: Tensor) -> Tensor:
        """The largest over ranks, element by element. `x` is overwritten."""
        if self.size > 1:
            self._run(dist.all_reduce, x, op=dist.ReduceOp.MAX)
        return x

    def join(self, x: Tensor) -> Tensor:
        """[..., n] on each rank -> [..., size * n], in order of ranks."""
        assert not x.requires_grad, "the split is for inference: a plain all-gather has no gradient"
        if self.size == 1:
            return x
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        self._run(dist.all_gather, parts, x.contiguous())
        return torch.cat(parts, dim=-1)

    def agree(self, value: int) -> bool:
        """Whether `value` is the same on every rank."""
        if self.size == 1:
            return True
        extremes = torch.tensor([value, -value], device=self.device)
        self._run(dist.all_reduce, extremes, op=dist.ReduceOp.MAX)
        largest, smallest = extremes.tolist()
        return bool(largest == -smallest)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """[size * n] on each rank -> [n]: the own slice of the sum over ranks, added up in x's dtype."""
        if self.size == 1:
            return x
        own = x.new_empty(x.numel() // self.size)
        self._run(dist.reduce_scatter_single, own, x)
        return own

    def all_gather(self, out: Tensor, own: Tensor) -> None:
        """Fill `out` [size * n] with everybody's `own` [n], which may be the own slice of `out` itself."""
        if self.size > 1:
            self._run(dist.all_gather_single, out, own)
        elif out.data_ptr() != own.data_ptr():
            out.copy_(own)

    def all_to_all(self, out: Tensor, rows: Tensor, received: Sequence[int], sent: Sequence[int]) -> Pending:
        """Start: the first sent[0] of `rows` go to rank 0, the next sent[1] to rank 1 ...; `out` fills likewise."""
        if self.size == 1:
            out.copy_(rows)
            return Pending()
        return self._start(dist.all_to_all_single, out, rows, list(received), list(sent))

    def exchange(self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]]) -> Pending:
        """Start all of (tensor, other rank) together: pairs that send to each other at once cannot block.

        Between two ranks messages match in order: the first sent is the first received.
        """
        group = self.process_group
        operations = [dist.P2POp(dist.isend, x.contiguous(), group=group, group_peer=rank) for x, rank in sends]
        operations += [dist.P2POp(dist.irecv, x, group=group, group_peer=rank) for x, rank in receives]
        if not operations:
            return Pending()
        with _named_errors():
            return Pending(tuple(dist.batch_isend_irecv(operations)))

    def _start(self, collective: Any, *args: Any) -> Pending:
        with _named_errors():
            work = collective(*args, group=self.process_group, async_op=True)
        return Pending() if work is None else Pending((work,))

    def _run(self, collective: Any, *args: Any, **options: Any) -> None:
        with _named_errors():
            collective(*args, group=self.process_group, **options)


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CollectiveError(reason) from error
