"""`--dry-run`: what a recipe's run would take, from the recipe alone (plan/training.py), before anything is read.

A recipe that leaves parallel.data at 0 takes whatever processes there are; the plan then assumes one copy of the model,
or as many data ranks as parallel.expert needs.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from fathom.model.context import extended
from fathom.plan.job import Job
from fathom.plan.timing import DEVICES, Device
from fathom.plan.training import plan, show
from fathom.runtime import fast_bf16
from fathom.train.config import TrainConfig
from fathom.train.extend import phase_config
from fathom.train.loop import ramp_of
from fathom.train.watch import matmul_peak

SHARE_HERE = 0.5  # of the measured matmul peak: what minnow's training reaches on CPUs
REPORT_SIZE = 10**9  # parameters; smaller models are planned for this machine, larger ones for the report's


def job_of(config: TrainConfig) -> Job:
    """The recipe in the planner's words."""
    d, p, layout = config.data, config.precision, config.parallel
    gemm = p.gemm if p.gemm != "auto" else ("bf16" if fast_bf16(torch.device("cpu")) else "fp32")
    data = layout.data or layout.expert
    return Job(
        model=config.model_config(), tokens=ramp_of(config, data).first_row(config.run.steps) * d.sequence_length,
        batch_rows=d.batch_rows, micro_rows=d.micro_rows, length=d.sequence_length, gemm=gemm, recompute=p.recompute,
        moment_bytes=2 if config.optim.moments == "bf16" else 4, ema=config.optim.ema_decay > 0,
        pipeline=layout.pipeline, data=data, expert=layout.expert, schedule=layout.schedule, sharding=layout.sharding,
        dispatch=gemm if layout.dispatch == "auto" else layout.dispatch,
    )  # fmt: skip


def device_for(job: Job) -> Device:
    """The report's H800 for what needs one, else this machine as it is measured now."""
    from fathom.model.cost import parameters
    from fathom.plan.timing import this_machine

    if parameters(job.model).total >= REPORT_SIZE:
        return DEVICES["h800"]
    peak = matmul_peak(torch.device("cpu"), torch.float32)
    return this_machine(dict.fromkeys(("fp32", "bf16", "fp8"), peak))  # all are carried by FP32 products here


def dry_run(config: TrainConfig, *, as_json: bool) -> int:
    """Print the plan, of an extension that of each phase; with `as_json` it and the resolved recipe as one document."""
    if not config.extend.phases:
        return _one(config, as_json=as_json)
    for number in range(1, len(config.extend.phases) + 1):
        if not as_json:
            print(f"phase {number}")
        model = extended(config.model_config(), config.extend.factor).to_dict()
        start = Path(config.run.init_from or "fresh")
        phase = dataclasses.replace(phase_config(config, number, start), model=_fields(model))
        _one(phase, as_json=as_json)
    return 0


def _fields(model: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in model.items() if k in ("max_position_embeddings", "rope_scaling")}


def _one(config: TrainConfig, *, as_json: bool) -> int:
    job = job_of(config)
    on = device_for(job)
    what = plan(job, on, None if on.name == "H800" else SHARE_HERE)
    if as_json:
        json.dump(config.to_dict() | {"plan": what}, sys.stdout, indent=2)
        print()
    else:
        show(what)
    return 0
