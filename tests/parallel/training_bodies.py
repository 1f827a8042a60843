"""What the ranks do in tests of training on several processes: meshes, collectives, ZeRO."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fathom.kernels.adamw import AdamW
from fathom.kernels.muon import Muon
from fathom.parallel.launch import Place, join
from fathom.parallel.mesh import Layout, Mesh, make_mesh
from fathom.parallel.zero import Zero1
from fathom.runtime import UserError

SHAPES = {
    "embed.weight": (37, 8), "norm.weight": (8,), "experts.gate_up": (4, 10, 7), "proj.weight": (11, 13),
    "experts.down": (4, 7, 5), "last.bias": (3,), "head.weight": (2, 3),
}  # fmt: skip
STEPS, LR, SCALES = 3, 0.01, (0.7, 1.0, 0.25)


@contextmanager
def joined(layout: Layout) -> Iterator[Mesh]:
    """This process in a mesh."""
    with join(Place.from_env()) as ranks:
        yield make_mesh(layout, ranks.device)


def routed(name: str) -> bool:
    return ".gate_up" in name or ".down" in name


def drawn(name: str, seed: int) -> Tensor:
    """Random numbers in the whole tensor's shape."""
    generator = torch.Generator().manual_seed(1000 * seed + sum(name.encode()))
    return torch.randn(SHAPES[name], generator=generator)


def sums_of_groups(layout: Layout) -> dict[str, Any]:
    """Per kind of group: (own place, size, sum of the members' world ranks)."""
    with joined(layout) as mesh:
        out: dict[str, Any] = {}
        for kind in ("world", "data", "expert", "expert_data", "pipeline"):
            group = getattr(mesh, kind)
            out[kind] = (group.rank, group.size, int(group.sum(torch.tensor(2**40 + mesh.rank))) - group.size * 2**40)
        return out


def wrong_layout(layout: Layout) -> str:
    try:
        with joined(layout):
            return "no error"
    except UserError as error:
        return str(error)


def messages() -> dict[str, Any]:
    """Every collective of training once, on three ranks."""
    with joined(Layout(data=3)) as mesh:
        group, me = mesh.world, mesh.rank
        scattered = group.reduce_scatter(torch.arange(6.0) * 10**me)
        flat = torch.zeros(6)
        flat[2 * me : 2 * me + 2] = me + 1
        group.all_gather(flat, flat[2 * me : 2 * me + 2])
        # rank r sends r * 3 + to rows to rank `to`, but rank 0 sends nothing at all and nobody sends to rank 1
        sent = [0 if me == 0 or to == 1 else me * 3 + to for to in range(3)]
        received = [0 if source == 0 or me == 1 else source * 3 + me for source in range(3)]
        rows = torch.cat([torch.full((n, 2), 10 * me + to, dtype=torch.uint8) for to, n in enumerate(sent)])
        out = torch.empty(sum(received), 2, dtype=torch.uint8)
        group.all_to_all(out, rows, received, sent).wait()
        right, left = torch.empty(4), torch.empty(2)
        sends = [(torch.full((2,), float(me)), (me + 1) % 3), (torch.full((4,), me + 0.5), (me - 1) % 3)]
        group.exchange(sends, [(left, (me - 1) % 3), (right, (me + 1) % 3)]).wait()
        return {
            "scattered": scattered.tolist(), "gathered": flat.tolist(), "rows": out[:, 0].tolist(),
            "left": left.tolist(), "right": right.tolist(),
            "largest": group.largest(torch.tensor([float(me), -float(me), -math.inf])).tolist(),
        }  # fmt: skip


# ---- ZeRO ----------------------------------------------------------------------------------------------------------


def local_parameters(mesh: Mesh) -> tuple[dict[str, nn.Parameter], dict[str, tuple[torch.Size, int]]]:
    """This rank's tensors (experts: its slice of the stack), and where the ranges lie."""
    parameters, shapes = {}, {}
    for name in SHAPES:
        whole = drawn(name, 0)
        part = whole.chunk(mesh.expert.size)[mesh.expert.rank].clone() if routed(name) else whole
        parameters[name] = nn.Parameter(part)
        if routed(name):
            shapes[name] = (whole.shape, mesh.expert.rank * part.numel())
    return parameters, shapes


def whole_gradient(name: str, step: int, ranks: int) -> Tensor:
    """Sum of what the ranks contribute: eighths, so that any order of summing gives the same bits."""
    parts = [(drawn(name, 10 + step + 100 * rank) * 8).round() / 8 for rank in range(ranks)]
    return torch.stack(parts).sum(0)


def contribution(name: str, step: int, mesh: Mesh) -> Tensor:
    """The part of `whole_gradient` of this rank: of experts, what the tokens of all ranks of the copy make of them."""
    expert, copy = mesh.expert, mesh.expert_data.rank
    if not routed(name):
        return (drawn(name, 10 + step + 100 * mesh.data.rank) * 8).round() / 8
    sources = range(copy * expert.size, (copy + 1) * expert.size)
    parts = torch.stack([(drawn(name, 10 + step + 100 * rank) * 8).round() / 8 for rank in sources]).sum(0)
    return parts.chunk(expert.size)[expert.rank]


def row_factors(step: int) -> dict[str, Tensor]:
    """What a clip of logits might ask for."""
    return {"proj.weight": torch.linspace(0.5, 1, 11)} if step == 1 else {}


def zero_run(mesh: Mesh, moments: torch.dtype, ema: float | None, muon: Muon | None = None) -> dict[str, Any]:
    """Some steps with the given gradients; the rank's pieces and what it measured on the way."""
    parameters, shapes = local_parameters(mesh)
    optim = AdamW(weight_decay=0.1, moments=moments)
    zero = Zero1(parameters, mesh, optim, routed=routed, shapes=shapes, ema=ema, muon=muon)
    squares = []
    for step in range(STEPS):
        for name, parameter in parameters.items():
            gradient = contribution(name, step, mesh)
            for _ in range(2):  # twice half of it: gradients add up in place
                (parameter * gradient / 2).sum().backward()
        zero.reduce()
        squares.append(float(mesh.world.sum(zero.square_sum())))
        zero.step(lr=LR, scale=SCALES[step], rows=row_factors(step))
        assert all(p.grad is not None and not p.grad.any() for p in parameters.values())
    out: dict[str, Any] = {
        "squares": squares,
        "pieces": [(p.name, p.whole, p.start, p.data.clone()) for p in zero.pieces()],
    }
    out["weights"] = {name: p.detach().clone() for name, p in parameters.items()}
    if ema:
        with zero.ema_weights():
            out["swapped"] = {name: p.detach().clone() for name, p in parameters.items()}
        assert all(torch.equal(p, out["weights"][name]) for name, p in parameters.items())
    # loading: another start, the same state copied into the pieces, one more step: as if nothing had happened
    fresh, shapes = local_parameters(mesh)
    loaded = Zero1(fresh, mesh, optim, routed=routed, shapes=shapes, ema=ema, muon=muon)
    for mine, saved in zip(loaded.pieces(loading=True), zero.pieces(), strict=True):
        mine.data.copy_(saved.data)
    loaded.steps = zero.steps
    loaded.gather()
    for z, tensors in ((zero, parameters), (loaded, fresh)):
        for name, parameter in tensors.items():
            assert parameter.grad is not None
            parameter.grad.copy_(contribution(name, 0, mesh))
        z.reduce()
        z.step(lr=LR)
    out["same after loading"] = all(torch.equal(parameters[n], fresh[n]) for n in parameters)
    return out


def zero_cases(layout: Layout) -> list[dict[str, Any]]:
    with joined(layout) as mesh:
        muon = zero_run(mesh, torch.float32, 0.75, Muon())
        return [zero_run(mesh, torch.float32, 0.75), zero_run(mesh, torch.bfloat16, None), muon]
