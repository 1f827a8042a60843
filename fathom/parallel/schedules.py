"""Pipeline schedules as plain data: what each rank does, in which order (report section 3.2.1, Table 2).

A model is cut into stages; a step's rows into micro-batches. For each (stage, micro-batch) there are

    F   forward                     needs F of the stage before
    B   backward = I then W         needs F here and the gradient from the stage behind
    I   gradient of the input       what the stage before waits for
    W   gradient of the weights     nobody waits for it before the optimizer step

    gpipe      all F, then all B. Slow, clear, holds every micro-batch: what the others are tested against.
    1f1b       as soon as a micro-batch can go back it does: at most `ranks` of them are held.
    zb1p       1F1B with B cut into I and W. Rank r is r weight gradients behind, so gradients leave the last rank early
               and W's fill the wait at the end. Activations as 1F1B's first rank, on every rank.
    dualpipev  rank r holds stages r and 2 * ranks - 1 - r (the pipeline goes down the ranks and comes back: a V), so
               the first and last layers share a rank, and so do embedding, MTP and head. Micro-batches in both
               halves of the V give each rank a forward and a backward to run at once: a Pair, of which one half can
               compute while the other's messages travel.
    forward    F alone, for evaluation.

In every schedule a stage's weight gradients come in the order of the micro-batches, so sums have the same bits
whatever the schedule. zb1p's order is the ZB-H1 of "Zero Bubble Pipeline Parallelism" (Qi et al. 2023); dualpipev's
table of eight steps is DualPipe's of the report's repository, halved at the fold.

torch.distributed.pipelining has schedules, too. Ours are separate because the executor (pipeline.py) needs three things
that its stages do not offer: a loss of its own on every stage (balance), weight gradients that layers hand to a queue
instead of a second autograd pass (FP8), and embedding, head and MTP on one stage. Its DualPipeV is an oracle in the
tests.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from fathom.runtime import UserError

Kind = Literal["F", "B", "I", "W"]


@dataclass(frozen=True)
class Action:
    """One piece of work on one stage for one micro-batch."""

    kind: Kind
    stage: int
    micro: int

    def __str__(self) -> str:
        return f"{self.kind}{self.micro}@{self.stage}"


@dataclass(frozen=True)
class Pair:
    """F of one micro-batch together with B of another, on the two stages of a rank."""

    forward: Action
    backward: Action

    def __str__(self) -> str:
        return f"{self.forward}&{self.backward}"


Step = Action | Pair


@dataclass(frozen=True)
class Schedule:
    """`steps[rank]` in order. Stages are numbered from the embedding to the head."""

    name: str
    ranks: int
    micro: int
    stages: int
    steps: tuple[tuple[Step, ...], ...]

    def home(self, stage: int) -> int:
        """The rank that holds a stage."""
        return min(stage, 2 * self.ranks - 1 - stage)

    def held(self, rank: int) -> list[int]:
        """The stages of a rank."""
        return [stage for stage in range(self.stages) if self.home(stage) == rank]


def parts(step: Step) -> tuple[Action, ...]:
    """The actions of a step, in the order in which one process runs them."""
    return (step.forward, step.backward) if isinstance(step, Pair) else (step,)


def stages_of(name: str, ranks: int) -> int:
    """How many stages a model is cut into."""
    return 2 * ranks if name == "dualpipev" else ranks


def schedule(name: str, ranks: int, micro: int) -> Schedule:
    """The schedule `name` of `micro` micro-batches over `ranks` ranks."""
    if name not in _MAKERS:
        raise UserError(f"schedule {name!r} is not known; use one of {', '.join(_MAKERS)}")
    if ranks < 1 or micro < 1:
        raise UserError(f"a pipeline of {ranks} ranks with {micro} micro-batches cannot be; both must be at least 1")
    if name == "dualpipev" and micro < 2 * ranks:
        raise UserError(
            f"dualpipev over {ranks} ranks needs at least {2 * ranks} micro-batches a step (two per rank), "
            f"{micro} were given; make micro-batches smaller, the batch larger, or use schedule zb1p"
        )
    make = _MAKERS[name]
    steps = tuple(tuple(make(rank, ranks, micro)) for rank in range(ranks))
    return Schedule(name, ranks, micro, stages_of(name, ranks), steps)


def _forward(rank: int, ranks: int, micro: int) -> Iterator[Step]:
    yield from (Action("F", rank, m) for m in range(micro))


def _gpipe(rank: int, ranks: int, micro: int) -> Iterator[Step]:
    yield from (Action("F", rank, m) for m in range(micro))
    yield from (Action("B", rank, m) for m in range(micro))


def _1f1b(rank: int, ranks: int, micro: int) -> Iterator[Step]:
    ahead = min(ranks - 1 - rank, micro)  # forwards that must leave before the first gradient can come back
    yield from (Action("F", rank, m) for m in range(ahead))
    for m in range(micro):
        if ahead + m < micro:
            yield Action("F", rank, ahead + m)
        yield Action("B", rank, m)


def _zb1p(rank: int, ranks: int, micro: int) -> Iterator[Step]:
    ahead, behind = min(ranks - 1 - rank, micro), min(rank, micro)
    yield from (Action("F", rank, m) for m in range(ahead))
    for m in range(micro):
        if ahead + m < micro:
            yield Action("F", rank, ahead + m)
        yield Action("I", rank, m)
        if m >= behind:
            yield Action("W", rank, m - behind)
    yield from (Action("W", rank, m) for m in range(micro - behind, micro))


class _Counting:
    """Numbers the micro-batches: the n-th action of a kind on a stage is for micro-batch n."""

    def __init__(self) -> None:
        self._next: Counter[tuple[str, int]] = Counter()
        self._weights: deque[Action] = deque()

    def forward(self, stage: int) -> Action:
        return Action("F", stage, self._count("F", stage))

    def backward(self, stage: int, split: bool = False) -> Action:
        micro = self._count("B", stage)
        if split:
            self._weights.append(Action("W", stage, micro))
        return Action("I" if split else "B", stage, micro)

    def weight(self) -> Action:
        return self._weights.popleft()

    def pair(self, forward: int, backward: int) -> Pair:
        return Pair(self.forward(forward), self.backward(backward))

    def _count(self, kind: str, stage: int) -> int:
        self._next[kind, stage] += 1
        return self._next[kind, stage] - 1


def _dualpipev(rank: int, ranks: int, micro: int) -> Iterator[Step]:
    """`down` is the rank's stage on the way to the fold, `up` the one on the way back."""
    down, up = rank, 2 * ranks - 1 - rank
    to_fold = ranks - 1 - rank  # ranks between this one and the fold
    do = _Counting()
    for _ in range(2 * to_fold):  # 1: fill the V
        yield do.forward(down)
    for _ in range(rank + 1):  # 2: the first micro-batches come back from the fold
        yield do.forward(down)
        yield do.forward(up)
    for _ in range(to_fold):  # 3: gradients start; pass them on before anything else
        yield do.backward(up, split=True)
        yield do.weight()
        yield do.forward(up)
    for n in range(micro - 2 * ranks + rank + 1):  # 4: the steady state, both halves of the V at once
        if n == 0 and to_fold == 0:  # at the fold this F's result is what that B's rank waits for: no overlap
            yield do.forward(down)
            yield do.backward(up)
        else:
            yield do.pair(down, up)
        yield do.pair(up, down)
    for _ in range(to_fold):  # 5: no new micro-batches
        yield do.backward(up)
        yield do.pair(up, down)
    for n in range(2 * (rank + 1)):  # 6: backwards alone; from the middle on weights wait
        yield do.backward(down if n % 2 else up, split=n > rank)
    for _ in range(to_fold):  # 7: weights where gradients are waited for
        yield do.weight()
        yield do.backward(down, split=True)
    for _ in range(rank + 1):  # 8: the rest
        yield do.weight()


_MAKERS: dict[str, Callable[[int, int, int], Iterator[Step]]] = {
    "gpipe": _gpipe, "1f1b": _1f1b, "zb1p": _zb1p, "dualpipev": _dualpipev, "forward": _forward,
}  # fmt: skip
