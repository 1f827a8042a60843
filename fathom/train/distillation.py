"""What a distillation minimises, and what it reports of held-out rows.

    loss = (1 - a) t^2 KL + a CE + mtp_lambda / D * the same of each MTP depth + balance       (a: distill.text_weight)

The KL is over the teacher's K tokens and one lump of all others: kernels/distillation.py has the formula. An MTP module
of depth d reads position i and predicts token i + 2 + d; its target is what the teacher says at position i + 1 + d. Of
a frozen main model the states come from whoever knows them, the cache or the model: nothing below MTP has a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.kernels.distillation import score
from fathom.model.moe import Routing
from fathom.model.transformer import DeepseekV3
from fathom.text.batch import IGNORE, Batch
from fathom.train.config import TrainConfig
from fathom.train.objective import HeadLoss, Weights, balance_loss, mtp_labels, real
from fathom.train.selection import main_trains
from fathom.train.teacher import Asked, Speaker, Targets, Teacher


@dataclass(frozen=True)
class Distillation:
    """The objective of a run. `teacher` None: the model that is trained, whose main part is frozen."""

    config: TrainConfig
    teacher: Teacher | None

    def targets(self, model: DeepseekV3, batch: Batch, record: list[Routing] | None = None) -> Targets:
        """What the teacher says; of a frozen main model also its hidden states."""
        if self.teacher is not None:
            return self.teacher(batch)

        def hidden(tokens: Tensor, segments: Tensor | None) -> Tensor:
            return model.hidden(tokens, segments=segments, record=record)

        d = self.config.distill
        return Asked(Speaker(hidden, model.lm_head.weight), d.top_k, d.temperature, keeps_hidden=True)(batch)

    def __call__(self, model: DeepseekV3, batch: Batch, w: Weights, record: list[Routing]) -> HeadLoss:
        """The loss of one micro-batch."""
        d, mains = self.config.distill, main_trains(self.config.run.train)
        told = self.targets(model, batch, record)
        if mains or told.hidden is None:
            h = model.hidden(batch.tokens, segments=batch.segments, record=record)
        else:
            h = told.hidden
        first_gate = 0 if mains or record else _main_gates(model)

        def loss(h: Tensor, labels: Tensor, ahead: int) -> Tensor:
            ids, log_probs = told.ids[:, ahead:].flatten(0, 1), told.log_probs[:, ahead:].flatten(0, 1)
            total: Tensor = model.ops.linear_distillation(
                h.flatten(0, 1), model.lm_head.weight, labels.flatten(), ids, log_probs, temperature=d.temperature,
                reverse=d.direction == "reverse", text_weight=d.text_weight,
            )  # fmt: skip
            return total / w.trained_tokens

        main = loss(h, batch.labels, 0) if mains else torch.zeros((), device=h.device)
        total, depths = main, list[Tensor]()
        for depth in range(len(model.mtp) if w.mtp_lambda else 0):
            h = model.mtp_hidden(h, batch.tokens, depth, segments=batch.segments, record=record)
            depths.append(loss(h, mtp_labels(batch, depth), 1 + depth))
            total = total + w.mtp_lambda / len(model.mtp) * depths[-1]
        learning = [routing for routing in record if routing.scores.requires_grad]
        balance = balance_loss(learning, model.config.num_experts_per_tok, w, real(batch))
        shown = main if mains else torch.stack(depths).mean()
        own = tuple(x.detach() for x in depths)
        return HeadLoss(total if balance is None else total + balance, shown.detach(), own, first_gate)

    @torch.no_grad()
    def measure(self, model: DeepseekV3, rows: Sequence[Batch], *, mtp: bool) -> dict[str, float]:
        """Over held-out rows, per token: kl and text of the main model where it trains, kl and agreement of MTP depths;
        "mean" is what is minimised of the first of these. Agreement: how often the most likely tokens of MTP and of
        the main model, which then reads one token more, are the same: the acceptance of greedy drafts."""
        d, mains, device = self.config.distill, main_trains(self.config.run.train), model.lm_head.weight.device
        sums: dict[str, float] = {}

        def add(key: str, value: Tensor | float) -> None:
            sums[key] = sums.get(key, 0.0) + float(value)

        for given in rows:
            batch = given.to(device)
            told = self.targets(model, batch)
            runs = mains or told.hidden is None
            h = model.hidden(batch.tokens, segments=batch.segments) if runs else told.hidden
            assert h is not None
            choice, depths = told.ids[..., 0], len(model.mtp) if mtp else 0
            for depth in range(-1 if mains else 0, depths):
                name = f"mtp{depth + 1} " if depth >= 0 else ""
                if depth >= 0:
                    h = model.mtp_hidden(h, batch.tokens, depth, segments=batch.segments)
                labels = batch.labels if depth < 0 else mtp_labels(batch, depth)
                ids, log_probs = told.ids[:, 1 + depth :], told.log_probs[:, 1 + depth :]
                found = score(
                    h.flatten(0, 1), model.lm_head.weight, labels.flatten(), ids.flatten(0, 1), log_probs.flatten(0, 1),
                    temperature=d.temperature, reverse=d.direction == "reverse",
                )  # fmt: skip
                add(f"{name}kl", found.kl)
                add(f"{name}text", found.ce)
                add(f"{name}tokens", (labels != IGNORE).sum())
                own = found.choice.view(labels.shape)
                if depth < 0:
                    choice = own
                else:
                    add(f"{name}agreement", ((own == choice[:, 1 + depth :]) & (labels != IGNORE)).sum())
        return _per_token(sums, 0.0 if not mains else 1.0, d.text_weight, d.temperature)


def _main_gates(model: DeepseekV3) -> int:
    return sum(model.config.is_moe_layer(i) for i in range(model.config.num_hidden_layers))


def _per_token(sums: dict[str, float], mains: float, text_weight: float, temperature: float) -> dict[str, float]:
    out: dict[str, float] = {}
    for key, value in sums.items():
        name = key.rpartition(" ")[0]
        tokens = sums[f"{name} tokens".lstrip()]
        if not key.endswith("tokens"):
            out[key] = value / max(tokens, 1)
    first = "" if mains else "mtp1 "
    out["mean"] = (1 - text_weight) * temperature**2 * out[f"{first}kl"] + text_weight * out[f"{first}text"]
    return out
