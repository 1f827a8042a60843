"""Skipped spikes and the growing batch, through the trainer: what a step does, what is logged, what a resume needs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import make_config, make_data, make_model
from torch import Tensor

from fathom.checkpoint.store import read_whole
from fathom.runtime import UserError
from fathom.text.dataset import Batch, PackedDataset
from fathom.train.loop import Trainer, clip_scale, ramp_of

STEPS, SPIKE = 34, 26  # the guard compares from its 20th step on
CHANGES: dict[str, Any] = {
    "run.steps": STEPS, "run.checkpoint_every": 24, "run.spike_factor": 2.5, "run.keep_checkpoints": 5,
    "data.micro_rows": 8,
}  # fmt: skip


class OneBadBatch:
    """The run's data, but in step SPIKE every token is followed by the same one: twice the usual gradient."""

    def __init__(self, data: PackedDataset, bad: int | None) -> None:
        self.data, self.bad = data, bad

    def batch(self, step: int) -> Batch:
        batch = self.data.batch(step)
        if step != self.bad:
            return batch
        return Batch(batch.tokens, torch.full_like(batch.labels, 127))


def trainer_in(out: Path, bad: int | None = SPIKE, **changes: Any) -> Trainer:
    torch.set_flush_denormal(True)  # as train() does
    config = make_config(out, CHANGES | changes)
    return Trainer(config, make_model(config), OneBadBatch(make_data(config), bad))


def state(out: Path, step: int) -> dict[str, Tensor]:
    return dict(read_whole(out / "checkpoints" / f"step-{step:08d}"))


def log(out: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("tokens_per_second", "flops_share")} for r in records]


@pytest.fixture(scope="module")
def skipping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one bad batch that is skipped."""
    out = tmp_path_factory.mktemp("skipping") / "run"
    torch.set_num_threads(1)
    trainer_in(out).train()
    torch.set_flush_denormal(False)
    return out


def test_a_spike_changes_nothing_and_the_run_goes_on(skipping: Path) -> None:
    records = log(skipping)
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    assert [r["step"] for r in records if r.get("skipped")] == [SPIKE + 1]
    spike, before, after = records[SPIKE], records[SPIKE - 1], records[SPIKE + 1]
    assert spike["loss"] > 1.15 * before["loss"] and after["loss"] < 1.05 * before["loss"]
    assert spike["gamma"] == 0.0 and before["gamma"] == 0.01


def test_weights_moments_and_biases_stay(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    while trainer.step_done < SPIKE:
        trainer.step()
    kept = {piece.name: piece.data.clone() for piece in trainer.pieces()}
    updates, tokens = trainer.zero.steps, trainer.tokens
    assert trainer.step()["skipped"]
    assert all(torch.equal(piece.data, kept[piece.name]) for piece in trainer.pieces())
    assert trainer.zero.steps == updates and trainer.tokens == tokens + 8 * 16 and trainer.guard.skipped == 1
    assert not any(p.grad.any() for p in trainer.model.parameters())
    trainer.step()
    assert not all(torch.equal(piece.data, kept[piece.name]) for piece in trainer.pieces())
    trainer.store.wait()


def test_without_a_factor_the_batch_does_harm(skipping: Path, tmp_path: Path) -> None:
    """Otherwise nothing would have been shown."""
    trainer = trainer_in(tmp_path, **{"run.spike_factor": 0.0})
    records = [trainer.step() for _ in range(SPIKE + 2)]
    assert not any("skipped" in r for r in records)
    mine, theirs = log(tmp_path), log(skipping)
    assert mine[: SPIKE + 1] == [{k: v for k, v in r.items() if k != "skipped"} | extra for r, extra in
                                 zip(theirs[: SPIKE + 1], [{}] * SPIKE + [{"gamma": 0.01}], strict=True)]  # fmt: skip
    assert mine[SPIKE + 1]["loss"] != theirs[SPIKE + 1]["loss"]
    trainer.store.wait()


def test_a_resumed_guard_skips_the_same_step(skipping: Path, tmp_path: Path) -> None:
    """Stopped at step 24, two steps before the spike, with a new guard that has seen nothing of its own."""
    first = trainer_in(tmp_path)
    while first.step_done < 24:
        first.step()
    first.store.wait()
    trainer_in(tmp_path).train()
    assert log(tmp_path) == log(skipping)
    mine, theirs = state(tmp_path, STEPS), state(skipping, STEPS)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_nan_is_skipped_and_too_many_end_the_run(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, None)
    trainer.guard.limit = 2
    with torch.no_grad():
        trainer.model.lm_head.weight[0, 0] = float("nan")
    assert trainer.step()["skipped"] and trainer.step()["skipped"]
    with pytest.raises(UserError, match="3 spikes in a row"):
        trainer.step()


# ---- batch ramp


def test_the_batch_grows(tmp_path: Path) -> None:
    """Rows, positions of the schedules, tokens; a resumed run sees the rows that an uninterrupted one sees."""
    changes = {
        "data.ramp_from_rows": 2, "data.ramp_tokens": 24 * 16, "data.micro_rows": 2, "run.steps": 12,
        "run.checkpoint_every": 3, "run.spike_factor": 0.0, "balance.mtp_late_fraction": 0.5,
    }  # fmt: skip
    whole = trainer_in(tmp_path / "whole", None, **changes)
    whole.train()
    records = log(tmp_path / "whole")
    rows = [r["rows"] for r in records]
    ramp = ramp_of(whole.config, 1)
    assert rows == [ramp.rows(step) for step in range(12)]
    assert rows[0] == 2 and rows[-1] == 8 and rows == sorted(rows) and 4 in rows and not any(n % 2 for n in rows)
    assert [r["tokens"] for r in records] == [16 * sum(rows[: i + 1]) for i in range(12)]
    late = [r["mtp_lambda"] for r in records].index(0.1)  # at half of the rows, not of the steps
    assert sum(rows[:late]) >= sum(rows) / 2 > sum(rows[: late - 1]) and late > 6
    stopped = trainer_in(tmp_path / "stopped", None, **changes)
    while stopped.step_done < 3:
        stopped.step()
    stopped.store.wait()
    trainer_in(tmp_path / "stopped", None, **changes).train()
    assert log(tmp_path / "stopped") == records
    mine, theirs = state(tmp_path / "stopped", 12), state(tmp_path / "whole", 12)
    assert all(torch.equal(mine[n], theirs[n]) for n in theirs)


def test_the_ramp_is_the_recipes_and_not_the_layouts(tmp_path: Path) -> None:
    """A run that goes on with more data ranks sees the same rows."""
    changes = {"data.batch_rows": 16, "data.micro_rows": 1, "data.ramp_from_rows": 4, "data.ramp_tokens": 8000}
    one, four = (ramp_of(make_config(tmp_path, changes), ranks) for ranks in (1, 4))
    assert [one.rows(s) for s in range(150)] == [four.rows(s) for s in range(150)] and {4, 8, 12, 16} == {
        one.rows(s) for s in range(150)
    }
    fine = make_config(tmp_path, changes | {"data.ramp_rows_step": 2})
    assert {ramp_of(fine, 2).rows(s) for s in range(150)} == {4, 6, 8, 10, 12, 14, 16}
    with pytest.raises(UserError, match=r"grows by 2 rows .*ramp_rows_step"):
        ramp_of(fine, 4)
    with pytest.raises(UserError, match="4 rows is no multiple of 3, by which it grows"):
        ramp_of(make_config(tmp_path, changes | {"data.ramp_rows_step": 3}), 1)


def test_a_signal_after_the_last_step_is_not_lost(tmp_path: Path) -> None:
    """Whatever comes after this run (a phase, an export) must not begin."""
    trainer = trainer_in(tmp_path, None, **{"run.steps": 3})
    trainer.tick = lambda: os.kill(os.getpid(), signal.SIGTERM) if trainer.step_done == 3 else None
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.step_done == 3 and trainer.store.latest() == 3


def test_a_limit_of_zero_clips_nothing(tmp_path: Path) -> None:
    assert clip_scale(1.0, 4.0) == pytest.approx(0.25) and clip_scale(1.0, 0.5) == clip_scale(0.0, 4.0) == 1.0


def test_rows_must_divide_over_the_ranks(tmp_path: Path) -> None:
    config = make_config(tmp_path, {"data.micro_rows": 4})
    assert ramp_of(config, 2).rows(0) == 8
    with pytest.raises(UserError, match=r"batch_rows 8.*micro_rows 4 x 4 data ranks"):
        ramp_of(config, 4)
