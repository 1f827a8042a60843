"""Runs whose length is not known beforehand: a decay that starts at a checkpoint is the one planned from the start, bit
for bit; a finished run goes on; what contradicts steps that were taken is refused.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import make_config, make_data, make_trainer

from fathom.checkpoint.store import read_whole
from fathom.runtime import UserError
from fathom.text.ramp import Ramp
from fathom.train import schedules
from fathom.train.config import BalanceConfig, OptimConfig, TrainConfig
from fathom.train.loop import ramp_of
from fathom.train.pretrain import Staged

RAMP = {"data.batch_rows": 16, "data.ramp_from_rows": 4, "data.ramp_tokens": 16 * 12 * 10}
OPEN = {"run.steps": 1000, "optim.decay_fraction": 0.0, "run.checkpoint_every": 4, "optim.kind": "muon"}


def assert_same(out: Path, whole: Path, step: int) -> None:
    one, other = (dict(read_whole(folder / f"checkpoints/step-{step:08d}")) for folder in (out, whole))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def train_until(config: TrainConfig, until: int) -> None:
    torch.set_flush_denormal(True)  # as train() does
    trainer = make_trainer(config)
    trainer._claim_folder()
    trainer.model.train()
    while trainer.step_done < until:
        trainer.step()
    trainer.store.wait()


@pytest.mark.parametrize("ramp", [{}, RAMP], ids=["", "ramp"])
def test_a_decay_from_a_checkpoint_is_the_one_planned_from_the_start(ramp: dict[str, Any], tmp_path: Path) -> None:
    train_until(make_config(tmp_path / "run", OPEN | ramp), 8)
    last = {"run.steps": 12, "optim.decay_start": 8}
    with pytest.raises(UserError, match=r"taken 8 steps.*mtp_lambda 0\.3 and would have 0\.1; choose"):
        make_trainer(make_config(tmp_path / "run", OPEN | ramp | last | {"balance.mtp_late_fraction": 0.4})).train()
    changes = OPEN | ramp | last | {"balance.mtp_late_fraction": 0.99, "balance.gamma_stop_fraction": 0.99}
    make_trainer(make_config(tmp_path / "run", changes)).train()
    planned = make_trainer(make_config(tmp_path / "planned", changes))
    planned.train()
    assert planned.step_done == 12
    assert_same(tmp_path / "run", tmp_path / "planned", 12)
    rates = [schedules.at(s, 12, planned.ramp, planned.config.optim, planned.config.balance).lr for s in range(12)]
    assert len(set(rates[5:9])) == 1 and rates[8] > rates[9] > rates[10] > rates[11] > planned.config.optim.final_lr


def test_a_finished_run_takes_more_steps(tmp_path: Path) -> None:
    """The fractions count from the new end: nothing that was done may move, and nothing does here."""
    short = {"run.steps": 6, "optim.decay_fraction": 0.0, "balance.mtp_late_fraction": 1.0,
             "balance.gamma_stop_fraction": 1.0, "run.checkpoint_every": 3}  # fmt: skip
    make_trainer(make_config(tmp_path / "run", short)).train()
    long = short | {"run.steps": 9, "optim.decay_fraction": 0.2, "balance.mtp_late_fraction": 0.8}
    make_trainer(make_config(tmp_path / "run", long)).train()
    make_trainer(make_config(tmp_path / "whole", long)).train()
    assert_same(tmp_path / "run", tmp_path / "whole", 9)
    with pytest.raises(UserError, match=r"run.steps is 8.* has taken 9 steps"):
        make_trainer(make_config(tmp_path / "run", long | {"run.steps": 8})).train()
    with pytest.raises(UserError, match=r"\(run.steps\): step 9 had learning rate .* and would have 0.005"):
        make_trainer(make_config(tmp_path / "run", long | {"run.steps": 30})).train()


def config(**changes: Any) -> TrainConfig:
    tables: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        table, name = key.split("__")
        tables.setdefault(table, {})[name] = value
    return TrainConfig.from_dict(tables)


@pytest.mark.parametrize(
    ("old", "new", "done", "words"),
    [
        ({"run__steps": 100}, {"run__steps": 200}, 68, ""),
        ({"run__steps": 100}, {"run__steps": 200}, 69, "step 69 had mtp_lambda 0.1 and would have 0.3"),
        ({"optim__decay_fraction": 0.3}, {"optim__decay_start": 600}, 600, ""),
        ({"optim__decay_fraction": 0.3}, {"optim__decay_start": 600}, 602, "step 602 had learning rate 0.00022"),
        ({"optim__decay_start": 600}, {"optim__decay_start": 700}, 601, ""),
        ({"optim__decay_start": 600}, {"optim__final_lr": 0.0, "optim__decay_start": 600}, 601, ""),
        ({"optim__decay_start": 600}, {"optim__final_lr": 0.0, "optim__decay_start": 600}, 602, "learning rate"),
        ({"balance__gamma_stop_fraction": 0.5}, {"balance__gamma_stop_fraction": 0.6}, 500, ""),
        ({"balance__gamma_stop_fraction": 0.5}, {"balance__gamma_stop_fraction": 0.6}, 501, "step 501 had gamma 0"),
        ({"data__long_length": 1024}, {"data__long_length": 1024, "data__long_fraction": 0.2}, 800, ""),
        ({"data__long_length": 1024}, {"data__long_length": 1024, "data__long_fraction": 0.2}, 801, "another length"),
    ],
)  # fmt: skip
def test_what_contradicts_the_past(old: dict[str, Any], new: dict[str, Any], done: int, words: str) -> None:
    late = {"balance__mtp_late_fraction": 1.0} if "run__steps" not in old else {}
    before, after = config(**late | old), config(**late | new)
    found = schedules.contradiction(before, after, done, Ramp(16))
    assert words in found and bool(found) == bool(words)


def test_the_decay_counts_steps_also_in_a_ramp() -> None:
    """decay_start is a step; how far the decay has come is counted in tokens, as everything."""
    c = make_config("x", RAMP | {"run.steps": 40, "optim.decay_start": 20})
    ramp = ramp_of(c, 1)
    assert ramp.first_row(20) != 20 * ramp.end
    rates = [schedules.at(s, 40, ramp, c.optim, BalanceConfig()).lr for s in range(41)]
    assert len(set(rates[5:21])) == 1 and rates[21] < rates[20] and rates[40] == pytest.approx(c.optim.final_lr)
    half = dataclasses.replace(OptimConfig(warmup_steps=0), decay_start=500)
    middle = schedules.at(750, 1000, Ramp(8), half, BalanceConfig()).lr
    assert middle == pytest.approx((half.peak_lr + half.final_lr) / 2)


def test_long_rows_follow_the_runs_end() -> None:
    c = make_config("x", {"data.long_length": 32, "data.long_fraction": 0.25, "run.steps": 40})
    assert schedules.long_start(c) == 30
    short, long = make_data(c), make_data(dataclasses.replace(c, run=dataclasses.replace(c.run, seed=9)))
    staged = Staged(short, long, schedules.long_start(c))
    assert torch.equal(staged.batch(29).tokens, short.batch(29).tokens)
    assert torch.equal(staged.batch(30).tokens, long.batch(30).tokens)
