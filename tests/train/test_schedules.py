"""The report's values at the report's token counts; today's schedule bit for bit; borders."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest

from fathom.runtime import UserError
from fathom.text.ramp import Ramp
from fathom.train import schedules
from fathom.train.config import BalanceConfig, OptimConfig

T, B = 10**12, 10**9
V3: dict[str, Any] = dict(
    peak_lr=2.2e-4, final_lr=2.2e-5, warmup_steps=2000, decay_fraction=4.3 / 14.8,
    tail=[[0.333 / 14.8, 2.2e-5], [0.167 / 14.8, 7.3e-6]],
)  # fmt: skip
V3_RAMP = Ramp(15360, start=3072, over=469 * B, length=4096, multiple=128)


def v3_lr(tokens: float) -> float:
    full = 15360 * 4096
    return schedules.learning_rate(10**6, tokens / full, 14.8 * T / full, **V3)


@pytest.mark.parametrize(
    ("tokens", "rate"),
    [(0.126 * T, 2.2e-4), (5 * T, 2.2e-4), (9.999 * T, 2.2e-4), (14.301 * T, 2.2e-5), (14.6 * T, 2.2e-5),
     (14.634 * T, 7.3e-6), (14.799 * T, 7.3e-6), (15 * T, 7.3e-6)],
)  # fmt: skip
def test_the_reports_constants(tokens: float, rate: float) -> None:
    assert v3_lr(tokens) == rate


def test_the_reports_cosine() -> None:
    assert v3_lr(12.15 * T) == pytest.approx((2.2e-4 + 2.2e-5) / 2)  # half-way
    quarter = 2.2e-5 + (2.2e-4 - 2.2e-5) * (1 + math.cos(math.pi / 4)) / 2
    assert v3_lr((10 + 4.3 / 4) * T) == pytest.approx(quarter)
    values = [v3_lr(x * T / 10) for x in range(100, 149)]
    assert all(a >= b for a, b in itertools.pairwise(values)) and v3_lr(14.2999 * T) == pytest.approx(2.2e-5, rel=1e-6)


def test_the_reports_warm_up() -> None:
    assert [schedules.learning_rate(s, s, 240_000, **V3) for s in (0, 999, 1999, 2000)] == pytest.approx(
        [1.1e-7, 1.1e-4, 2.2e-4, 2.2e-4]
    )


def reference(c: OptimConfig, step: int, steps: int) -> float:
    """The schedule as the first trainer had it."""
    if step < c.warmup_steps:
        return c.peak_lr * (step + 1) / c.warmup_steps
    decay_start = steps * (1 - c.decay_fraction)
    if step < decay_start:
        return c.peak_lr
    done = min((step - decay_start) / max(steps - decay_start, 1), 1.0)
    return c.final_lr + (c.peak_lr - c.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


@pytest.mark.parametrize(("warmup", "fraction"), [(10, 0.4), (0, 0.0), (0, 1.0), (50, 1.0), (200, 0.5), (1, 0.001)])
def test_without_tail_and_ramp_nothing_changed(warmup: int, fraction: float) -> None:
    """Bit for bit, or a resumed run would not be the run it was."""
    c = OptimConfig(peak_lr=2.2e-4, final_lr=2.2e-5, warmup_steps=warmup, decay_fraction=fraction)
    for steps, rows in ((100, 8), (333, 7)):
        ramp = Ramp(rows, length=16)
        for step in (*range(steps + 1), 2 * steps):
            assert schedules.at(step, steps, ramp, c, BalanceConfig()).lr == reference(c, step, steps)


def test_gamma_and_lambda_switch_where_the_report_says() -> None:
    b = BalanceConfig()
    steps = schedules.steps_for(V3_RAMP, math.ceil(14.8 * T / 4096))
    assert 14.8 * T <= V3_RAMP.first_row(steps) * 4096 < 14.8 * T + 15360 * 4096
    assert V3_RAMP.first_row(steps - 1) * 4096 < 14.8 * T
    # a ramp linear in tokens takes 469B / (4096 * (15360 - 3072)) * ln(15360 / 3072) steps, about 15 thousand
    assert V3_RAMP.steps == pytest.approx(469 * B / 4096 / 12288 * math.log(5), rel=0.015)
    assert steps == pytest.approx(V3_RAMP.steps + (14.8 * T - 469 * B) / (15360 * 4096), abs=3)
    optim = dataclasses.replace(OptimConfig(), warmup_steps=2000)

    def now(tokens: float) -> schedules.Now:
        return schedules.at(schedules.steps_for(V3_RAMP, int(tokens / 4096)), steps, V3_RAMP, optim, b)

    assert (now(9.9 * T).mtp_lambda, now(10.1 * T).mtp_lambda) == (0.3, 0.1)
    assert (now(14.2 * T).gamma, now(14.4 * T).gamma) == (0.001, 0.0)
    assert now(0).rows == 3072 and now(469.1 * B).rows == 15360 and now(235 * B).rows == pytest.approx(9216, abs=256)


def test_fractions_count_tokens_not_steps() -> None:
    """Half of the tokens of a ramped run are seen after more than half of its steps; that is where lambda changes."""
    ramp = Ramp(16, start=4, over=16 * 10 * 50, length=10, multiple=4)
    steps = 100
    late = BalanceConfig(mtp_late_fraction=0.5)
    first = next(s for s in range(steps) if schedules.at(s, steps, ramp, OptimConfig(), late).mtp_lambda == 0.1)
    assert first > 52
    assert ramp.first_row(first) >= ramp.first_row(steps) / 2 > ramp.first_row(first - 1)


def test_steps_for_is_the_inverse_of_first_row() -> None:
    for ramp in (Ramp(16, start=4, over=3000, length=10, multiple=4), Ramp(8, length=10)):
        for rows in range(0, 700, 3):
            steps = schedules.steps_for(ramp, rows)
            assert ramp.first_row(steps) >= rows and (steps == 0 or ramp.first_row(steps - 1) < rows)


def test_borders_of_the_tail() -> None:
    parts: dict[str, Any] = dict(peak_lr=1.0, final_lr=0.5, warmup_steps=0, tail=[[0.1, 0.2], [0.1, 0.1]])
    rates = [schedules.learning_rate(s, s, 10, decay_fraction=0.0, **parts) for s in range(12)]
    assert rates == [1.0] * 8 + [0.2, 0.1, 0.1, 0.1]  # no cosine: steps down, as V2-Lite's
    falling = [schedules.learning_rate(s, s, 10, decay_fraction=0.8, **parts) for s in range(10)]
    assert falling[0] == 1.0 and falling[4] == 0.75 and falling[8:] == [0.2, 0.1]


@pytest.mark.parametrize(
    ("tail", "fraction", "words"),
    [([[0.5]], 0.0, "fraction of the run"), ([[0.5, "x"]], 0.0, "'x'"), ([[0, 1e-4]], 0.0, r"\[0,"),
     ([[0.1, -1.0]], 0.0, "-1"), ([[0.5, 1e-4], [0.4, 1e-5]], 0.2, "1.1000")],
)  # fmt: skip
def test_wrong_tails(tail: list[list[Any]], fraction: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        schedules.check_tail(tail, fraction)
    schedules.check_tail(V3["tail"], V3["decay_fraction"])


def test_ema_decay_grows_to_its_value() -> None:
    values = [schedules.ema_decay(0.999, step) for step in (0, 10, 100, 10_000)]
    assert values == pytest.approx([0.1, 0.55, 101 / 110, 0.999])
    assert schedules.ema_decay(0.0, 50) == 0.0
