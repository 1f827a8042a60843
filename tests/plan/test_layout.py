"""Every layer, expert and embedding is somewhere, once; stages are those that the trainer makes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fathom.config import ModelConfig
from fathom.model.cost import parameters
from fathom.parallel.stage import layers_per_stage
from fathom.plan.job import Job
from fathom.plan.layout import held, holding, stages
from fathom.runtime import UserError

V3 = ModelConfig.preset("v3-671b")
MINNOW = ModelConfig.preset("minnow")


def v3(**changes: Any) -> Job:
    job = Job(V3, 10**12, 15360, gemm="fp8", recompute="report", moment_bytes=2, pipeline=16, data=128, expert=64,
              schedule="dualpipev", dispatch="fp8")  # fmt: skip
    return dataclasses.replace(job, **changes)


@pytest.mark.parametrize("schedule", ["1f1b", "zb1p", "dualpipev"])
@pytest.mark.parametrize(
    ("model", "pipeline", "data", "expert"), [(V3, 16, 128, 64), (MINNOW, 3, 4, 2), (MINNOW, 1, 8, 8)]
)
def test_all_ranks_together_hold_the_model(
    model: ModelConfig, pipeline: int, data: int, expert: int, schedule: str
) -> None:
    job = Job(model, 1, 128, length=128, pipeline=pipeline, data=data, expert=expert, schedule=schedule)
    everything = [holding(job, rank) for rank in range(pipeline)]
    whole = sum(h.plain + h.routed * expert for h in everything)
    copy = 0 if pipeline == 1 or schedule == "dualpipev" else model.vocab_size * model.hidden_size  # for MTP
    assert whole - copy == parameters(model).with_mtp


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipev"])
@pytest.mark.parametrize(("layers", "pipeline"), [(61, 16), (6, 3), (6, 1), (27, 4), (7, 4)])
def test_stages_are_those_of_the_trainer(layers: int, pipeline: int, schedule: str) -> None:
    job = Job(V3.replace(num_hidden_layers=layers), 1, 64, pipeline=pipeline, schedule=schedule)
    assert [s.layers for s in stages(job)] == layers_per_stage(layers, job.stages)
    assert sorted(s.index for rank in range(pipeline) for s in held(job, rank)) == list(range(job.stages))


def test_a_v_has_both_ends_on_rank_0() -> None:
    ends = [(s.first, s.last) for s in held(v3(), 0)]
    assert ends == [(True, False), (False, True)]
    assert not any(s.first or s.last for rank in range(1, 16) for s in held(v3(), rank))


def test_the_reports_experts() -> None:
    """4 of 256 experts on each of 64 ranks; 128 data ranks hold two copies (report 3.2)."""
    job = v3()
    assert job.expert_copies == 2 and job.world == 2048 and job.micro_batches == 120
    assert holding(job, 5).routed == 4 * 4 * 44_040_192  # 4 layers, 4 experts


@pytest.mark.parametrize(
    ("changes", "words"),
    [(dict(expert=48), "parallel.expert 48"), (dict(data=100, expert=50), "parallel.expert 50"),
     (dict(data=112, expert=16), "data.batch_rows 15360"), (dict(schedule="x"), "parallel.schedule"),
     (dict(pipeline=0), "parallel.pipeline")],
)  # fmt: skip
def test_layouts_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        v3(**changes)


def test_too_many_stages() -> None:
    with pytest.raises(UserError, match="61 layers cannot be cut into 64 stages"):
        stages(v3(pipeline=32))
