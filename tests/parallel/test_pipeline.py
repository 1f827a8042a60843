"""Pipelines against one process: same losses, the same bits of gradients, whatever the schedule; stages; failures."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel.distributed import Finished
from parallel.distributed import run as run_ranks
from parallel.pipeline_bodies import (
    CONFIG,
    Case,
    Outcome,
    neighbour_dies,
    pipelined,
    pipelines,
    staged,
    wait_in,
    whole,
)
from torch import Tensor, nn

from fathom.kernels.deferred import WeightGradients, Work
from fathom.model.transformer import DeepseekV3
from fathom.parallel.group import Group
from fathom.parallel.pipeline import StageFunction, run
from fathom.parallel.schedules import schedule
from fathom.parallel.stage import layers_per_stage, named_parameters, split
from fathom.parallel.timeline import peaks
from fathom.runtime import UserError

EMBEDDING = "embed_tokens.weight"
ALONE = Group(0, 1, None, torch.device("cpu"))
TWO = [
    Case("gpipe", 2, 3),
    Case("1f1b", 2, 1),
    Case("1f1b", 2, 5, depth=2, packed=True),
    Case("zb1p", 2, 5, depth=2, packed=True),
    Case("zb1p", 2, 1),
    Case("1f1b", 2, 3, depth=0),
    Case("zb1p", 2, 3, depth=0, tied=True),
    Case("dualpipev", 2, 4),
    Case("dualpipev", 2, 7, depth=2, packed=True),
    Case("forward", 2, 4),
]
FOUR = [
    Case("gpipe", 4, 3),
    Case("1f1b", 4, 6, packed=True),
    Case("zb1p", 4, 2),
    Case("zb1p", 4, 5, packed=True),
    Case("dualpipev", 4, 9, depth=2, packed=True),
    Case("zb1p", 2, 3, data=2),
    Case("dualpipev", 2, 4, data=2, packed=True),
]


def gathered(outcomes: list[Outcome]) -> dict[str, Tensor]:
    """Gradients of all ranks; a copied embedding must have the first one's bits."""
    grads: dict[str, Tensor] = {}
    for outcome in outcomes:
        for name, grad in outcome.grads.items():
            assert not grad.requires_grad
            if name in grads:
                assert name == EMBEDDING and outcome.copied == {EMBEDDING} and torch.equal(grad, grads[name])
            grads[name] = grad
    return grads


def assert_close(got: Tensor, wanted: Tensor, name: str) -> None:
    """Another order of the same FP32 sum."""
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()), msg=name)


def assert_right(case: Case, ended: list[Outcome]) -> None:
    """`ended`: the ranks of one pipeline."""
    grads, losses = whole(case)
    sums = [sum(values) for values in zip(*(outcome.losses for outcome in ended), strict=True)]
    assert sums == pytest.approx(losses[: case.micro], rel=1e-6), case
    for rank, outcome in enumerate(ended):
        assert outcome.report.peak == (peaks(case.schedule())[rank] if case.name != "forward" else 0)
    found = gathered(ended)
    if case.name == "forward":
        assert not found
        return
    assert found.keys() == grads.keys()
    for name in found:
        if name == EMBEDDING or case.data > 1:
            assert_close(found[name], grads[name], f"{case}: {name}")
        else:
            assert torch.equal(found[name], grads[name]), f"{case}: {name}"
    if case.data == 1 and case.name == "zb1p":  # the embedding's bits, too, where its sum has the same order
        assert torch.equal(found[EMBEDDING], staged(case)[0][EMBEDDING]), case


def values(ended: dict[int, Finished]) -> list[list[Outcome]]:
    assert [finished.code for finished in ended.values()] == [0] * len(ended), ended
    return [finished.value for finished in ended.values()]


@pytest.mark.parametrize(("size", "cases"), [(2, TWO), (4, FOUR)])
def test_every_schedule_is_one_process(size: int, cases: list[Case], tmp_path: Path) -> None:
    ended = values(run_ranks(size, pipelines, cases, folder=tmp_path))
    for number, case in enumerate(cases):
        assert_right(case, [ranks[number] for ranks in ended][:: case.data])


@pytest.mark.parametrize("case", [Case("1f1b", 1, 3), Case("zb1p", 1, 3, depth=2), Case("dualpipev", 1, 4)])
def test_a_pipeline_of_one_rank_needs_no_group(case: Case) -> None:
    outcome = pipelined(case, ALONE)
    assert_right(case, [outcome])
    assert outcome.report.bytes_sent == 0 and not outcome.copied


def test_the_slow_clear_way_is_the_whole_model() -> None:
    for case in (Case("gpipe", 2, 3), Case("gpipe", 4, 2, depth=2, packed=True)):
        (grads, losses), (wanted, totals) = staged(case), whole(case)
        assert losses == pytest.approx(totals, rel=1e-6) and grads.keys() == wanted.keys()
        for name, grad in grads.items():
            if name == EMBEDDING:
                assert_close(grad, wanted[name], name)
            else:
                assert torch.equal(grad, wanted[name]), name


def test_bytes_and_times(tmp_path: Path) -> None:
    case = Case("zb1p", 2, 3)
    first, last = (outcomes[0].report for outcomes in values(run_ranks(2, pipelines, [case], folder=tmp_path)))
    assert first.bytes_sent == last.bytes_sent == 3 * 2 * 9 * CONFIG.hidden_size * 4
    for rank, report in enumerate((first, last)):
        assert [span.step for span in report.spans] == list(case.schedule().steps[rank])
        for one, other in zip(report.spans, report.spans[1:], strict=False):
            assert one.start < one.end <= other.start
        assert 0 < report.waited <= report.idle < report.seconds


@pytest.mark.parametrize("name", ["1f1b", "dualpipev"])
def test_a_dead_neighbour_is_named(name: str, tmp_path: Path) -> None:
    ended = run_ranks(3, neighbour_dies, name, folder=tmp_path)
    assert ended[2].code == 3
    assert "pipeline rank 2 did not" in ended[1].value, ended[1]
    assert "pipeline rank 1 did not" in ended[0].value, ended[0]  # which left because of rank 2


class Box:
    """A tensor saved for backward."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize(("name", "most"), [("1f1b", 0), ("zb1p", 0), ("gpipe", 5), ("dualpipev", 3)])
def test_activations_are_freed_after_backward(name: str, most: int) -> None:
    """How many saved tensors are alive when a forward starts: one per micro-batch on stage 0, two on the other."""
    alive: weakref.WeakSet[Box] = weakref.WeakSet()
    weight, counts = torch.ones(4, requires_grad=True), []
    plan = schedule(name, 1, 6)

    def pack(tensor: Tensor) -> Any:
        alive.add(box := Box(tensor))
        return box

    def stage(index: int) -> Any:
        def forward(micro: int, x: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
            counts.append(len(alive))
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
                h = (torch.ones(4) if x is None else x) * weight
                return (h, None) if index < plan.stages - 1 else (None, h.sum())

        return forward

    run(plan, {s: stage(s) for s in plan.held(0)}, ALONE, [(4,)] * 6, WeightGradients())
    assert max(counts) == most
    assert not alive and weight.grad is not None and weight.grad.sum() > 0


class Noting(WeightGradients):
    """Notes whether weight gradients wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[bool] = []

    def add(self, work: Work) -> None:
        self.waited.append(self.waiting)
        super().add(work)


@pytest.mark.parametrize(("name", "waiting"), [("1f1b", 0), ("zb1p", 6), ("dualpipev", 1)])
def test_weight_gradients_wait_between_i_and_w(name: str, waiting: int) -> None:
    """Six micro-batches on one rank; there, dualpipev splits the very last backward alone."""
    queue, plan = Noting(), schedule(name, 1, 6)
    layers = [nn.Linear(4, 4, bias=False) for _ in range(plan.stages)]
    for layer in layers:
        wait_in(layer, queue)

    def stage(index: int) -> StageFunction:
        def forward(micro: int, x: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
            h = layers[index](torch.ones(1, 4) if x is None else x)
            return (h, None) if index < plan.stages - 1 else (None, h.sum())

        return forward

    run(plan, {s: stage(s) for s in plan.held(0)}, ALONE, [(1, 4)] * 6, queue)
    assert len(queue.waited) == 6 * plan.stages and sum(queue.waited) == waiting
    assert all(layer.weight.grad is not None for layer in layers)


# ---- stages --------------------------------------------------------------------------------------------------------


def test_layers_are_spread_evenly() -> None:
    assert [len(r) for r in layers_per_stage(61, 16)] == [4] * 14 + [3, 2]  # V3 over the report's 16 ranks
    assert [len(r) for r in layers_per_stage(7, 8)] == [1] * 7 + [0]
    for layers in range(1, 20):
        assert layers_per_stage(layers, 1) == [range(layers)]
        for stages in range(2, layers + 2):
            cut = layers_per_stage(layers, stages)
            assert [i for part in cut for i in part] == list(range(layers)) and len(cut) == stages
            weights = [len(part) + (stage == stages - 1) for stage, part in enumerate(cut)]
            assert max(weights) - min(weights) <= 1


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(UserError, match="7 layers cannot be cut into 9 pipeline stages, at most into 8"):
        layers_per_stage(7, 9)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("tied", [False, True])
def test_stages_have_the_models_names_and_tensors(device: str, tied: bool) -> None:
    model = DeepseekV3(CONFIG.replace(tie_word_embeddings=tied), device=device)
    whole_model = dict(model.named_parameters()) | dict(model.named_buffers())
    stages = {s: split(model, s, 4) for s in range(4)}
    found: dict[str, Tensor] = {}
    for stage in stages.values():
        own = dict(stage.named_parameters()) | dict(stage.named_buffers())
        assert own.keys() & found.keys() <= {EMBEDDING}
        found |= own
    assert found.keys() == whole_model.keys() and all(found[name] is whole_model[name] for name in found)
    assert named_parameters(stages).keys() == dict(model.named_parameters()).keys()
    assert [stage.shares_embedding for stage in stages.values()] == [True, False, False, True]


def test_the_wrong_group_is_a_persons_mistake() -> None:
    with pytest.raises(UserError, match="2 pipeline ranks, the pipeline group has 1"):
        run(schedule("1f1b", 2, 2), {}, ALONE, [(1,)] * 2, WeightGradients())
