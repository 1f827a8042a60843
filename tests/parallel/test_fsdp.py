"""FSDP2 is the same training as ZeRO-1: the same bits on two ranks, also where layers add gradients by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel.distributed import run
from parallel.expert_bodies import LENGTH, V3
from parallel.fsdp_bodies import CASES, both, make, steps
from torch import Tensor

from fathom.parallel.fsdp import check_fsdp2
from fathom.parallel.mesh import Layout, single
from fathom.runtime import UserError


def assembled(ranks: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Whole tensors from everybody's pieces, each element exactly once."""
    out: dict[str, Tensor] = {}
    covered: dict[str, Tensor] = {}
    for rank in ranks:
        for name, shape, start, data in rank["pieces"]:
            covered.setdefault(name, torch.zeros(shape.numel(), dtype=torch.int64))[start : start + len(data)] += 1
            out.setdefault(name, torch.empty(shape.numel()))[start : start + len(data)] = data
    assert all((count == 1).all() for count in covered.values())
    return out


def test_two_ranks_equal_zero(tmp_path: Path) -> None:
    ended = run(2, both, 2, folder=tmp_path, limit=240.0)
    assert [rank.code for rank in ended.values()] == [0, 0], ended
    for number, case in enumerate(CASES):
        zero = assembled([rank.value[number]["zero1"] for rank in ended.values()])
        fsdp = assembled([rank.value[number]["fsdp2"] for rank in ended.values()])
        names = {name for name, _ in make(case[0], False).named_parameters()}
        assert {name.removeprefix("model.") for name in fsdp if name.startswith("model.")} == names
        assert zero.keys() == fsdp.keys()
        one_sum = case[2] > 1  # one micro-batch: the same terms in the same order; two are added over ranks first
        for name, tensor in zero.items():
            assert torch.equal(fsdp[name], tensor) or not one_sum, f"{name} in case {number}"
        alone = steps("zero1", single(torch.device("cpu")), *case)
        for rank in ended.values():
            a, b = rank.value[number]["fsdp2"], rank.value[number]["zero1"]
            assert a["squares"] == pytest.approx(alone["squares"], rel=1e-4)
            assert a["losses"] == pytest.approx(alone["losses"], rel=1e-5)
            for key in ("now", "averaged", "empty"):
                assert a[key] == b[key] if one_sum else a[key] == pytest.approx(b[key], rel=1e-3)
            assert a["now"] != a["averaged"]
            depths = range(case[0].num_nextn_predict_layers)
            counted = 2 * (LENGTH - 1) + 2 * sum(0.3 * (LENGTH - 2 - depth) for depth in depths)
            assert a["empty"] == pytest.approx(math.log(V3.vocab_size) * counted / (4 * (LENGTH - 1)), rel=1e-5)


@pytest.mark.parametrize(
    ("layout", "why"),
    [
        (Layout(pipeline=2, data=2), "parallel.pipeline is 2"),
        (Layout(data=2, expert=2), "parallel.expert is 2"),
        (Layout(), "parallel.data is 1"),
    ],
)
def test_what_it_does_not_do(layout: Layout, why: str) -> None:
    with pytest.raises(UserError, match=f'"fsdp2" cannot be used, {why}: .*; use "zero1"'):
        check_fsdp2(layout)
