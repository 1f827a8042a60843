"""The few collectives that a split model needs, on an explicit process group.

    sum     every rank holds a part of a sum; afterwards every rank holds the whole (all-reduce)
    join    every rank holds a slice of the last axis; afterwards every rank holds all of it (all-gather)
    agree   whether every rank holds the same number

Sums travel and add up in FP32 whatever the model's dtype: each rank's part is rounded once, the sum once more, and not
at every hop of a ring. That doubles the bytes of a BF16 message; the official folder reduces in BF16.

Both backends (gloo on CPUs, NCCL on GPUs) reduce each value in one place and pass on the result, so all ranks get the
same bits. The split relies on it: the gate runs on every rank, and all must choose the same experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class CollectiveError(RuntimeError):
    """A collective failed: another rank died, hangs or left. Which one it was is for watch.py to find out."""


@dataclass(frozen=True)
class Group:
    """The ranks that hold one model between them, seen from one of them."""

    rank: int
    size: int
    process_group: dist.ProcessGroup
    device: torch.device

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, in x's dtype. `x` may be overwritten."""
        assert not x.requires_grad, "the split is for inference: a plain all-reduce has no gradient"
        total = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
        self._run(dist.all_reduce, total)
        return total.to(x.dtype)

    def join(self, x: Tensor) -> Tensor:
        """[..., n] on each rank -> [..., size * n], in order of ranks."""
        assert not x.requires_grad, "the split is for inference: a plain all-gather has no gradient"
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        self._run(dist.all_gather, parts, x.contiguous())
        return torch.cat(parts, dim=-1)

    def agree(self, value: int) -> bool:
        """Whether `value` is the same on every rank."""
        extremes = torch.tensor([value, -value], device=self.device)
        self._run(dist.all_reduce, extremes, op=dist.ReduceOp.MAX)
        largest, smallest = extremes.tolist()
        return bool(largest == -smallest)

    def _run(self, collective: Any, *args: Any, **options: Any) -> None:
        try:
            collective(*args, group=self.process_group, **options)
        except RuntimeError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CollectiveError(reason) from error
