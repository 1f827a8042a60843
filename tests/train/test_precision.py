"""The transformation to mixed precision: what is exchanged, what stays FP32, and how close a training run stays."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import make_config, make_model, make_trainer
from torch import nn

from fathom.kernels.cpu import train as cpp
from fathom.model.moe import Experts, Gate
from fathom.runtime import UserError
from fathom.train import precision
from fathom.train.precision import TrainExperts, TrainLinear, arithmetic, prepare

CPU = torch.device("cpu")
STEPS = 6


def test_what_is_exchanged(tmp_path: Path) -> None:
    """Linear layers of blocks and MTP, and experts. Embedding, head, gates and norms keep their precision."""
    model = make_model(make_config(tmp_path))
    linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    parameters = dict(model.named_parameters())
    how = arithmetic("fp8", CPU)
    assert prepare(model, how) is model
    modules = dict(model.named_modules())
    assert {n for n, m in modules.items() if isinstance(m, TrainLinear)} == linears - {"lm_head"}
    assert {"mtp.0.eh_proj", "layers.1.mlp.shared_experts.up_proj", "layers.0.mlp.down_proj"} <= linears
    experts = {n for n, m in modules.items() if isinstance(m, Experts)}
    assert experts == {n for n, m in modules.items() if isinstance(m, TrainExperts)} and len(experts) == 3
    assert type(modules["lm_head"]) is nn.Linear and type(modules["embed_tokens"]) is nn.Embedding
    assert all(type(m) is Gate for n, m in modules.items() if n.endswith(".gate"))
    after = {n for n, m in modules.items() if isinstance(m, TrainLinear) and m.after_attention}
    assert after == {n for n in modules if n.endswith("self_attn.o_proj")} and len(after) == 4
    assert {id(m.how) for m in modules.values() if isinstance(m, TrainLinear | TrainExperts)} == {id(how)}
    now = dict(model.named_parameters())
    assert list(now) == list(parameters) and all(now[n] is p for n, p in parameters.items()), "the same objects"


def test_a_bias_is_added_and_trained(tmp_path: Path) -> None:
    whole = nn.Linear(6, 4)
    mine = TrainLinear(whole, arithmetic("fp32", CPU), False)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mine(x), whole(x))
    mine(x).sum().backward()
    assert whole.bias.grad is not None and whole.bias.grad.tolist() == [3.0] * 4


@pytest.mark.parametrize(("fast", "gemm"), [(True, "bf16"), (False, "fp32")])
def test_auto(monkeypatch: pytest.MonkeyPatch, fast: bool, gemm: str) -> None:
    for name in ("fast_bf16", "bf16_products"):
        monkeypatch.setattr(precision, name, lambda device: fast)
    how = arithmetic("auto", CPU)
    assert how.gemm == gemm and how.carry_bf16 == (not fast)
    assert arithmetic("fp8", CPU, scale="ue8m0", gradients="block").gemm == "fp8"
    with pytest.raises(UserError, match=r"precision\.gemm"):
        arithmetic("fp4", CPU)


def run(out: Path, gemm: str, **changes: Any) -> list[dict[str, Any]]:
    changes = {f"precision.{k}": v for k, v in changes.items()} | {"run.checkpoint_every": 100}
    trainer = make_trainer(make_config(out, changes | {"precision.gemm": gemm}))
    records = [trainer.step() for _ in range(STEPS)]
    state = [*trainer.model.parameters(), *trainer.model.buffers(), *(p.data for p in trainer.pieces())]
    assert {t.dtype for t in state} == {torch.float32}, "master weights, moments and biases"
    assert {p.grad.dtype for p in trainer.model.parameters() if p.grad is not None} == {torch.float32}
    return records


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return run(tmp_path_factory.mktemp("fp32"), "fp32")


@pytest.mark.parametrize(
    ("gemm", "options", "tolerance"),
    [("bf16", {}, 0.01), ("fp8", {}, 0.02), ("fp8", {"scale": "ue8m0"}, 0.02), ("fp8", {"gradients": "block"}, 0.02)],
)
def test_the_curve_stays_near_that_of_fp32(
    tmp_path: Path, fp32: list[dict[str, Any]], gemm: str, options: dict[str, str], tolerance: float
) -> None:
    """And is not the same: the setting does something."""
    for mine, theirs in zip(run(tmp_path, gemm, **options), fp32, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=tolerance) and mine["loss"] != theirs["loss"]
        assert mine["mtp_loss"] == pytest.approx(theirs["mtp_loss"], rel=tolerance)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=10 * tolerance)


def test_every_setting_of_fp8_is_another_run(tmp_path: Path) -> None:
    settings = [{}, {"scale": "ue8m0"}, {"gradients": "block"}, {"scale": "ue8m0", "gradients": "block"}]
    norms = [run(tmp_path / str(i), "fp8", **options)[1]["grad_norm"] for i, options in enumerate(settings)]
    assert len(set(norms)) == 4


@pytest.mark.parametrize("gemm", ["fp32", "bf16", "fp8"])
@pytest.mark.skipif(cpp.available() is not None, reason="no C++ compiler here")
def test_plain_and_cpp_train_alike(tmp_path: Path, gemm: str) -> None:
    """One forward and backward pass of the whole model with either implementation of the operations."""
    gradients = []
    for kernels in ("plain", "cpu"):
        model = make_model(make_config(tmp_path))
        prepare(model, dataclasses.replace(arithmetic(gemm, CPU, kernels=kernels)))
        batch = make_trainer(make_config(tmp_path)).data.batch(0)
        h = model.hidden(batch.tokens)
        model.ops.linear_cross_entropy(h.flatten(0, 1), model.lm_head.weight, batch.labels.flatten()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    tolerance = {"fp32": 1e-5, "bf16": 0.03, "fp8": 0.1}[gemm]
    plain, cpu = gradients
    assert plain.keys() == cpu.keys() and len(plain) > 30
    for name, g in plain.items():
        assert float((cpu[name] - g).norm() / g.norm()) < tolerance, name
