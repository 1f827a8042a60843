"""`fathom train KIND RECIPE [--key.sub value ...]`: run a recipe, continue it, look at it, or ship its result."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fathom.commands.flags import parse_flags
from fathom.runtime import UserError
from fathom.train.config import TrainConfig

USAGE = """usage: fathom train pretrain|sft|extend RECIPE [--key.sub value ...] [--dry-run [--json]]
       fathom train distill RECIPE [--key.sub value ...]
       fathom train report RUN [RUN ...] --to FILE.html|FILE.png [--smoothing F]
       fathom train export RUN --to FOLDER [--dtype fp32|bf16|fp8] [--step N] [--ema] [--lora merge|adapter]
       fathom train release RUN --to FOLDER [--beside MODEL]
       fathom train difference TRAINED BASE --to FILE

Trains what the recipe (a TOML file) describes; a run that was interrupted continues from its newest checkpoint, on any
number of processes. Any key of the recipe can be changed on the command line. --dry-run prints layout, memory, FLOPs,
communication and expected time from the recipe alone.
distill teaches a model, or chosen parts of one, what another one says; without a teacher it trains the MTP modules.
extend lengthens the context of a trained model in two phases (YaRN). report draws one run, or several over each other,
also while they go on. export writes a checkpoint of a run in Hugging Face layout at any time. release writes the result
of an SFT run as FP8 checkpoint with a measured model card, beside an older model's figures if one is named. difference
keeps of an exported model what its base has not: small, where few parts were trained.

examples:
  fathom train pretrain recipes/minnow-pretrain.toml
  fathom train pretrain recipes/minnow-pretrain.toml --run.steps 4000 --run.out runs/longer --precision.gemm fp8
  torchrun --nproc-per-node 4 -m fathom train pretrain recipes/minnow-pretrain.toml --parallel.expert 2 \\
      --data.micro_rows 2
  fathom train pretrain recipes/v3-671b.toml --dry-run
  fathom train report runs/minnow-pretrain --to minnow.html
  fathom train export runs/minnow-pretrain --to runs/now --dtype bf16
  fathom train distill recipes/smol-mtp.toml
  fathom train release runs/minnow-sft --to my-minnow --beside minnow
"""
KINDS = ("pretrain", "sft", "extend", "distill", "report", "export", "release", "difference")
RUNS = ("pretrain", "sft", "extend", "distill")


def main(argv: list[str]) -> int:
    """Entry point of the sub-command: argv without `train`."""
    if not argv:
        raise UserError(f"train needs a kind of run, one of {', '.join(KINDS)}; see `fathom train --help`")
    if "-h" in argv or "--help" in argv:
        print(USAGE, end="")
        return 0
    kind, rest = argv[0], argv[1:]
    if kind not in KINDS:
        raise UserError(f"train has no {kind!r}; use one of {', '.join(KINDS)}")
    if kind == "report":
        return _report(rest)
    if kind == "export":
        return _export(rest)
    if kind == "release":
        return _release(rest)
    if kind == "difference":
        return _difference(rest)
    if not rest or rest[0].startswith("-"):
        raise UserError(f"train {kind} needs a recipe first, such as recipes/minnow-{kind}.toml")
    return _train(kind, TrainConfig.from_toml(rest[0]), rest[1:])


def _train(kind: str, recipe: TrainConfig, flags: list[str]) -> int:
    own = {"--dry-run", "--json"} & set(flags)
    overrides = [flag for flag in flags if flag not in own]
    config = parse_flags(TrainConfig, f"fathom train {kind} RECIPE", overrides, default=recipe)
    if config.extend.phases and kind != "extend":
        raise UserError("the recipe has extend.phases; run it with `fathom train extend`")
    module = importlib.import_module(f"fathom.train.{kind}")
    module.check(config)
    if own == {"--json"}:
        raise UserError("--json belongs to --dry-run; give both or neither")
    if own and kind == "distill":
        raise UserError("--dry-run plans runs of a whole model without a teacher: pretrain, sft, extend")
    if not config.run.out:
        raise UserError("run.out is empty; name a folder for the run in the recipe or with --run.out")
    if own:
        from fathom.train.dry_run import dry_run

        return dry_run(config, as_json="--json" in own)
    from fathom.train.launch import launch

    return launch(config, getattr(module, kind))


@dataclass(frozen=True)
class Report:
    """Draw one run, or several over each other, as page or picture; the loss of each against the first as text."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs; they may be going on."""
    to: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """A .html page or a .png picture."""
    smoothing: float = 0.9
    """Weight of the past per logged step, in the curves of losses and norms."""


def _report(argv: list[str]) -> int:
    from fathom.train.report import against_first, report

    args = parse_flags(Report, "fathom train report", argv)
    for line in against_first(report(args.runs, args.to, args.smoothing)):
        print(line)
    print(f"done: {args.to}", file=sys.stderr)
    return 0


@dataclass(frozen=True)
class Export:
    """Write a checkpoint of a run as model folder in Hugging Face layout."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    to: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """Folder for the model."""
    dtype: Literal["bf16", "fp8", "fp32"] = "bf16"
    """Of the weights."""
    step: int | None = None
    """Which checkpoint; default: the newest."""
    ema: bool = False
    """The moving average of the weights (optim.ema_decay) in place of the weights."""
    lora: Literal["merge", "adapter"] = "merge"
    """Adapters added to the weights, or alone, in PEFT's format."""
    overwrite: bool = False
    """Replace what lies in FOLDER."""


def _export(argv: list[str]) -> int:
    from fathom.train.export import export_run, export_run_adapters

    args = parse_flags(Export, "fathom train export", argv)
    if not (args.run / "config.json").exists():
        raise UserError(f"{args.run} is not the folder of a run: it has no config.json")
    if args.to.exists() and not args.overwrite and (not args.to.is_dir() or any(args.to.iterdir())):
        raise UserError(f"{args.to} is there and not empty; give --overwrite to replace it, or another folder")
    if args.lora == "adapter":
        export_run_adapters(args.run, args.to, step=args.step, ema=args.ema)
    else:
        export_run(args.run, args.to, dtype=args.dtype, step=args.step, ema=args.ema)
    print(f"done: {args.to}", file=sys.stderr)
    return 0


@dataclass(frozen=True)
class Release:
    """Write the model of a finished SFT run as FP8 checkpoint with a measured model card."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    to: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """Folder for the model."""
    beside: Annotated[str, tyro.conf.arg(metavar="MODEL")] = ""
    """An older model (folder or name), measured on the same text for the card."""


def _release(argv: list[str]) -> int:
    from fathom.train.release import release

    args = parse_flags(Release, "fathom train release", argv)
    print(f"done: {release(args.run, args.to, args.beside)}", file=sys.stderr)
    return 0


@dataclass(frozen=True)
class Difference:
    """Write the weights of a trained checkpoint that its base has not, as FP8 blocks in one safetensors file."""

    trained: tyro.conf.Positional[Path]
    """Folder of the exported model."""
    base: tyro.conf.Positional[Path]
    """Folder of the checkpoint that the training started from (run.init_from)."""
    to: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The file."""


def _difference(argv: list[str]) -> int:
    from fathom.models.difference import difference

    args = parse_flags(Difference, "fathom train difference", argv)
    count, size = difference(args.trained, args.base, args.to)
    print(f"done: {args.to}, {count} weights, {size / 2**20:.1f} MiB", file=sys.stderr)
    return 0
