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
    layout = config.parallel
    data = layout.data or layout.expert
    tokens = ramp_of(config, data).first_row(config.run.steps) * config.data.sequence_length
    fast = fast_bf16(torch.device("cpu"))
    world = data * layout.pipeline
    return Job.from_recipe(config.model_config(), config.to_dict(), tokens=tokens, world=world, fast_bf16=fast)


def device_for(job: Job) -> Device:
    """The report's H800 for what needs one, else this machine as it is measured now."""
    from fathom.model.cost import parameters
    from fathom.plan.timing import this_machine

    if parameters(job.model).total >= REPORT_SIZE:
        return DEVICES["h800"]
    peak = matmul_peak(torch.device("cpu"), torch.float32)
    return this_machine(dict.fromkeys(("fp32", "bf16", "fp8"), peak))  # all are carried by FP32 products here


def dry_run(config: TrainConfig, *, as_json: bool) -> int:
    """Print the plan, of an extension that of each phase; with `as_json` all of it as one document."""
    runs = _runs(config)
    plans = [_plan(run) for run in runs]
    if as_json:
        documents = [run.to_dict() | {"plan": what} for run, what in zip(runs, plans, strict=True)]
        json.dump({"phases": documents} if config.extend.phases else documents[0], sys.stdout, indent=2)
        print()
        return 0
    for number, what in enumerate(plans, 1):
        if config.extend.phases:
            print(f"phase {number}")
        show(what)
    return 0


def _runs(config: TrainConfig) -> list[TrainConfig]:
    """The runs that a recipe stands for."""
    if not config.extend.phases:
        return [config]
    longer = extended(config.model_config(), config.extend.factor).to_dict()
    fields = {name: longer[name] for name in ("max_position_embeddings", "rope_scaling")}
    start = Path(config.run.init_from or "fresh")
    phases = [phase_config(config, n, start) for n in range(1, len(config.extend.phases) + 1)]
    return [dataclasses.replace(phase, model=config.model | fields) for phase in phases]


def _plan(config: TrainConfig) -> dict[str, Any]:
    job = job_of(config)
    on = device_for(job)
    return plan(job, on, None if on.name == DEVICES["h800"].name else SHARE_HERE)
