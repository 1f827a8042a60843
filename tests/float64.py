"""A float64 run of the same model as judge between two FP32 paths: neither has the right to be the other's measure."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fathom.model.transformer import DeepseekV3

FACTOR = 4.0  # another order of sums may double the rounding; a wrong term is a thousand times larger


@torch.no_grad()
def exact_logits(model: DeepseekV3, tokens: list[int]) -> Tensor:
    """[T, V]: the naive forward with weights and activations in float64."""
    judge = copy.deepcopy(model).to_dtype(torch.float64)
    return judge.lm_head(judge.hidden(torch.tensor([tokens]), attention="naive"))[0]


def assert_as_near(have: Tensor, plain: Tensor, exact: Tensor) -> None:
    """`have` is as near to `exact` as the plain FP32 path is, but for a small factor; both errors are root mean squares
    and largest values over all logits."""
    for measure in (lambda x: float(x.square().mean().sqrt()), lambda x: float(x.abs().max())):
        error, allowed = measure(have.double() - exact), measure(plain.double() - exact)
        assert 0 < allowed < 1e-3 * float(exact.std()), "the plain path is no FP32 path of this model"
        assert error <= FACTOR * allowed, f"{error:.2e} from float64, the plain path {allowed:.2e}"
