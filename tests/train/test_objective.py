"""The loss and its gradient against the written-out definition in float64; accumulation; sample borders."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from naive_loss import NaiveModel, mtp_target, total_loss
from tiny_run import VOCAB, make_config, make_data, make_model, make_trainer
from torch import Tensor

from fathom.kernels.ops import pick
from fathom.model.moe import Routing
from fathom.model.transformer import DeepseekV3
from fathom.parallel.mesh import single
from fathom.text.dataset import IGNORE, Batch, Sample, collate
from fathom.train.objective import HeadLoss, Weights, mtp_labels, whole_loss
from fathom.train.parts import Parts
from fathom.train.precision import arithmetic, prepare

LENGTH = 16
CPU = torch.device("cpu")
# FP32 has 24 bits, 6e-8. A loss is a sum of about a hundred logarithms, a gradient one over tokens and layers:
LOSS_TOLERANCE = 2e-6  # relative
GRADIENT_TOLERANCE = 1e-5  # of the largest element of each tensor's gradient


def plain_batch(rows: int = 2) -> Batch:
    tokens = torch.randint(VOCAB, (rows, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def sample(length: int, prompt: int, seed: int) -> Sample:
    ids = torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Sample(ids, [i >= prompt for i in range(length)])


def packed_batch() -> Batch:
    rows = [[sample(6, 2, 1), sample(5, 0, 2), sample(3, 1, 3)], [sample(9, 4, 4), sample(2, 1, 5)]]
    return collate(rows, LENGTH, pad=2)


def model_of(**changes: int) -> DeepseekV3:
    """Gains and router biases that are not trivial, the reference operations."""
    config = make_config("nowhere", **changes).model_config()
    generator = torch.Generator().manual_seed(0)
    model = DeepseekV3(config, ops=pick("reference")).init_weights(generator)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 1:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


def weights_of(batch: Batch, mtp_lambda: float = 0.3, alpha: float = 0.05) -> Weights:
    return Weights(max(int((batch.labels != IGNORE).sum()), 1), batch.tokens.shape[0], mtp_lambda, alpha)


def loss_of(model: DeepseekV3, batch: Batch, w: Weights) -> tuple[HeadLoss, list[Routing]]:
    record: list[Routing] = []
    return whole_loss(model, batch, w, record), record


def run_model(tmp_path: Path, model: DeepseekV3, how: str, batch: Batch) -> tuple[float, list[float]]:
    """Forward and backward; main loss and MTP losses. `how`: see the test."""
    w = weights_of(batch)
    if how == "trainer":
        config = make_config(tmp_path, {"data.micro_rows": 1}, num_nextn_predict_layers=len(model.mtp))
        totals = Parts(config, model, single(CPU)).forward_backward(batch, w)
        return float(totals.main), totals.mtp.tolist()
    if how == "plain":
        prepare(model, arithmetic("fp32", CPU, kernels="plain"))
    loss, record = loss_of(model, batch, w)
    loss.total.backward()
    assert len(record) == 2 + len(model.mtp)
    return float(loss.main), [float(m) for m in loss.mtp]


@cache
def definition(kind: str, depths: int) -> tuple[float, list[float], dict[str, Tensor]]:
    """Main loss, MTP losses and gradients in float64."""
    naive = NaiveModel(model_of(num_nextn_predict_layers=depths))
    total, main, mtp = total_loss(naive, plain_batch() if kind == "plain" else packed_batch(), 0.3, 0.05)
    return main.item(), [m.item() for m in mtp], naive.gradients(total)


@pytest.mark.parametrize("how", ["reference", "torch", "plain", "trainer"])
@pytest.mark.parametrize(("kind", "depths"), [("plain", 2), ("packed", 1), ("packed", 2)])
def test_loss_and_gradient_equal_the_definition(tmp_path: Path, how: str, kind: str, depths: int) -> None:
    """The model with either table of operations, with the trainer's layers in plain PyTorch, and the trainer's own
    way: C++ where there is a compiler, flat gradients, one row at a time."""
    model = model_of(num_nextn_predict_layers=depths)
    fast = DeepseekV3(model.config, ops=pick(how if how in ("reference", "torch") else "auto"))
    fast.load_state_dict(model.state_dict())
    batch = plain_batch() if kind == "plain" else packed_batch()
    main, mtp, wanted = definition(kind, depths)
    mine_main, mine_mtp = run_model(tmp_path, fast, how, batch)
    assert mine_main == pytest.approx(main, rel=LOSS_TOLERANCE)
    assert mine_mtp == pytest.approx(mtp, rel=LOSS_TOLERANCE) and len(mine_mtp) == depths
    mine = {n: p.grad for n, p in fast.named_parameters()}
    assert mine.keys() == wanted.keys()
    worst = {n: float((mine[n] - wanted[n]).abs().max() / wanted[n].abs().max()) for n in wanted}
    assert max(worst.values()) < GRADIENT_TOLERANCE, sorted(worst.items(), key=lambda item: -item[1])[:3]
    assert all(wanted[n].any() for n in wanted), "a part of the model that gets no gradient proves nothing"


def test_every_part_of_the_loss_shows_in_the_gradient() -> None:
    """The tolerance would notice a loss without MTP or balance, or with another weight of either."""
    model, batch = model_of(num_nextn_predict_layers=1), packed_batch()
    wanted = definition("packed", 1)[2]["layers.1.mlp.gate.weight"]
    for mtp_lambda, alpha in ((0.3, 0.05), (0.0, 0.05), (0.299, 0.05), (0.3, 0.0), (0.3, 0.0499)):
        model.zero_grad()
        loss_of(model, batch, weights_of(batch, mtp_lambda, alpha))[0].total.backward()
        off = float((model.layers[1].mlp.gate.weight.grad - wanted).abs().max() / wanted.abs().max())
        assert (off < GRADIENT_TOLERANCE) == ((mtp_lambda, alpha) == (0.3, 0.05)), (mtp_lambda, alpha, off)


def test_mtp_labels_respect_sample_borders() -> None:
    batch = packed_batch()
    for depth in range(4):
        labels = mtp_labels(batch, depth)
        assert labels.shape == (2, LENGTH - 1 - depth)
        wanted = [[mtp_target(batch, r, i, depth) for i in range(LENGTH - 1 - depth)] for r in range(2)]
        assert labels.tolist() == wanted
        assert bool((labels != IGNORE).any()) and bool((labels == IGNORE).any())


def test_mtp_labels_of_plain_text_are_the_tokens_further_on() -> None:
    batch = plain_batch()
    text = torch.cat((batch.tokens, batch.labels[:, -1:]), dim=1)
    for depth in range(3):
        assert torch.equal(mtp_labels(batch, depth), text[:, 2 + depth :])


def test_samples_of_a_row_do_not_see_each_other() -> None:
    """Loss of the packed batch = sum over its samples alone; what padding holds does not matter."""
    model = model_of()
    rows = [[sample(6, 2, 1), sample(5, 0, 2), sample(3, 1, 3)], [sample(9, 4, 4), sample(2, 1, 5)]]

    def sums(batch: Batch) -> tuple[float, float]:
        out, _ = loss_of(model, batch, Weights(1, 1, 0.3, 0.0))
        return out.main.item(), out.mtp[0].item()

    packed = sums(collate(rows, LENGTH, pad=2))
    alone = [sums(collate([[s]], len(s.ids), pad=2)) for row in rows for s in row]
    assert packed == pytest.approx([sum(m for m, _ in alone), sum(d for _, d in alone)], rel=1e-5)
    assert sums(collate(rows, LENGTH, pad=77)) == packed


class FixedData:
    """The same batch at every step."""

    def __init__(self, batch: Batch) -> None:
        self.fixed = batch

    def batch(self, step: int) -> Batch:
        return self.fixed


def test_nothing_to_train_is_not_a_division_by_zero(tmp_path: Path) -> None:
    trainer = make_trainer(make_config(tmp_path))
    batch = collate([[sample(6, 6, 1)]] * 8, LENGTH, pad=2)
    trainer.data = FixedData(batch)
    record = trainer.step()
    assert record["loss"] == 0.0 and record["mtp_loss"] == [0.0] and len(record["load_max_over_mean"]) == 3


def test_a_dense_model_trains(tmp_path: Path) -> None:
    record = make_trainer(make_config(tmp_path, n_routed_experts=0)).step()
    assert record["load_max_over_mean"] == [] and record["loss"] > 0
    record = make_trainer(make_config(tmp_path, first_k_dense_replace=4, num_nextn_predict_layers=0)).step()
    assert record["load_max_over_mean"] == [] and record["mtp_loss"] == []


def test_gradient_accumulation(tmp_path: Path) -> None:
    """micro_rows 1, 2 and 8 of 8: the same losses, gradients, weights and, exactly, router biases."""
    changes = {"optim.eps": 1e-2, "optim.warmup_steps": 0, "balance.gamma": 0.01}  # eps: no division by round-off
    whole = make_trainer(make_config(tmp_path / "8", changes | {"data.micro_rows": 8}))
    reference = [whole.step() for _ in range(3)]
    for rows in (1, 2):
        trainer = make_trainer(make_config(tmp_path / str(rows), changes | {"data.micro_rows": rows}))
        records = [trainer.step() for _ in range(3)]
        for mine, theirs in zip(records, reference, strict=True):
            for key in ("loss", "mtp_loss", "grad_norm"):
                assert mine[key] == pytest.approx(theirs[key], rel=1e-5)
            assert mine["load_max_over_mean"] == theirs["load_max_over_mean"]
        for (name, mine), theirs in zip(
            trainer.model.state_dict().items(), whole.model.state_dict().values(), strict=True
        ):
            if name.endswith("e_score_correction_bias"):
                assert torch.equal(mine, theirs) and mine.any()
            else:
                torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6, msg=name)


def test_mtp_lambda_falls_late(tmp_path: Path) -> None:
    """With lambda 0 the module is not even run: no loss of it, no gradient for it, no load."""
    changes = {"run.steps": 2, "balance.mtp_late_fraction": 0.5, "balance.mtp_lambda_late": 0.0}
    trainer = make_trainer(make_config(tmp_path, changes))
    record = trainer.step()
    assert len(record["mtp_loss"]) == 1 and record["mtp_lambda"] == 0.3
    record = trainer.step()
    assert record["mtp_loss"] == [] and record["mtp_lambda"] == 0.0
    assert record["load_max_over_mean"][2] == 0.0 and record["dead_experts"][2] == 8
    trainer.parts.forward_backward(trainer.data.batch(2), Weights(128, 8, 0.0, 0.01))
    assert not any(p.grad.any() for p in trainer.model.mtp.parameters())
    assert all(p.grad.any() for p in trainer.model.layers.parameters())


def test_a_router_in_the_mtp_module_alone(tmp_path: Path) -> None:
    for mtp_lambda in (0.3, 0.0):
        changes = {"balance.mtp_lambda": mtp_lambda}
        trainer = make_trainer(make_config(tmp_path / str(mtp_lambda), changes, first_k_dense_replace=3))
        assert len(trainer.step()["load_max_over_mean"]) == 1
        assert bool(trainer.parts.gates[0].e_score_correction_bias.any()) == bool(mtp_lambda)


def test_training_draws_no_random_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = make_trainer(make_config(tmp_path / "a")).step()["grad_norm"]
    torch.manual_seed(1)
    assert make_trainer(make_config(tmp_path / "b")).step()["grad_norm"] == first
    assert make_model(make_config(tmp_path)).training and make_data(make_config(tmp_path)).ramp.rows(0) == 8
