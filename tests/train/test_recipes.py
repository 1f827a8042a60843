"""The report's recipes: they parse, every value has a source, and the published ones are right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fathom.model.cost import parameters
from fathom.plan.job import Job
from fathom.plan.timing import DEVICES
from fathom.plan.training import plan
from fathom.text.ramp import Ramp
from fathom.train import schedules
from fathom.train.config import TrainConfig
from fathom.train.loop import ramp_of

RECIPES = Path(__file__).parents[2] / "recipes"
REPORTED = ("v3-671b", "small-moe-16b")  # what comes from a report must say from where


def load(name: str) -> TrainConfig:
    return TrainConfig.from_toml(RECIPES / f"{name}.toml")


def ramp(c: TrainConfig) -> Ramp:
    return ramp_of(c, max(c.parallel.data, 1))


def tokens(c: TrainConfig) -> int:
    return ramp(c).first_row(c.run.steps) * c.data.sequence_length


@pytest.mark.parametrize("name", REPORTED)
def test_every_value_names_its_source(name: str) -> None:
    lines = (RECIPES / f"{name}.toml").read_text().splitlines()
    values = [line for line in lines if re.match(r"\w+ *=", line)]
    assert len(values) > 30
    for line in values:
        comment = line.partition(" # ")[2].strip()
        assert re.search(r"\(ours\)|report (\d|B)", comment), line


@pytest.mark.parametrize("name", REPORTED)
def test_they_can_be_planned(name: str) -> None:
    c = load(name)
    schedules.check_tail(c.optim.tail, c.optim.decay_fraction)
    job = Job.from_recipe(c.model_config(), c.to_dict(), tokens=tokens(c))
    p = plan(job, DEVICES["h800"])
    assert p["layout"]["gemm"] == "fp8" and p["layout"]["devices"] == job.world
    assert c.model_config().rope_scaling is None  # YaRN comes with the extension


def test_v3() -> None:
    c = load("v3-671b")
    total, steps, rows = 14.8e12, c.run.steps, ramp(c)
    assert parameters(c.model_config()).total == 671_026_419_200
    assert total <= tokens(c) < total + 15360 * 4096

    def now(at: float) -> schedules.Now:
        return schedules.at(schedules.steps_for(rows, int(at / 4096)), steps, rows, c.optim, c.balance)

    assert now(0).rows == 3072 and now(0.47e12).rows == 15360
    assert now(0.126e12).lr == now(9.99e12).lr == 2.2e-4  # facts 9.a, item 8
    assert now(12.15e12).lr == pytest.approx((2.2e-4 + 2.2e-5) / 2, rel=1e-3)
    assert now(14.301e12).lr == now(14.63e12).lr == 2.2e-5
    assert now(14.634e12).lr == now(14.79e12).lr == 7.3e-6
    assert (now(14.29e12).gamma, now(14.31e12).gamma) == (0.001, 0.0)
    assert (now(9.99e12).mtp_lambda, now(10.01e12).mtp_lambda) == (0.3, 0.1)
    # the batch may spread over twice the data ranks once it has grown, as [parallel] says, and sees the same rows
    wide = ramp_of(c, 128)
    assert all(wide.rows(s) == rows.rows(s) for s in range(0, rows.steps + 9, 7))
    # dualpipev wants two micro-batches per rank, also of the first and smallest batch
    assert now(0).rows / (c.parallel.data * c.data.micro_rows) >= 2 * c.parallel.pipeline


def test_the_small_ablation() -> None:
    c = load("small-moe-16b")
    count = parameters(c.model_config())
    assert count.total / 1e9 == pytest.approx(15.7, abs=0.05) and count.mtp == 0
    assert count.activated / 1e9 == pytest.approx(2.4, abs=0.06)
    assert c.model_config().has_router_bias and c.model_config().scoring_func == "sigmoid"
    assert tokens(c) == pytest.approx(1.33e12, rel=1e-5)
    steps, rows = c.run.steps, ramp(c)
    rates = [schedules.at(int(steps * x), steps, rows, c.optim, c.balance).lr for x in (0.5, 0.79, 0.81, 0.89, 0.91)]
    assert rates == pytest.approx([4.2e-4, 4.2e-4, 4.2e-4 * 0.316, 4.2e-4 * 0.316, 4.2e-4 * 0.316**2])
