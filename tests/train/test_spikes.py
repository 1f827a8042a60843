"""Which steps are not applied: jumps and NaN, never noise, never a falling loss; and a resumed guard judges alike."""

from __future__ import annotations

import json
import math
import random

import pytest

from fathom.runtime import UserError
from fathom.train.spikes import SpikeGuard


def curve(steps: int, seed: int = 0) -> list[tuple[float, float]]:
    """A loss that falls fast and then slowly, with noise; norms that scatter by a third."""
    r = random.Random(seed)
    return [(2 + 6 * math.exp(-i / 40) + r.gauss(0, 0.02), 1.5 * math.exp(r.gauss(0, 0.3))) for i in range(steps)]


def fed(steps: int, factor: float = 8.0, **options: int) -> SpikeGuard:
    guard = SpikeGuard(factor, **options)
    assert not any(guard.is_spike(*point) for point in curve(steps))
    return guard


@pytest.mark.parametrize("seed", range(5))
def test_an_ordinary_run_has_no_spike(seed: int) -> None:
    guard = SpikeGuard(8.0)
    assert not any(guard.is_spike(*point) for point in curve(600, seed))
    assert guard.skipped == 0


@pytest.mark.parametrize(
    ("loss", "norm"), [(3.5, 1.5), (2.0, 60.0), (math.nan, 1.5), (math.inf, 1.5), (2.0, math.nan), (2.0, math.inf)]
)
def test_a_jump_of_either_is_a_spike(loss: float, norm: float) -> None:
    guard = fed(300)
    assert guard.is_spike(loss, norm) and guard.skipped == 1
    assert not guard.is_spike(2.0, 1.5)


def test_a_drop_is_no_spike() -> None:
    assert not fed(300).is_spike(0.5, 0.01)


def test_a_flat_stretch_does_not_make_noise_a_spike() -> None:
    guard = SpikeGuard(8.0)
    assert not any(guard.is_spike(2.0, 1.0) for _ in range(100))
    assert not guard.is_spike(2.05, 1.6)  # 2.5 % and 60 %: within 8 floors
    assert guard.is_spike(2.09, 1.0)  # 4.5 % of the loss
    assert guard.is_spike(2.0, 2.3)


def test_the_factor_is_the_threshold() -> None:
    jump = (2.0 + 0.02 * 12, 1.5)
    assert fed(400, factor=4.0, window=64).is_spike(*jump)
    assert not fed(400, factor=40.0, window=64).is_spike(*jump)


def test_factor_zero_never_skips() -> None:
    guard = SpikeGuard(0.0)
    assert not any(guard.is_spike(loss, 1.0) for loss in (1.0, math.nan, math.inf, 1e9))
    assert guard.state_dict()["losses"] == []


def test_the_first_steps_are_only_judged_for_nan() -> None:
    guard = SpikeGuard(8.0, least=20)
    assert not guard.is_spike(10.0, 1.0) and not guard.is_spike(50.0, 900.0)
    assert guard.is_spike(math.nan, 1.0)


def test_a_spike_does_not_move_the_medians() -> None:
    guard = fed(300)
    before = guard.state_dict()
    assert guard.is_spike(30.0, 1.5)
    after = guard.state_dict()
    assert (after["losses"], after["norms"]) == (before["losses"], before["norms"])


def test_too_many_in_a_row_end_the_run() -> None:
    guard = fed(300, limit=3)
    assert all(guard.is_spike(9.0, 1.5) for _ in range(3))
    with pytest.raises(UserError, match=r"4 spikes in a row.*the limit is 3.*optim\.peak_lr.*run\.spike_factor"):
        guard.is_spike(9.0, 1.5)
    other = fed(300, limit=3)
    for _ in range(5):  # a good step in between starts the count anew
        assert all(other.is_spike(9.0, 1.5) for _ in range(3))
        assert not other.is_spike(2.0, 1.5)


def test_nan_from_the_start_ends_the_run_too() -> None:
    guard = SpikeGuard(8.0, limit=2)
    assert guard.is_spike(math.nan, math.nan) and guard.is_spike(math.nan, math.nan)
    with pytest.raises(UserError, match="no good step yet"):
        guard.is_spike(math.nan, math.nan)


def test_a_resumed_guard_judges_the_same() -> None:
    points = curve(400)
    for at in (140, 200, 201, 300):
        points[at] = (8.0, 3.0)
    whole = SpikeGuard(8.0, window=50)
    wanted = [whole.is_spike(*p) for p in points]
    assert sum(wanted) == 4
    for cut in (10, 150, 201):
        first = SpikeGuard(8.0, window=50)
        got = [first.is_spike(*p) for p in points[:cut]]
        second = SpikeGuard(8.0, window=50)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        got += [second.is_spike(*p) for p in points[cut:]]
        assert got == wanted and second.state_dict() == whole.state_dict()
