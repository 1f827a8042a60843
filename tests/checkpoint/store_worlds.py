"""A small training state, ways to cut it over ranks, and ranks that live as threads or as processes."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.checkpoint.store import Store
from fathom.parallel.group import Group
from fathom.parallel.launch import Place, join
from fathom.parallel.piece import Piece

Cut = tuple[str, int, int]  # name, start, end

SHAPES: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "model.experts": (torch.float32, (8, 5, 3)),
    "model.head": (torch.float32, (61, 37)),
    "model.scale": (torch.float32, ()),
    "model.nothing": (torch.float32, (0, 4)),
    "optim.experts.m": (torch.bfloat16, (8, 5, 3)),
    "optim.head.v": (torch.bfloat16, (7, 11)),
    "tokens": (torch.int64, (9,)),
}


def state(seed: int) -> dict[str, Tensor]:
    """The whole tensors."""
    generator = torch.Generator().manual_seed(seed)
    whole = {}
    for name, (dtype, shape) in SHAPES.items():
        values = torch.randint(-(2**40), 2**40, shape, generator=generator)
        whole[name] = values if dtype == torch.int64 else torch.randn(shape, generator=generator).to(dtype)
    return whole


def zero_cuts(size: int, seed: int) -> list[list[Cut]]:
    """As ZeRO: all tensors in a row, cut anywhere, a slice per rank."""
    ends, total = [], 0
    for _, shape in SHAPES.values():
        total += torch.Size(shape).numel()
        ends.append(total)
    bounds = [0, *sorted(random.Random(seed).sample(range(total), size - 1)), total]
    ranks: list[list[Cut]] = []
    for first, last in itertools.pairwise(bounds):
        begin, own = 0, []
        for name, end in zip(SHAPES, ends, strict=True):
            low, high = max(first, begin), min(last, end)
            if low < high:
                own.append((name, low - begin, high - begin))
            elif begin == end and first == 0:
                own.append((name, 0, 0))
            begin = end
        ranks.append(own)
    return ranks


def expert_cuts(size: int, seed: int) -> list[list[Cut]]:
    """Experts spread along the first axis; each other tensor with one rank, and one that all ranks give."""
    ranks: list[list[Cut]] = [[("model.scale", 0, 1)] for _ in range(size)]
    for number, (name, (_, shape)) in enumerate(SHAPES.items()):
        n = torch.Size(shape).numel()
        if "experts" in name:
            for rank, own in enumerate(ranks):
                own.append((name, n * rank // size, n * (rank + 1) // size))
        elif name != "model.scale":
            ranks[(number + seed) % size].append((name, 0, n))
    return ranks


CUTS = {"zero": zero_cuts, "expert": expert_cuts}


def pieces(whole: dict[str, Tensor], cuts: list[Cut]) -> list[Piece]:
    """Views of `whole`."""
    return [Piece(name, whole[name].shape, start, whole[name].view(-1)[start:end]) for name, start, end in cuts]


def blank(cuts: list[Cut]) -> list[Piece]:
    """Pieces full of other values, to be loaded into."""
    out = []
    for name, start, end in cuts:
        dtype, shape = SHAPES[name]
        out.append(Piece(name, torch.Size(shape), start, torch.full((end - start,), 77, dtype=dtype)))
    return out


def differing(loaded: list[Piece], whole: dict[str, Tensor]) -> list[str]:
    """Names of pieces that are not bit for bit what `whole` has."""
    return [p.name for p in loaded if not torch.equal(p.data, whole[p.name].view(-1)[p.start : p.end])]


class Quiet(Group):
    """A rank without a process group: the ranks of a test live one beside the other, and agree."""

    def sum(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 11)

    def agree(self, value: int) -> bool:
        return True


def quiet_stores(folder: Path, size: int, **options: Any) -> list[Store]:
    """One store for each of `size` ranks in this process."""
    device = torch.device("cpu")
    return [Store(folder, Quiet(r, size, None, device), **({"keep": 9} | options)) for r in range(size)]


def save_all(stores: list[Store], step: int, parts: list[list[Piece]], **options: Any) -> None:
    """All ranks save, then wait."""
    for store, own in zip(stores, parts, strict=True):
        store.save(step, own, {"step": step}, **options)
    for store in stores:
        store.wait()


def save_and_load(folder: str, others: list[str]) -> dict[str, Any]:
    """A real rank: save the state in both layouts, then load what is in `others` in both layouts."""
    whole, found = state(0), {}
    with join(Place.from_env(), device="cpu") as ranks:
        assert ranks.group is not None
        own = {kind: cut(ranks.size, 5)[ranks.rank] for kind, cut in CUTS.items()}
        for kind, cuts in own.items():
            store = Store(Path(folder) / f"{ranks.size}-{kind}", ranks.group, keep=1)
            if not store.steps():  # the first time a world of this size lives
                store.save(3, pieces(whole, cuts), {"by": ranks.size}, wait=True)
            assert store.steps() == [3]  # on every rank, as soon as wait returns
        for other in others:
            for kind, cuts in own.items():
                target = blank(cuts)
                extra = Store(Path(folder) / other, ranks.group, keep=1).load(3, target)
                found[f"{other} as {ranks.size}-{kind}"] = (differing(target, whole), extra)
    return found
