"""ZeRO-1 is AdamW: the same bits as the rule on whole tensors, on 1, 2 and 4 ranks, and every element saved once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parallel.distributed import run
from parallel.training_bodies import (
    LR,
    SCALES,
    SHAPES,
    STEPS,
    drawn,
    routed,
    row_factors,
    whole_gradient,
    zero_cases,
    zero_run,
)
from torch import Tensor, nn

from fathom.kernels.adamw import AdamW
from fathom.kernels.muon import Muon, plain_update
from fathom.parallel.matrices import matrix_shape
from fathom.parallel.mesh import Layout, single
from fathom.parallel.zero import Zero1, square_sum

CPU = torch.device("cpu")


def unsharded(
    ranks: int, moments: torch.dtype, ema: float | None, muon: bool = False
) -> tuple[dict[str, Tensor], list[float]]:
    """The rule, tensor by tensor: final state by piece names, and the squared norm of every step."""
    optim = AdamW(weight_decay=0.1, moments=moments)
    state: dict[str, Tensor] = {}
    squares = [0.0] * STEPS
    for name in SHAPES:
        w = drawn(name, 0)
        m, v = torch.zeros(2, w.numel(), dtype=moments)
        average = w.flatten().clone()
        for step in range(STEPS):
            g = whole_gradient(name, step, ranks)
            squares[step] += float(g.double().square().sum())
            flat = w.view(-1)
            if muon and (shape := matrix_shape(name, w.shape)):
                matrices = (x.view(-1, *shape) for x in (w, g * SCALES[step], m))
                for one in zip(*matrices, strict=True):
                    plain_update(*one, lr=LR, momentum=0.95, weight_decay=0.1)
            else:
                optim.update(flat, g.view(-1), m, v, lr=LR, step=step + 1, decay=w.dim() >= 2, scale=SCALES[step])
            if (rows := row_factors(step).get(name)) is not None:
                w *= rows[:, None]
            if ema:
                average = ema * average + (1 - ema) * flat
        state |= {f"model.{name}": w, f"optim.{name}.m": m}
        if not (muon and matrix_shape(name, w.shape)):
            state[f"optim.{name}.v"] = v
        if ema:
            state[f"ema.{name}"] = average
    return state, squares


def check(ranks: list[dict[str, Any]], moments: torch.dtype, ema: float | None, muon: bool = False) -> None:
    expected, squares = unsharded(len(ranks), moments, ema, muon)
    found = {name: torch.full((t.numel(),), float("nan"), dtype=t.dtype) for name, t in expected.items()}
    covered = {name: torch.zeros(t.numel(), dtype=torch.int64) for name, t in expected.items()}
    for rank in ranks:
        assert rank["squares"] == pytest.approx(squares, rel=1e-7)
        assert rank["same after loading"]
        for name, whole, start, data in rank["pieces"]:
            assert whole == SHAPES[name.split(".", 1)[1].removesuffix(".m").removesuffix(".v")]
            found[name][start : start + len(data)] = data
            covered[name][start : start + len(data)] += 1
    for name, tensor in expected.items():
        assert (covered[name] == 1).all(), f"{name}: every element once"
        if muon and not name.endswith(".v"):  # sums in another order than the definition's
            torch.testing.assert_close(found[name], tensor.view(-1), rtol=1e-5, atol=1e-6)
        elif name.startswith("ema."):
            torch.testing.assert_close(found[name], tensor.view(-1), rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(found[name], tensor.view(-1)), name


@pytest.mark.parametrize("layout", [Layout(data=2), Layout(data=2, expert=2), Layout(data=4, expert=2)])
def test_ranks_make_the_bits_of_the_rule(layout: Layout, tmp_path: Path) -> None:
    ended = run(layout.world, zero_cases, layout, folder=tmp_path)
    assert [rank.code for rank in ended.values()] == [0] * layout.world, ended
    for case, (moments, ema) in enumerate([(torch.float32, 0.75), (torch.bfloat16, None)]):
        ranks = [rank.value[case] for rank in ended.values()]
        check(ranks, moments, ema)
        expected, _ = unsharded(layout.world, moments, ema)
        for index, rank in enumerate(ranks):
            for name, weight in rank["weights"].items():
                whole = expected[f"model.{name}"]
                own = whole.chunk(layout.expert)[index % layout.expert] if routed(name) else whole
                assert torch.equal(weight, own), f"{name}: every rank has all the weights again"
                if ema:
                    own = expected[f"ema.{name}"].view(whole.shape)
                    own = own.chunk(layout.expert)[index % layout.expert] if routed(name) else own
                    torch.testing.assert_close(rank["swapped"][name], own, rtol=1e-6, atol=1e-7)
    ranks = [rank.value[2] for rank in ended.values()]  # Muon: slices end inside of matrices here
    check(ranks, torch.float32, 0.75, muon=True)
    for index, rank in enumerate(ranks):
        same = ranks[index % layout.expert]["weights"]
        assert all(torch.equal(weight, same[name]) for name, weight in rank["weights"].items())


@pytest.mark.parametrize(("moments", "ema"), [(torch.float32, 0.75), (torch.bfloat16, None)])
def test_one_process(moments: torch.dtype, ema: float | None) -> None:
    check([zero_run(single(CPU), moments, ema)], moments, ema)


def test_muon_in_one_process() -> None:
    check([zero_run(single(CPU), torch.float32, 0.75, Muon())], torch.float32, 0.75, muon=True)


def make(tensors: dict[str, Tensor], **options: Any) -> tuple[Zero1, dict[str, nn.Parameter]]:
    parameters = {name: nn.Parameter(t) for name, t in tensors.items()}
    return Zero1(parameters, single(CPU), AdamW(), routed=routed, **options), parameters


def test_gains_do_not_decay() -> None:
    zero, parameters = make({"matrix": torch.ones(4, 4), "gain": torch.ones(4)})
    zero.reduce()
    zero.step(lr=0.5)
    assert torch.equal(parameters["gain"], torch.ones(4))
    torch.testing.assert_close(parameters["matrix"].detach(), torch.full((4, 4), 1 - 0.5 * 0.1))


def test_what_another_stage_counts() -> None:
    tensors = {"embed": torch.ones(3, 5), "own": torch.ones(2, 2)}
    zero, parameters = make(tensors, shared={"embed"}, shared_elsewhere={"embed"})
    for parameter in parameters.values():
        (parameter.sum() * 2).backward()
    zero.reduce()
    assert float(zero.square_sum()) == 4 * 4
    assert {p.name for p in zero.pieces()} == {"model.own", "optim.own.m", "optim.own.v"}
    assert {p.name for p in zero.pieces(loading=True)} > {"model.embed", "model.own"}
    zero.step(lr=0.1)
    assert (parameters["embed"] < 1).all(), "counted elsewhere, but updated here"
    counted, parameters = make(tensors, shared={"embed"})
    assert len(counted.buckets) == len(zero.buckets) == 2, "the same layout on both stages"


def test_a_replaced_gradient_is_noticed() -> None:
    zero, parameters = make({"w": torch.ones(2, 2)})
    parameters["w"].grad = torch.ones(2, 2)
    with pytest.raises(AssertionError, match="a gradient was replaced"):
        zero.reduce()
    zero.zero_grad()
    zero.reduce()


@pytest.mark.parametrize("n", [0, 5, 1024, 100_003])
def test_square_sum(n: int) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(n)) * 3 + 1
    assert float(square_sum(x)) == pytest.approx(float(x.double().square().sum()), rel=1e-7)
