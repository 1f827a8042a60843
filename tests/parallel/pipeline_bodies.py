"""What the ranks do in tests of pipelines: a small model cut into stages, its losses, the gradients that come out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.kernels.deferred import WeightGradients
from fathom.model.moe import Routing
from fathom.model.transformer import DeepseekV3
from fathom.parallel.group import CollectiveError, Group
from fathom.parallel.launch import Place, join
from fathom.parallel.mesh import Layout, make_mesh
from fathom.parallel.pipeline import Report, StageFunction, copied, run, tie
from fathom.parallel.schedules import Schedule, schedule
from fathom.parallel.stage import Stage, named_parameters, split
from fathom.text.dataset import Batch
from fathom.train.balance import sequence_balance_loss
from fathom.train.objective import mtp_labels

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=24, intermediate_size=40, moe_intermediate_size=12, num_hidden_layers=7,
    num_nextn_predict_layers=1, num_attention_heads=2, n_routed_experts=6, num_experts_per_tok=2, n_group=2,
    topk_group=1, first_k_dense_replace=1, q_lora_rank=12, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4,
    v_head_dim=8, max_position_embeddings=64, initializer_range=0.2, eos_token_id=(),
)  # fmt: skip
LAMBDA, ALPHA, ROWS = 0.3, 0.05, 2


@dataclass(frozen=True)
class Case:
    """A schedule and a model for it. `ranks` is the pipeline's size, `data` how many pipelines share the rows."""

    name: str
    ranks: int
    micro: int
    depth: int = 1
    tied: bool = False
    packed: bool = False  # samples that do not see each other, and micro-batches of different lengths
    data: int = 1

    @property
    def layers(self) -> int:
        """Enough for twice as many stages as ranks."""
        return max(2 * self.ranks - 1, 2)

    def schedule(self) -> Schedule:
        return schedule(self.name, self.ranks, self.micro)

    def model(self, queue: WeightGradients) -> DeepseekV3:
        config = CONFIG.replace(
            num_hidden_layers=self.layers, num_nextn_predict_layers=self.depth, tie_word_embeddings=self.tied
        )
        generator = torch.Generator().manual_seed(3)
        model = DeepseekV3(config, dtype=torch.float32).init_weights(generator)
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                if tensor.dim() == 1:
                    tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
        for part in (model.layers, model.mtp):
            wait_in(part, queue)
        return model

    def batches(self, copy: int = 0) -> list[Batch]:
        """The micro-batches of one of the `data` pipelines."""
        made = []
        for m in range(self.micro):
            generator = torch.Generator().manual_seed(100 * copy + m)
            length = 9 + m % 3 if self.packed else 9
            text = torch.randint(0, CONFIG.vocab_size, (ROWS, length + 1), generator=generator)
            segments = torch.randint(0, 2, (ROWS, length), generator=generator).cumsum(1) if self.packed else None
            made.append(Batch(text[:, :-1], text[:, 1:], segments))
        return made

    @property
    def rows(self) -> int:
        """Of the whole step."""
        return ROWS * self.micro * self.data


class _Linear(torch.autograd.Function):
    """y = x W^T whose weight gradient goes to a queue."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, queue: WeightGradients) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.queue = queue
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors

        def work() -> None:
            own = gradient.flatten(0, -2).T @ x.flatten(0, -2)
            weight.grad = own if weight.grad is None else weight.grad.add_(own)

        ctx.queue.add(work)
        return gradient @ weight, None, None


class Waiting(nn.Linear):
    queue: WeightGradients

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Linear.apply(x, self.weight, self.queue)
        return out


def wait_in(module: nn.Module, queue: WeightGradients) -> None:
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Waiting
            part.queue = queue


# ---- losses --------------------------------------------------------------------------------------------------------


def token_loss(model: DeepseekV3 | Stage, h: Tensor, batch: Batch, record: list[Routing]) -> Tensor:
    """Next token and MTP from hidden states: written for the whole model, works on the last stage."""
    cross_entropy, weight = model.ops.linear_cross_entropy, model.lm_head.weight  # type: ignore[union-attr]
    total = cross_entropy(h.flatten(0, 1), weight, batch.labels.flatten()) / 100
    for depth in range(len(model.mtp)):
        h = model.mtp_hidden(h, batch.tokens, depth, segments=batch.segments, record=record)
        mtp = cross_entropy(h.flatten(0, 1), weight, mtp_labels(batch, depth).flatten()) / 100
        total = total + LAMBDA / len(model.mtp) * mtp
    return total


def balance_loss(record: list[Routing], case: Case) -> Tensor | None:
    if not record:
        return None
    share = ROWS / case.rows
    return ALPHA * share * torch.stack([sequence_balance_loss(r, CONFIG.num_experts_per_tok) for r in record]).sum()


def stage_function(stage: Stage, case: Case, batches: list[Batch]) -> StageFunction:
    def forward(micro: int, x: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        batch, record = batches[micro], list[Routing]()
        h = stage(x, batch.tokens, batch.segments, record)
        if stage.index < stage.stages - 1:
            return h, balance_loss(record, case)
        tokens = token_loss(stage, h, batch, record)
        balance = balance_loss(record, case)
        return None, tokens if balance is None else tokens + balance

    return forward


def whole(case: Case) -> tuple[dict[str, Tensor], list[float]]:
    """The definition: the model in one piece in one process, micro-batch after micro-batch."""
    model = case.model(WeightGradients())
    losses = []
    for copy in range(case.data):
        for batch in case.batches(copy):
            record: list[Routing] = []
            h = model.hidden(batch.tokens, segments=batch.segments, record=record)
            total = token_loss(model, h, batch, record)
            balance = balance_loss(record, case)
            assert balance is not None
            (total + balance).backward()
            losses.append(float((total + balance).detach()))
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, losses


def staged(case: Case) -> tuple[dict[str, Tensor], list[float]]:
    """The slow clear way in one process: stage by stage, all forwards, then all backwards.

    One model for each half of the stages, so that the last stage's embedding is a copy; tied at the end.
    """
    count = case.schedule().stages
    models = [case.model(WeightGradients()) for _ in range(2)]
    stages = [split(models[index * 2 >= count], index, count) for index in range(count)]
    batches = case.batches()
    functions = [stage_function(stage, case, batches) for stage in stages]
    held, losses = [], []
    for micro in range(case.micro):
        x, total = None, 0.0
        for index in range(count):
            out, loss = functions[index](micro, x)
            total += 0.0 if loss is None else float(loss.detach())
            held.append((micro, x, out, loss))
            x = None if out is None else out.detach().requires_grad_()
        losses.append(total)
    for micro in range(case.micro):
        gradient = None
        for m, x, out, loss in reversed(held):
            if m == micro:
                roots = [root for root in (out, loss) if root is not None]
                torch.autograd.backward(roots, [gradient if root is out else None for root in roots])
                gradient = None if x is None else x.grad
    found = [named_parameters({s.index: s for s in stages if s.index * 2 // count == half}) for half in range(2)]
    grads = {n: p.grad for half in found for n, p in half.items() if p.grad is not None}
    if count > 1:
        pair = [half["embed_tokens.weight"].grad for half in found if "embed_tokens.weight" in half]
        grads["embed_tokens.weight"] = sum(pair[1:], start=pair[0])
    return grads, losses


# ---- bodies --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    grads: dict[str, Tensor]
    losses: list[float]
    report: Report
    copied: set[str]


def pipelined(case: Case, group: Group, copy: int = 0) -> Outcome:
    """One step of this rank."""
    queue, plan = WeightGradients(), case.schedule()
    model, batches = case.model(queue), case.batches(copy)
    stages = {s: split(model, s, plan.stages) for s in plan.held(group.rank)}
    shapes = [(*batch.tokens.shape, CONFIG.hidden_size) for batch in batches]
    functions = {s: stage_function(stage, case, batches) for s, stage in stages.items()}
    with torch.set_grad_enabled(case.name != "forward"):
        report = run(plan, functions, group, shapes, queue)
    if case.name != "forward":
        tie(plan, stages, group)
    assert not queue.take() and not queue.waiting
    grads = {n: p.grad for n, p in named_parameters(stages).items() if p.grad is not None}
    losses = [float(loss) for loss in report.losses]
    return Outcome(grads, losses, replace(report, losses=[]), copied(plan, group.rank, stages))


def pipelines(cases: list[Case]) -> list[Outcome]:
    found = []
    with join(Place.from_env()) as ranks:
        for case in cases:
            mesh = make_mesh(Layout(pipeline=case.ranks, data=case.data), ranks.device)
            outcome = pipelined(case, mesh.pipeline, mesh.data.rank)
            if case.data > 1:
                outcome = replace(outcome, grads={n: mesh.data.sum(g) for n, g in sorted(outcome.grads.items())})
            found.append(outcome)
    return found


@contextmanager
def bare_group() -> Iterator[Group]:
    """A group without anybody watching it: what an executor sees of a neighbour's end."""
    dist.init_process_group("gloo")
    assert dist.group.WORLD is not None
    yield Group(dist.get_rank(), dist.get_world_size(), dist.group.WORLD, torch.device("cpu"))


def neighbour_dies(name: str) -> str:
    """Rank 2 of 3 ends in its second forward; what the others say."""
    plan = schedule(name, 3, 6)
    with bare_group() as group:

        def stage(index: int) -> StageFunction:
            def forward(micro: int, x: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
                if group.rank == 2 and micro == 1:
                    os._exit(3)
                h = 2 * (torch.ones(2, 3, 4, requires_grad=True) if x is None else x)
                return (h, None) if index < plan.stages - 1 else (None, h.sum())

            return forward

        functions = {s: stage(s) for s in plan.held(group.rank)}
        try:
            run(plan, functions, group, [(2, 3, 4)] * 6, WeightGradients())
        except CollectiveError as error:
            return str(error)
    return "nothing happened"
