"""Computing twice changes no bit and keeps less: "report" and "block" against "none", in every precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import make_config, make_data, make_model, make_trainer
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fathom.parallel.mesh import single
from fathom.text.dataset import Batch, Sample, collate
from fathom.train.objective import Weights, whole_loss
from fathom.train.parts import Parts, Totals

CPU = torch.device("cpu")
CHOICES = ("none", "report", "block")


def parts_of(tmp_path: Path, what: str, gemm: str, **model: int) -> tuple[Parts, Batch]:
    changes = {"precision.recompute": what, "precision.gemm": gemm}
    config = make_config(tmp_path, changes, num_nextn_predict_layers=2, **model)
    return Parts(config, make_model(config), single(CPU)), make_data(config).batch(0)


def step(tmp_path: Path, what: str, gemm: str, batch: Batch | None = None) -> tuple[Totals, dict[str, Tensor]]:
    parts, usual = parts_of(tmp_path, what, gemm)
    totals = parts.forward_backward(batch or usual, Weights(128, 8, 0.3, 0.05))
    return totals, {n: p.grad.clone() for n, p in parts.model.named_parameters() if p.grad is not None}


def packed() -> Batch:
    generator = torch.Generator().manual_seed(0)

    def sample(length: int) -> Sample:
        return Sample(torch.randint(128, (length,), generator=generator).tolist(), [True] * length)

    return collate([[sample(5), sample(7)], [sample(9)]] * 4, 16, pad=0)


@pytest.mark.parametrize("gemm", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_the_same_bits(tmp_path: Path, gemm: str, kind: str) -> None:
    batch = packed() if kind == "packed" else None
    (plain, wanted), *others = (step(tmp_path, what, gemm, batch) for what in CHOICES)
    assert all(g.any() for g in wanted.values()) and len(wanted) > 40
    tokens = int((batch.segments >= 0).sum()) if batch is not None and batch.segments is not None else 8 * 16
    assert plain.loads[:2].sum(1).tolist() == [2 * tokens] * 2, "two experts per token of each main layer"
    for totals, gradients in others:
        assert torch.equal(totals.main, plain.main) and torch.equal(totals.mtp, plain.mtp)
        assert torch.equal(totals.loads, plain.loads), "counted once, not again in the second pass"
        assert gradients.keys() == wanted.keys()
        assert [n for n in wanted if not torch.equal(gradients[n], wanted[n])] == []


def kept_bytes(tmp_path: Path, what: str, gemm: str) -> int:
    """What a forward pass has allocated and not given back: all that waits for the backward pass."""
    parts, batch = parts_of(tmp_path, what, gemm)
    w = Weights(128, 8, 0.3, 0.05)
    whole_loss(parts.model, batch, w, [])  # nothing is allocated for the first time below
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = whole_loss(parts.model, batch, w, [])
    total = sum(event.self_cpu_memory_usage for event in seen.key_averages())
    assert loss.total.requires_grad
    return int(total)


@pytest.mark.parametrize("gemm", ["fp32", "fp8"])
def test_less_is_kept(tmp_path: Path, gemm: str) -> None:
    """The more is computed twice the less stays: of a block only its input."""
    none, report, block = (kept_bytes(tmp_path, what, gemm) for what in CHOICES)
    assert block < 0.5 * none and block < report < 0.95 * none, (none, report, block)


def test_a_run_may_change_its_mind(tmp_path: Path) -> None:
    """Recomputation is no part of what a run is: it may be switched on at a resume."""
    changes = {"run.steps": 6, "run.checkpoint_every": 3}
    whole = make_trainer(make_config(tmp_path / "whole", changes))
    whole.train()
    first = make_trainer(make_config(tmp_path / "run", changes | {"precision.recompute": "report"}))
    for _ in range(3):
        first.step()
    first.store.wait()
    second = make_trainer(make_config(tmp_path / "run", changes | {"precision.recompute": "block"}))
    second.train()
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, dict(second.model.named_parameters())[name]), name


@pytest.mark.parametrize("what", ["report", "block"])
def test_evaluation_keeps_nothing(tmp_path: Path, what: str) -> None:
    parts, batch = parts_of(tmp_path, what, "fp32")
    plain, _ = parts_of(tmp_path, "none", "fp32")
    assert parts.nats(batch) == plain.nats(batch)
