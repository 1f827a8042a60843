"""Router bias updates, and the sequence-wise balance loss against its definition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from naive_loss import sequence_balance
from tiny_run import make_config, make_model, make_trainer

from fathom.model.moe import Gate, Routing
from fathom.text.dataset import Batch
from fathom.train.balance import (
    batch_balance_loss,
    dead_experts,
    expert_load,
    gates,
    max_over_mean,
    sequence_balance_loss,
    update_bias,
)
from fathom.train.loop import Trainer
from fathom.train.objective import Weights, whole_loss


def routing(scores: torch.Tensor, top_k: int = 2) -> Routing:
    return Routing(scores, scores.topk(top_k).indices, torch.ones(()))


def random_scores(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


# ---- bias


def test_bias_moves_one_step_towards_the_underloaded(tmp_path: Path) -> None:
    gate = gates(make_model(make_config(tmp_path)))[0]
    gate.e_score_correction_bias.fill_(5.0)
    update_bias(gate, torch.tensor([9, 1, 4, 4, 4, 4, 3, 3]), 0.25)
    assert gate.e_score_correction_bias.tolist() == [4.75, 5.25, 5, 5, 5, 5, 5.25, 5.25]
    update_bias(gate, torch.tensor([9, 1, 4, 4, 4, 4, 3, 3]), 0.0)
    assert gate.e_score_correction_bias.tolist() == [4.75, 5.25, 5, 5, 5, 5, 5.25, 5.25]


def test_a_gate_without_bias_is_left_alone(tmp_path: Path) -> None:
    model = make_model(make_config(tmp_path, topk_method="greedy"))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    update_bias(gates(model)[0], torch.tensor([1, 2, 3, 4, 5, 6, 7, 8]), 0.1)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_load_counts_every_choice_and_no_padding() -> None:
    r = Routing(torch.zeros(1, 3, 4), torch.tensor([[[0, 1], [1, 2], [3, 3]]]), torch.ones(()))
    assert expert_load(r).tolist() == [1, 2, 1, 2]
    keep = torch.tensor([[True, True, False, False]])  # one longer than the routing, as for an MTP module
    assert expert_load(r, keep).tolist() == [1, 2, 1, 0]
    assert max_over_mean(torch.tensor([4, 0, 2, 2])) == 2.0
    assert dead_experts(torch.tensor([4, 0, 2, 0])) == 2


def test_gates_come_in_the_order_of_the_forward_pass(tmp_path: Path) -> None:
    trainer = make_trainer(make_config(tmp_path, num_nextn_predict_layers=2))
    called: list[Gate] = []
    found = gates(trainer.model)
    for gate in found:
        gate.register_forward_hook(lambda module, *_: called.append(module))
    trainer.step()
    assert len(found) == 4 and called[:4] == found == list(trainer.parts.gates.values())
    assert list(trainer.parts.gates) == [0, 1, 2, 3]


@pytest.mark.parametrize("micro_rows", [2, 8])
def test_the_update_sees_the_whole_batch(tmp_path: Path, micro_rows: int) -> None:
    trainer = make_trainer(make_config(tmp_path, {"data.micro_rows": micro_rows}))
    record: list[Routing] = []
    batch = trainer.data.batch(0)
    h = trainer.model.hidden(batch.tokens, record=record)
    trainer.model.mtp_hidden(h, batch.tokens, 0, record=record)
    trainer.step()
    for gate, r in zip(trainer.parts.gates.values(), record, strict=True):
        load = [int((r.indices == e).sum()) for e in range(8)]
        mean = sum(load) / 8
        wanted = [0.01 if x < mean else -0.01 if x > mean else 0.0 for x in load]
        assert gate.e_score_correction_bias.tolist() == pytest.approx(wanted, rel=1e-6)


def test_gamma_stops_late(tmp_path: Path) -> None:
    trainer = make_trainer(make_config(tmp_path, {"run.steps": 4, "balance.gamma_stop_fraction": 0.5}))
    biases = []
    for _ in range(4):
        trainer.step()
        biases.append(torch.stack([g.e_score_correction_bias.clone() for g in trainer.parts.gates.values()]))
    assert not torch.equal(biases[0], biases[1])
    assert torch.equal(biases[1], biases[2]) and torch.equal(biases[2], biases[3])


def test_bias_balances_a_skewed_router(tmp_path: Path) -> None:
    """Weights barely move (tiny learning rate): what balances is the bias alone."""

    def skewed(gamma: float) -> Trainer:
        changes = {"balance.gamma": gamma, "balance.alpha": 0.0, "optim.peak_lr": 1e-7, "run.checkpoint_every": 1000}
        trainer = make_trainer(make_config(tmp_path / str(gamma), changes))
        with torch.no_grad():
            trainer.model.embed_tokens.weight += 0.2  # all tokens share a direction,
            for gate in trainer.parts.gates.values():
                gate.weight[:3] += 0.01  # which three experts like
        return trainer

    def late(trainer: Trainer, steps: int = 45) -> float:
        records = [trainer.step()["load_max_over_mean"][:2] for _ in range(steps)]
        return sum(max(r) for r in records[-5:]) / 5

    without, with_bias = late(skewed(0.0), 5), late(skewed(0.01))
    assert without > 2.5 and with_bias < 1.8, (without, with_bias)


# ---- sequence-wise loss


def test_perfect_balance_is_one() -> None:
    assert sequence_balance_loss(routing(torch.full((3, 5, 8), 0.3)), 2).item() == pytest.approx(1.0, abs=1e-6)
    one = random_scores(8)
    cyclic = torch.stack([one.roll(t) for t in range(8)])[None]  # every expert has every score once
    assert sequence_balance_loss(routing(cyclic), 3).item() == pytest.approx(1.0, abs=1e-6)


def test_total_collapse_is_the_number_of_experts() -> None:
    scores = torch.zeros(2, 5, 8)
    scores[..., 3] = 0.9
    assert sequence_balance_loss(routing(scores, 1), 1).item() == pytest.approx(8.0)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_loss_and_gradient_equal_the_definition(top_k: int) -> None:
    mine, naive = (random_scores(3, 7, 8).requires_grad_() for _ in range(2))
    one, other = sequence_balance_loss(routing(mine), top_k), sequence_balance(naive, top_k)
    assert one.item() == pytest.approx(other.item(), rel=1e-6)
    one.backward()
    other.backward()
    torch.testing.assert_close(mine.grad, naive.grad)


def test_padding_is_not_there() -> None:
    """A row of 4 tokens and 3 of padding counts as a row of 4, in both losses; the padding gets no gradient."""
    keep = torch.ones(2, 8, dtype=torch.bool)  # of a batch with one position more than the module sees, as MTP's
    keep[1, 4:] = False
    mine = random_scores(2, 7, 8).requires_grad_()
    rows = [mine.detach()[:1].clone().requires_grad_(), mine.detach()[1:, :4].clone().requires_grad_()]
    loss = sequence_balance_loss(routing(mine), 2, keep)
    loss.backward()
    naive = torch.stack([sequence_balance(row, 2) for row in rows]).mean()
    naive.backward()
    assert loss.item() == pytest.approx(naive.item(), rel=1e-6)
    torch.testing.assert_close(mine.grad[0], rows[0].grad[0])
    torch.testing.assert_close(mine.grad[1, :4], rows[1].grad[0])
    assert not mine.grad[1, 4:].any()
    tokens = torch.cat([row.detach().flatten(0, 1) for row in rows])[None]
    whole = batch_balance_loss(routing(mine.detach()), 2, keep).item()
    assert whole == pytest.approx(sequence_balance(tokens, 2).item(), rel=1e-6)


def test_each_sequence_counts_for_itself() -> None:
    """Two sequences that are skewed in opposite ways are balanced together, and still cost."""
    scores = torch.full((2, 6, 4), 0.01)
    scores[0, :, 0] = scores[1, :, 1] = 0.9
    assert sequence_balance_loss(routing(scores, 1), 1).item() > 3


def test_a_planted_bias_changes_selection_and_not_the_loss(tmp_path: Path) -> None:
    gate = gates(make_model(make_config(tmp_path)))[0]
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    before = gate(x)
    gate.e_score_correction_bias.copy_(torch.arange(8) * 10.0)
    after = gate(x)
    assert not torch.equal(before.indices, after.indices) and bool((after.indices >= 4).all())
    assert sequence_balance_loss(before, 2).item() == sequence_balance_loss(after, 2).item()


def test_alpha_scales_with_the_share_of_the_batch(tmp_path: Path) -> None:
    """Micro-batches of a step add up to the mean over all its sequences."""
    trainer = make_trainer(make_config(tmp_path))
    batch = trainer.data.batch(0)

    def balance(part: Batch) -> float:
        totals = [whole_loss(trainer.model, part, Weights(1, 8, 0.3, alpha), []).total.item() for alpha in (0, 1000)]
        return totals[1] - totals[0]

    parts = sum(balance(batch.rows(i, i + 2)) for i in range(0, 8, 2))
    assert parts == pytest.approx(balance(batch), rel=1e-4)
    assert parts == pytest.approx(3 * 1000, rel=0.3)  # three routers, each near 1


# ---- what both replace: an auxiliary loss over the tokens of a micro-batch


def test_the_batch_loss_is_the_definition_over_all_tokens() -> None:
    mine, naive = (random_scores(3, 7, 8).requires_grad_() for _ in range(2))
    one = batch_balance_loss(routing(mine), 2)
    other = sequence_balance(naive.flatten(0, 1)[None], 2)
    assert one.item() == pytest.approx(other.item(), rel=1e-6)
    one.backward()
    other.backward()
    torch.testing.assert_close(mine.grad, naive.grad)


def test_sequences_may_specialise_within_a_batch() -> None:
    """What the sequence-wise loss punishes by a factor, costs nothing here."""
    scores = torch.full((4, 6, 4), 0.01)
    for row in range(4):
        scores[row, :, row] = 0.9
    assert batch_balance_loss(routing(scores, 1), 1).item() == pytest.approx(1.0)
    assert sequence_balance_loss(routing(scores, 1), 1).item() > 3


def test_methods(tmp_path: Path) -> None:
    """aux and none leave the router bias alone; aux adds its loss to the gradient, none adds nothing."""
    changes = {"balance.alpha": 0.0, "data.micro_rows": 8, "optim.clip_norm": 1e9, "balance.aux_alpha": 0.5}
    trainers = {
        method: make_trainer(make_config(tmp_path / method, changes | {"balance.method": method}))
        for method in ("bias", "aux", "none")
    }
    batch = trainers["none"].data.batch(0)
    gradients = {}
    for method, trainer in trainers.items():
        seen: dict[str, torch.Tensor] = {}
        reduce = trainer.zero.reduce

        def spy(model=trainer.model, seen=seen, reduce=reduce):  # type: ignore[no-untyped-def]
            reduce()
            seen |= {n: p.grad.clone() for n, p in model.named_parameters()}

        trainer.zero.reduce = spy  # type: ignore[method-assign]
        record = trainer.step()
        assert record["gamma"] == (0.01 if method == "bias" else 0.0)
        moved = [bool(gate.e_score_correction_bias.any()) for gate in trainer.parts.gates.values()]
        assert moved == [method == "bias"] * 3
        gradients[method] = seen
    assert all(torch.equal(g, gradients["none"][n]) for n, g in gradients["bias"].items())
    model = make_model(make_config(tmp_path))
    record_list: list[Routing] = []
    h = model.hidden(batch.tokens, record=record_list)
    model.mtp_hidden(h, batch.tokens, 0, record=record_list)
    (0.5 * torch.stack([batch_balance_loss(r, 2) for r in record_list]).sum()).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            difference = gradients["aux"][name] - gradients["none"][name]
            size = float(gradients["aux"][name].abs().max())
            torch.testing.assert_close(difference, p.grad, rtol=1e-3, atol=1e-5 * size, msg=name)
    gate = "layers.1.mlp.gate.weight"
    assert float((gradients["aux"][gate] - gradients["none"][gate]).abs().max()) > 1e-3
