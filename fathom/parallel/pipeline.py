"""The executor: runs one rank's part of a schedule (schedules.py) for one optimizer step.

    F   x = activations from the stage before -> out, loss = stage(micro, x) -> out goes to the stage behind
    B   gradient of out from the stage behind -> backward of (out, loss) -> gradient of x goes to the stage before
    I   the same with the queue of weight gradients told to wait; what it collected is kept
    W   runs what was kept

Every stage may have a loss (balance of its own layers), so the roots of a backward are out and loss together. How
messages travel is messages.py's business.

Limits
 1. A Pair runs as F, then B: its messages overlap with compute, its two halves do not overlap with each other. Hiding
    the expert all-to-all of one half behind the other's compute (report section 3.2.1) needs attention, dispatch, MLP
    and combine as separate pieces. So what a Pair costs here is F + B.
 2. Weight gradients wait only in layers that hand them to the queue; those of other layers (norm gains, gate,
    embedding, head) are part of I.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fathom.kernels.deferred import WeightGradients, Work
from fathom.parallel.group import Group
from fathom.parallel.messages import Post, gives, takes
from fathom.parallel.schedules import Action, Schedule, parts
from fathom.parallel.stage import Stage
from fathom.parallel.timeline import Span
from fathom.runtime import UserError

StageFunction = Callable[[int, Tensor | None], tuple[Tensor | None, Tensor | None]]


@dataclass
class Report:
    """What one rank did. Times are seconds from the start of its run."""

    losses: list[Tensor]  # per micro-batch: sum of the losses of this rank's stages, FP32, detached
    spans: list[Span] = field(default_factory=list)  # compute per action, without waiting
    waited: float = 0.0  # for messages
    seconds: float = 0.0
    bytes_sent: int = 0
    peak: int = 0  # most activations (stage, micro-batch) held at once

    @property
    def idle(self) -> float:
        """Seconds in which the rank computed nothing."""
        return self.seconds - sum(span.end - span.start for span in self.spans)


@dataclass
class _Kept:
    """Of a forward, what its backward needs: the leaf, the roots of the graph. `out` itself can be freed."""

    x: Tensor | None
    out: GradientEdge | None
    loss: tuple[GradientEdge, Tensor] | None


class _Rank:
    """The stages of this rank and what they hold between actions."""

    def __init__(self, stages: Mapping[int, StageFunction], queue: WeightGradients, losses: list[Tensor]) -> None:
        self.stages, self.queue, self.losses = stages, queue, losses
        self.kept: dict[tuple[int, int], _Kept] = {}
        self.weights: dict[tuple[int, int], list[Work]] = {}

    def do(self, action: Action, given: Tensor | None) -> Tensor | None:
        """Compute; `given` came from a neighbour, what is returned goes to the other one."""
        key = action.stage, action.micro
        if action.kind == "F":
            return self._forward(key, given)
        if action.kind == "W":
            with torch.no_grad():  # as inside a backward
                for work in self.weights.pop(key):
                    work()
            return None
        self.queue.waiting = action.kind == "I"
        try:
            gradient = self._backward(key, given)
        finally:
            self.queue.waiting = False
        if action.kind == "I":
            self.weights[key] = self.queue.take()
        return gradient

    def _forward(self, key: tuple[int, int], x: Tensor | None) -> Tensor | None:
        train = torch.is_grad_enabled()
        if x is not None:
            x = x.detach().requires_grad_(train)
        out, loss = self.stages[key[0]](key[1], x)
        if loss is not None:
            self.losses[key[1]] += loss.detach().float()
        if train:
            self.kept[key] = _Kept(
                x,
                None if out is None else get_gradient_edge(out),
                None if loss is None else (get_gradient_edge(loss), torch.ones_like(loss)),
            )
        return None if out is None else out.detach()

    def _backward(self, key: tuple[int, int], gradient: Tensor | None) -> Tensor | None:
        kept = self.kept.pop(key)
        roots: list[GradientEdge] = []
        gradients: list[Tensor] = []
        if kept.out is not None:
            assert gradient is not None
            roots.append(kept.out)
            gradients.append(gradient)
        if kept.loss is not None:
            roots.append(kept.loss[0])
            gradients.append(kept.loss[1])
        torch.autograd.backward(roots, gradients)
        return None if kept.x is None else kept.x.grad


def run(
    schedule: Schedule,
    stages: Mapping[int, StageFunction],
    group: Group,
    shapes: Sequence[Sequence[int]],
    queue: WeightGradients,
    *,
    dtype: torch.dtype = torch.float32,
    timed: bool = False,
) -> Report:
    """Run this rank's steps; afterwards gradients of all micro-batches are summed in its parameters' `grad`.

    stages   this rank's stages (schedule.held(group.rank)): (micro, x) -> (out, loss). x is None on stage 0, out on
             the last stage; loss may be None anywhere else
    shapes   per micro-batch, the shape [B, T, D] of what crosses from stage to stage; `dtype` likewise
    queue    where layers hand in weight gradients (kernels/deferred.py)
    timed    wait for the accelerator around every action, so that the report's times are its own (a CPU's always are)
    Under torch.no_grad, schedule "forward" evaluates. CollectiveError names the neighbour that failed.
    """
    if group.size != schedule.ranks:
        raise UserError(
            f"the schedule is for {schedule.ranks} pipeline ranks, the pipeline group has {group.size}; "
            "make the schedule for as many"
        )
    assert sorted(stages) == schedule.held(group.rank), f"rank {group.rank} holds stages {schedule.held(group.rank)}"
    assert len(shapes) == schedule.micro, f"{len(shapes)} shapes for {schedule.micro} micro-batches"
    report = Report([torch.zeros((), device=group.device) for _ in range(schedule.micro)])
    rank, post = _Rank(stages, queue, report.losses), Post(schedule, group, shapes, dtype)
    sync = timed and group.device.type != "cpu"
    begin = time.perf_counter()
    for action in (action for step in schedule.steps[group.rank] for action in parts(step)):
        post.ahead()
        wanted, made = takes(schedule, action), gives(schedule, action)
        waits = time.perf_counter()
        given = None if wanted is None else post.receive(wanted)
        if sync:
            torch.accelerator.synchronize(group.device)
        start = time.perf_counter()
        result = rank.do(action, given)
        if sync:
            torch.accelerator.synchronize(group.device)
        end = time.perf_counter()
        report.waited += start - waits
        report.spans.append(Span(action, start - begin, end - begin))
        report.peak = max(report.peak, len(rank.kept) + len(rank.weights))
        if made is not None:
            assert result is not None, f"{action} gave no {made}"
            post.send(made, result)
            report.waited += time.perf_counter() - end
    post.finish()
    report.seconds, report.bytes_sent = time.perf_counter() - begin, post.bytes_sent
    return report


# ---- the embedding that first and last stage share -----------------------------------------------------------------


def copied(schedule: Schedule, rank: int, stages: Mapping[int, Stage]) -> set[str]:
    """Names of this rank's parameters that are copies: another rank counts them in norms and writes them."""
    last = stages.get(schedule.stages - 1)
    apart = schedule.home(0) != schedule.home(schedule.stages - 1)
    return {"embed_tokens.weight"} if apart and last is not None and last.shares_embedding else set()


@torch.no_grad()
def tie(schedule: Schedule, stages: Mapping[int, Stage], group: Group) -> None:
    """Sum the embedding's gradient over first and last rank, once a step; the same bits, and so updates, on both.

    Every rank may call it; it concerns two at most, and none where the embedding is one tensor.
    """
    ends = (schedule.home(0), schedule.home(schedule.stages - 1))
    if ends[0] == ends[1] or group.rank not in ends:
        return
    stage = stages[0 if group.rank == ends[0] else schedule.stages - 1]
    if not stage.shares_embedding:
        return
    assert stage.embed_tokens is not None
    weight, other = stage.embed_tokens.weight, ends[1] if group.rank == ends[0] else ends[0]
    if weight.grad is None:  # no MTP loss in this step
        weight.grad = torch.zeros_like(weight)
    theirs = torch.empty_like(weight.grad)
    group.exchange([(weight.grad, other)], [(theirs, other)]).wait()
    weight.grad += theirs
