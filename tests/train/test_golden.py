"""The loss curve of the tiny run is the stored one; see make_golden.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from make_golden import CURVES, GOLDEN, STEPS, curves
from tiny_run import RUN

from fathom.runtime import read_json

TOLERANCE = 1e-4  # relative; FP32 round-off of another CPU stays below, a change of the arithmetic does not


def worst(mine: dict[str, Any], golden: dict[str, Any], name: str = "loss") -> float:
    a, b = np.array(mine[name]), np.array(golden[name])[: len(mine[name])]
    return float(np.abs(a / b - 1).max())


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    stored: dict[str, Any] = read_json(GOLDEN)
    return stored


def test_loss_curve(golden: dict[str, Any]) -> None:
    mine = curves()
    assert len(mine["loss"]) == len(golden["loss"]) == STEPS and mine["loss"][-1] < 0.85 * mine["loss"][0]
    for name in ("loss", "mtp_loss"):
        assert worst(mine, golden, name) < TOLERANCE
    assert worst(mine, golden, "grad_norm") < 10 * TOLERANCE
    assert set(CURVES) | {"origin"} == set(golden) and golden["origin"]["run"] == RUN


@pytest.mark.parametrize(
    "change",
    [{"balance.gamma": 0.0}, {"balance.alpha": 0.0}, {"balance.mtp_lambda": 0.25}, {"optim.weight_decay": 0.0},
     {"optim.beta2": 0.96}, {"optim.clip_norm": 1.6}, {"run.seed": 4}],
)  # fmt: skip
def test_the_tolerance_catches_a_change(golden: dict[str, Any], change: dict[str, Any]) -> None:
    """A test that cannot fail proves nothing: each part of the loss and of the step shows in the curve, and early."""
    assert worst(curves(change, STEPS // 2), golden) > TOLERANCE
