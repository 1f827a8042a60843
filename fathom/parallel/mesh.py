"""Which rank does what in training (report section 3.2: pipeline x data, experts spread inside the data ranks).

    rank = pipeline_index * data + data_index          data_index = copy_index * expert + expert_index

    data          ranks of one pipeline stage: each computes other rows; whatever is no routed expert is replicated here
    expert        `expert` neighbours among them: one copy of all routed experts of the stage between them
    expert_data   ranks of the stage that hold the same experts, one of each copy
    pipeline      the same data_index in every stage
    world         everybody

Example, pipeline 1, data 4, expert 2, experts E0 and E1:   rank 0: E0   1: E1   2: E0   3: E1
    expert groups {0, 1} {2, 3}          expert_data groups {0, 2} {1, 3}

The report: 16 stages of 128 ranks, each with 2 copies of 256 experts over 64 ranks. No tensor parallelism in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from fathom.parallel.group import CollectiveError, Group
from fathom.runtime import UserError


@dataclass(frozen=True)
class Layout:
    """The numbers alone."""

    pipeline: int = 1
    data: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        for name in ("pipeline", "data", "expert"):
            if getattr(self, name) < 1:
                raise UserError(f"parallel.{name} is {getattr(self, name)}, it must be at least 1")
        if self.data % self.expert:
            raise UserError(
                f"parallel.expert {self.expert} does not divide parallel.data {self.data}; experts are spread over "
                "data ranks, so choose one of its divisors"
            )

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.pipeline * self.data

    def groups(self) -> dict[str, list[list[int]]]:
        """Every group of every kind as lists of ranks: each kind partitions the world."""
        stages = [list(range(first, first + self.data)) for first in range(0, self.world, self.data)]
        copies = [stage[first : first + self.expert] for stage in stages for first in range(0, self.data, self.expert)]
        return {
            "world": [list(range(self.world))],
            "data": stages,
            "expert": copies,
            "expert_data": [stage[i :: self.expert] for stage in stages for i in range(self.expert)],
            "pipeline": [list(ranks) for ranks in zip(*stages, strict=True)],
        }


@dataclass(frozen=True)
class Mesh:
    """All groups of one rank."""

    layout: Layout
    rank: int
    world: Group
    data: Group
    expert: Group
    expert_data: Group
    pipeline: Group


def single(device: torch.device) -> Mesh:
    """One process; needs no torch.distributed."""
    alone = Group(0, 1, None, device)
    return Mesh(Layout(), 0, alone, alone, alone, alone, alone)


def make_mesh(layout: Layout, device: torch.device, *, timeout: float = 300.0) -> Mesh:
    """The groups of this rank. Every rank must call it (it is a collective); torch.distributed must be initialised.

    timeout: seconds that a collective waits for the others. UserError when the number of processes is not the layout's.
    """
    started = dist.is_available() and dist.is_initialized()
    size = dist.get_world_size() if started else 1
    if size != layout.world:
        raise UserError(
            f"{size} process{'es were' if size > 1 else ' was'} started, the layout pipeline {layout.pipeline} x data "
            f"{layout.data} needs {layout.world}; start that many, or change parallel.data or parallel.pipeline"
        )
    if size == 1:
        return single(device)
    rank = dist.get_rank()
    try:
        own = dict(_own_groups(layout, rank, device, timeout))
    except RuntimeError as error:
        raise CollectiveError(str(error).strip().splitlines()[0]) from error
    return Mesh(layout, rank, **own)


def _own_groups(layout: Layout, rank: int, device: torch.device, timeout: float) -> Iterator[tuple[str, Group]]:
    """Groups of the same ranks share one process group: all ranks create all groups, in the same order."""
    made: dict[tuple[int, ...], dist.ProcessGroup | None] = {tuple(range(layout.world)): dist.group.WORLD}
    for kind, lists in layout.groups().items():
        for ranks in lists:
            key = tuple(ranks)
            if len(ranks) > 1 and key not in made:
                made[key] = dist.new_group(ranks, timeout=timedelta(seconds=timeout))
            if rank in ranks:
                yield kind, Group(ranks.index(rank), len(ranks), made.get(key), device)
