"""Schedule values, who decays, AdamW's own numbers, clipping, the moving average, and how a run that blows up ends."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import make_config, make_data, make_model, make_trainer
from torch import Tensor

from fathom.runtime import UserError
from fathom.text.dataset import Batch
from fathom.train.loop import Nats, Trainer
from fathom.train.schedules import learning_rate


def rates(steps: int, **schedule: Any) -> list[float]:
    """Without a batch ramp `done` is the step."""
    return [learning_rate(step, step, 100, **schedule) for step in range(steps)]


def test_schedule_values() -> None:
    at = rates(502, peak_lr=2.2e-4, final_lr=2.2e-5, warmup_steps=10, decay_fraction=0.4)
    assert at[0] == pytest.approx(2.2e-5) and at[4] == pytest.approx(1.1e-4) and at[9] == pytest.approx(2.2e-4)
    assert set(at[10:61]) == {2.2e-4}  # constant from the end of the warm-up to the start of the decay
    assert at[80] == pytest.approx((2.2e-4 + 2.2e-5) / 2)  # half-way down a cosine
    assert at[70] == pytest.approx(2.2e-5 + (2.2e-4 - 2.2e-5) * (1 + math.cos(math.pi / 4)) / 2)
    assert all(a > b for a, b in itertools.pairwise(at[60:101]))
    assert 2.2e-5 < at[99] < 2.3e-5 and at[100] == pytest.approx(2.2e-5) and at[500] == pytest.approx(2.2e-5)


@pytest.mark.parametrize(("warmup", "fraction"), [(0, 0.0), (0, 1.0), (50, 1.0), (200, 0.5), (1, 0.001)])
def test_schedule_borders(warmup: int, fraction: float) -> None:
    at = rates(100, peak_lr=1.0, final_lr=0.1, warmup_steps=warmup, decay_fraction=fraction)
    assert all(0 < lr <= 1.0 for lr in at)
    if fraction == 0.0:
        assert set(at) == {1.0}


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


def test_matrices_decay_and_gains_do_not(tmp_path: Path) -> None:
    trainer = make_trainer(make_config(tmp_path, {"optim.weight_decay": 0.1}))
    members = {name for bucket in trainer.zero.buckets for name in bucket.spans}
    assert members == set(weights(trainer))  # all of them, and no router bias
    before = weights(trainer)
    trainer.zero.step(lr=0.5, scale=1.0)  # without a gradient
    for name, p in weights(trainer).items():
        if name.endswith("norm.weight"):
            assert torch.equal(p, before[name]), name
        else:
            torch.testing.assert_close(p, before[name] * 0.95, msg=name)
    gains = [n for n, p in before.items() if p.dim() < 2]
    assert gains and all(n.endswith("norm.weight") for n in gains)


@pytest.mark.parametrize("moments", ["fp32", "bf16"])
def test_one_step_is_adamw(tmp_path: Path, moments: str) -> None:
    """Two steps of AdamW by hand, with the recipe's betas, eps and decay; the moments in the recipe's dtype."""
    optim = {"beta1": 0.8, "beta2": 0.9, "eps": 0.5, "weight_decay": 0.2, "moments": moments}
    trainer = make_trainer(make_config(tmp_path, {f"optim.{k}": v for k, v in optim.items()}))
    weight = trainer.model.lm_head.weight
    before = weight.detach().clone()
    for gradient in (1.0, 3.0):  # two steps: the betas show in the second
        weight.grad.fill_(gradient)
        trainer.zero.step(lr=0.01, scale=1.0)
    m, v, wanted = 0.0, 0.0, before
    for t, g in enumerate((1.0, 3.0), 1):
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        wanted = wanted * (1 - 0.01 * 0.2) - 0.01 * (m / (1 - 0.8**t)) / (math.sqrt(v / (1 - 0.9**t)) + 0.5)
    torch.testing.assert_close(weight.detach(), wanted, rtol=1e-6, atol=1e-4 if moments == "bf16" else 1e-7)
    dtypes = {p.data.dtype for p in trainer.pieces() if p.name.startswith("optim.")}
    assert dtypes == {torch.bfloat16 if moments == "bf16" else torch.float32}


def test_gradients_are_clipped(tmp_path: Path) -> None:
    seen: list[float] = []
    for clip in (0.5, 1000.0):
        trainer = make_trainer(make_config(tmp_path / str(clip), {"optim.clip_norm": clip}))
        step = trainer.zero.step

        def spy(*, lr: float, scale: float, rows: Any, model=trainer.model, step=step) -> None:  # type: ignore[no-untyped-def]
            seen.append(float(torch.stack([p.grad.norm() for p in model.parameters()]).norm()) * scale)
            step(lr=lr, scale=scale, rows=rows)

        trainer.zero.step = spy  # type: ignore[method-assign]
        norm = trainer.step()["grad_norm"]
    assert seen[0] == pytest.approx(0.5, rel=1e-4)
    assert norm > 0.5 and seen[1] == pytest.approx(norm, rel=1e-4)  # the log has the norm before clipping


def test_a_run_that_blows_up_stops_before_it_harms_the_weights(tmp_path: Path) -> None:
    trainer = make_trainer(make_config(tmp_path))
    with torch.no_grad():
        trainer.model.lm_head.weight[0, 0] = float("inf")
    before = weights(trainer)
    with pytest.raises(UserError, match=r"gradient norm .* at step 0.*optim\.peak_lr"):
        trainer.step()
    assert all(torch.equal(before[n], p) for n, p in trainer.model.named_parameters())


def test_a_row_longer_than_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.sequence_length 128 .* 64"):
        make_trainer(make_config(tmp_path, {"data.sequence_length": 128}))


def test_the_log_has_the_schedule(tmp_path: Path) -> None:
    trainer = make_trainer(make_config(tmp_path))
    records = [trainer.step() for _ in range(6)]
    assert [r["lr"] for r in records] == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 5e-3])
    assert {(r["gamma"], r["mtp_lambda"], r["rows"]) for r in records} == {(0.01, 0.3, 8)}
    assert trainer.step_done == 6 and trainer.tokens == records[-1]["tokens"] == 6 * 8 * 16
    assert make_data(trainer.config).batch(0).tokens.shape == (8, 16)


# ---- the moving average of the weights (report section 3.2.3)


def test_evaluation_sees_the_average_and_training_does_not(tmp_path: Path) -> None:
    """ema = d ema + (1 - d) w after every step, with a shorter memory at first: d = 1/10, 2/11, then the recipe's; the
    curve is that of a run without it."""
    decay, steps = 0.2, 4
    runs: dict[float, list[dict[str, Any]]] = {}
    for ema in (0.0, decay):
        changes = {"optim.ema_decay": ema, "run.eval_every": 2, "run.steps": steps, "run.checkpoint_every": 50}
        config = make_config(tmp_path / str(ema), changes)
        model, data = make_model(config), make_data(config)
        at_evaluation: list[dict[str, Tensor]] = []
        heldout = data.batch(1000)

        def evaluate(nats: Nats, model=model, at=at_evaluation, batch: Batch = heldout) -> dict[str, float]:  # type: ignore[no-untyped-def]
            at.append({n: p.detach().clone() for n, p in model.named_parameters()})
            return {"mean": nats(batch)}

        trainer = Trainer(config, model, data, evaluate)
        averages, records = weights(trainer), []
        for step in range(1, steps + 1):
            records.append(trainer.step())
            d = min(decay, step / (9 + step))
            averages = {n: d * averages[n] + (1 - d) * p for n, p in weights(trainer).items()}
            if step % 2 == 0:
                wanted = averages if ema else weights(trainer)
                for name, seen in at_evaluation[-1].items():
                    torch.testing.assert_close(seen, wanted[name], rtol=1e-5, atol=1e-7, msg=name)
        assert len(at_evaluation) == 2
        runs[ema] = records
        trainer.store.wait()
    plain, averaged = runs.values()
    assert [r["loss"] for r in plain] == [r["loss"] for r in averaged]
    assert plain[-1]["heldout"] != averaged[-1]["heldout"]
