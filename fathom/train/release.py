"""`fathom train release RUN`: a trained SFT run becomes a checkpoint to ship, with a card that says what it is.

    SFT export (FP32) -> FP8 blocks in Hugging Face layout, its tokenizer and chat template, generation settings
    reloaded as shipped -> figures.py -> README.md, curves.png, lengths.png

The runs behind it are found by going back from run.init_from to run.init_from: SFT, phases of an extension,
pretraining. The figures are those of the FP8 checkpoint as a user loads it, not of the master weights.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from fathom.checkpoint.reader import load_model, read_config
from fathom.checkpoint.writer import save_model
from fathom.config import ModelConfig
from fathom.model.cost import parameters
from fathom.models.resolve import resolve
from fathom.runtime import UserError, atomic_write, read_json, write_json, write_text
from fathom.train.config import TrainConfig
from fathom.train.figures import draw_curves, heldout_bits, measure
from fathom.train.report import Record, read_run


@dataclass(frozen=True)
class Stage:
    """One run of those that made a model."""

    run: Path
    config: TrainConfig
    log: list[Record]
    kind: str  # as the card names it

    @property
    def rows(self) -> str:
        """What a step is made of."""
        d = self.config.data
        late = f", the last {d.long_fraction:.0%} in rows of {d.long_length:,}" if d.long_length else ""
        return f"{d.batch_rows} x {d.sequence_length:,}{late}"

    @property
    def speed(self) -> float:
        """Tokens per second of training, the median: a pause or a busy hour does not count."""
        return float(np.median([r["tokens_per_second"] for r in self.log]))

    @property
    def minutes(self) -> float:
        """Of training at that speed; evaluations and checkpoints are not in it."""
        return float(self.log[-1]["tokens"]) / self.speed / 60


def lineage(run: Path) -> list[Stage]:
    """The runs that led to `run`, the first one (fresh weights) first."""
    stages: list[Stage] = []
    folder = run
    while True:
        try:
            read = read_run(folder)
        except UserError as error:
            raise UserError(f"{error}; a card describes a model from its first step, keep its runs") from None
        config = TrainConfig.from_dict(read.config)
        kind = "SFT" if not stages else "further training" if config.run.init_from else "pretraining"
        if config.extend.phases:
            kind = f"extension to {config.data.sequence_length:,} tokens"
        stages.insert(0, Stage(folder, config, read.records, kind))
        if not config.run.init_from:
            return stages
        folder = Path(config.run.init_from).parent
        if folder in [stage.run for stage in stages]:
            raise UserError(f"{folder} starts from itself (run.init_from)")


def release(run: Path, folder: Path, beside: str = "") -> Path:
    """Write the model of the finished SFT run in the folder `run` to `folder` with its card; returns `folder`.

    `beside`: folder or name of an older model, measured on the same text for the card. All that the card needs is
    looked for before anything is written: `folder` may hold the older model.
    """
    export = run / "export"
    if not (export / "config.json").exists():
        raise UserError(f"{export} does not exist; finish `fathom train sft` first")
    stages = lineage(run)
    config = stages[-1].config
    if not config.run.init_from or config.extend.phases:
        raise UserError(f"{run} is no SFT run; a release ships a model that chats, `fathom train export` any other")
    require_mtp(export)
    documents, chats = stages[0].config.data.heldout, config.data.heldout
    if not documents or not chats:
        raise UserError("data.heldout of pretraining or SFT is empty; the card is measured on held-out text")
    for path in (documents, chats):
        if not Path(path).exists():
            raise UserError(f"{path} does not exist, seen from {Path.cwd()}; the card is measured on held-out text")
    sources = read_sources(Path(stages[0].config.data.train).parent / "sources.json")
    context = read_config(stages[0].run / "export").max_position_embeddings  # what every stage has
    if beside:
        check_beside(beside, documents, context)
    older = measure(resolve(beside), documents, chats, context) if beside else None  # first: `folder` may be its own
    master = load_model(export, dtype="float32")
    save_model(master, folder, dtype="fp8", mtp_copies=False, side_files_from=export, overwrite=True)
    m = master.config
    settings = read_json(folder / "tokenizer_config.json") | {"model_max_length": m.max_position_embeddings}
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "generation_config.json", {
        "bos_token_id": m.bos_token_id, "eos_token_id": m.eos_token_id[0], "pad_token_id": m.pad_token_id,
        "do_sample": True, "temperature": 0.6, "top_p": 0.95,
    })  # fmt: skip
    figures = {
        "pretrained": heldout_bits(stages[0].run / "export", documents, context),
        "shipped": measure(folder, documents, chats, context),
        "older": older,
        "context": context,
    }
    with atomic_write(folder / "curves.png") as temporary:
        draw_curves(stages[0].log, stages[-1].log, temporary)
    lengths = next((s.run.parent / "lengths.png" for s in stages if s.config.extend.phases), None)
    if lengths is not None and lengths.exists():
        shutil.copyfile(lengths, folder / "lengths.png")
    figures |= {"sources": sources, "with_lengths": lengths is not None and lengths.exists()}
    write_text(folder / "README.md", card(folder.resolve().name, m, stages, figures))
    return folder


def read_sources(file: Path) -> dict[str, Any]:
    """Where the corpus is from, as `fathom corpus build` has written it beside the text."""
    if not file.exists():
        raise UserError(f"{file} does not exist; the card credits each source: {{name: {{licence, docs, characters}}}}")
    sources: dict[str, Any] = read_json(file)
    for name, source in sources.items():
        lacking = {"licence", "docs", "characters"} - source.keys()
        if lacking and not source.get("skipped"):
            raise UserError(f"{file}: {name} has no {', '.join(sorted(lacking))}; the card credits each source")
    return {n: {"skipped": False, "also_evaluation": False, "package": ""} | s for n, s in sources.items()}


def require_mtp(folder: Path) -> ModelConfig:
    """The config of a checkpoint; a UserError if it has no MTP module."""
    config = read_config(folder)
    if not config.num_nextn_predict_layers:
        raise UserError(f"{folder} has no MTP module, whose acceptance the card quotes")
    return config


def check_beside(model: str, documents: str, context: int) -> None:
    """Whether an older model can be measured on the same text."""
    if Path(documents).is_dir():
        raise UserError(f"--beside needs held-out text that any tokenizer can read, but {documents} holds token shards")
    older = require_mtp(resolve(model))
    if older.max_position_embeddings < context:
        raise UserError(
            f"--beside {model} has a context of {older.max_position_embeddings} tokens, but the card reads {context} "
            "at a time"
        )


def is_minnow(pretraining: TrainConfig, sources: dict[str, Any]) -> bool:
    """Whether this is the bundled model anew: its architecture, trained on what `fathom corpus build` makes."""
    generated = {"stories", "dialogues", "arithmetic"}
    same = pretraining.preset == "minnow" and not pretraining.model.keys() - {"initializer_range"}
    return same and generated <= sources.keys()


def card(name: str, model: ModelConfig, stages: list[Stage], figures: dict[str, Any]) -> str:
    """README.md of the model: what it is, what it saw, what it can do."""
    template = (Path(__file__).parent / "card.md.jinja").read_text(encoding="utf-8")
    text: str = (
        jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)
        .from_string(template)
        .render(
            name=name,
            bundled=is_minnow(stages[0].config, figures["sources"]),
            config=model,
            count=parameters(model),
            stages=stages,
            extension=next((s.config.extend for s in stages if s.config.extend.phases), None),
            sft=stages[-1].config.data,
            o=stages[0].config.optim,
            minutes=math.ceil(sum(stage.minutes for stage in stages)),
            millions=lambda n: f"{n / 1e6:.1f}",
            skipped=", ".join(n for n, s in figures["sources"].items() if s["skipped"]),
            **figures,
        )
    )
    return text
