"""What a recipe's values may be; the first one out of bounds is a UserError that names its key."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fathom.runtime import UserError
from fathom.text.synthetic.makers import shares

if TYPE_CHECKING:
    from fathom.train.config import TrainConfig

LEAST = {
    "data.batch_rows": 1, "data.micro_rows": 1, "data.sequence_length": 4, "data.long_length": 0, "data.workers": 0,
    "data.max_epochs": 0, "data.ramp_from_rows": 0, "data.ramp_tokens": 0, "data.ramp_rows_step": 0,
    "optim.warmup_steps": 0, "optim.decay_start": 0, "optim.peak_lr": 0, "optim.final_lr": 0, "optim.eps": 0,
    "optim.weight_decay": 0, "optim.clip_norm": 0, "optim.qk_clip": 0, "balance.gamma": 0, "balance.alpha": 0,
    "balance.aux_alpha": 0, "balance.mtp_lambda": 0, "balance.mtp_lambda_late": 0,
    "parallel.data": 0, "parallel.expert": 1, "parallel.pipeline": 1, "parallel.timeout_s": 1,
    "run.steps": 1, "run.seed": 0, "run.checkpoint_every": 1, "run.keep_checkpoints": 1,
    "run.eval_every": 1, "run.eval_rows": 1, "run.log_every": 1, "run.spike_factor": 0, "extend.factor": 0,
    "lora.rank": 0, "lora.alpha": 0, "distill.top_k": 1, "distill.temperature": 0.01,
}  # fmt: skip
FRACTIONS = (
    "optim.decay_fraction", "balance.gamma_stop_fraction", "balance.mtp_late_fraction", "data.long_fraction",
    "data.fim_rate", "data.split_rate", "extend.long_share", "distill.text_weight",
)  # fmt: skip
BELOW_ONE = (
    "optim.momentum",
    "optim.beta1",
    "optim.beta2",
    "optim.ema_decay",
    "data.text_share",
    "data.generated_share",
)
CHOICES = {
    "optim.kind": ("adamw", "muon"),
    "optim.moments": ("fp32", "bf16"),
    "optim.newton_schulz": ("auto", "fp32", "bf16"),
    "balance.method": ("bias", "aux", "none"),
    "precision.gemm": ("auto", "fp32", "bf16", "fp8"),
    "precision.scale": ("fp32", "ue8m0"),
    "precision.gradients": ("tile", "block"),
    "precision.recompute": ("none", "report", "block"),
    "parallel.schedule": ("gpipe", "1f1b", "zb1p", "dualpipev"),
    "parallel.sharding": ("zero1", "fsdp2"),
    "parallel.dispatch": ("auto", "fp32", "bf16", "fp8"),
    "distill.direction": ("forward", "reverse"),
    "distill.positions": ("all", "answers"),
}

TRAINABLE = ("all", "experts", "router", "mtp", "embedding", "norms", "lora")  # train/selection.py says what each is
LORA_TARGETS = ("attention", "ffn", "experts")
DISTILL = (
    "distill.teacher", "distill.top_k", "distill.direction", "distill.temperature", "distill.text_weight",
    "distill.positions", "distill.cache",
)  # fmt: skip
EXTENSION = ("extend.factor", "extend.long_share")  # extend.phases are refused by the command that was given


def check(config: TrainConfig) -> None:
    """All limits that one recipe alone can break."""

    def value(key: str) -> Any:
        table, name = key.split(".")
        return getattr(getattr(config, table), name)

    for key, least in LEAST.items():
        if not least <= value(key) < math.inf:
            raise UserError(f"{key} is {value(key)}, it must be at least {least}")
    for table in ("weights", "generated"):
        for source, weight in getattr(config.data, table).items():
            if not isinstance(weight, int | float) or isinstance(weight, bool):
                raise UserError(f"data.{table}.{source} is {weight!r}, it must be a number")
            if not 0 <= weight < math.inf:
                raise UserError(f"data.{table}.{source} is {weight}, it must be at least 0")
    if config.data.generated:
        shares(config.data.generated)
    for key in FRACTIONS:
        if not 0 <= value(key) <= 1:
            raise UserError(f"{key} is {value(key)}, it must be between 0 and 1")
    for key in BELOW_ONE:
        if not 0 <= value(key) < 1:
            raise UserError(f"{key} is {value(key)}, it must be at least 0 and below 1")
    for key, allowed in CHOICES.items():
        if value(key) not in allowed:
            raise UserError(f"{key} is {value(key)!r}, it must be one of {', '.join(allowed)}")
    _check_rows(config)
    _check_together(config)
    _check_selection(config)


def refuse(config: TrainConfig, keys: Iterable[str], why: str) -> None:
    """UserError for the first of `keys` that has another value than its default, although it has no effect in `why`."""
    for key in keys:
        table, name = key.split(".")
        values = getattr(config, table)
        if getattr(values, name) != getattr(type(values)(), name):
            raise UserError(f"{key} has no effect in {why}")


def _check_rows(config: TrainConfig) -> None:
    d = config.data
    own = () if config.extend.phases else ("batch_rows", "ramp_from_rows")  # phases have their own rows
    for name in own:
        if getattr(d, name) % d.micro_rows:
            raise UserError(f"data.{name} {getattr(d, name)} is not a multiple of data.micro_rows {d.micro_rows}")
    if bool(d.ramp_from_rows) != bool(d.ramp_tokens):
        raise UserError("data.ramp_from_rows and data.ramp_tokens belong together; set both or neither")
    if d.ramp_rows_step and not d.ramp_tokens:
        raise UserError("data.ramp_rows_step has no effect without data.ramp_from_rows and data.ramp_tokens")
    if not d.long_length:
        refuse(config, ["data.long_fraction"], "a run without data.long_length")
    if not d.generated_share:
        refuse(config, ["data.generated"], "a run without data.generated_share")
    if bool(d.text) != bool(d.text_share):
        raise UserError("data.text and data.text_share belong together; set both or neither")
    if d.ramp_from_rows > d.batch_rows:
        raise UserError(f"data.ramp_from_rows {d.ramp_from_rows} is above data.batch_rows {d.batch_rows}")
    if d.ramp_from_rows and d.long_length:
        raise UserError("data.ramp_from_rows and data.long_length exclude each other; give each its own run")


def _check_together(config: TrainConfig) -> None:
    from fathom.train.schedules import check_tail

    o = config.optim
    check_tail(o.tail, 0.0 if o.decay_start else o.decay_fraction)
    if o.decay_start and o.decay_start >= (end := config.run.steps * (1 - sum(part[0] for part in o.tail))):
        raise UserError(
            f"optim.decay_start {o.decay_start} leaves no step for the decay, which ends at step {end:.0f} of "
            f"run.steps {config.run.steps}; start earlier or raise run.steps"
        )
    if o.kind != "muon":
        refuse(config, ["optim.momentum", "optim.newton_schulz"], f'a run with optim.kind "{o.kind}"')
    p = config.precision
    if p.gemm != "fp8":
        for name, plain in (("scale", "fp32"), ("gradients", "tile")):
            if getattr(p, name) != plain:
                raise UserError(f"precision.{name} {getattr(p, name)!r} is about FP8, but precision.gemm is {p.gemm!r}")
    layout = config.parallel
    if layout.data and layout.data % layout.expert:
        raise UserError(f"parallel.expert {layout.expert} does not divide parallel.data {layout.data}")


def _check_selection(config: TrainConfig) -> None:
    for key, given, allowed in (
        ("run.train", config.run.train, TRAINABLE), ("lora.targets", config.lora.targets, LORA_TARGETS),
    ):  # fmt: skip
        wrong = [part for part in given if part not in allowed]
        if wrong or not given or len(set(given)) < len(given):
            raise UserError(f"{key} is {given}, it must be a list of one or more of {', '.join(allowed)}")
    parts, layout = config.run.train, config.parallel
    if ("lora" in parts) != bool(config.lora.rank):
        raise UserError(f'run.train is {parts} and lora.rank is {config.lora.rank}: adapters want "lora" and a rank')
    if not config.lora.rank:
        refuse(config, ("lora.alpha", "lora.targets"), "a run without lora.rank")
    if parts == ["all"]:
        return
    if "all" in parts:
        raise UserError(f'run.train is {parts}; "all" stands alone, also without adapters')
    if not config.run.init_from:
        raise UserError(f"run.train is {parts}, but run.init_from is empty; frozen weights come from a checkpoint")
    refuse(
        config, ["optim.qk_clip"], f"a run that trains {', '.join(parts)} alone; attention is frozen or its adapters'"
    )
    if layout.pipeline > 1 or layout.sharding == "fsdp2":
        way = f"parallel.pipeline {layout.pipeline}" if layout.pipeline > 1 else 'parallel.sharding "fsdp2"'
        raise UserError(f"run.train is {parts}; {way} trains whole models only, use data or expert ranks with zero1")
