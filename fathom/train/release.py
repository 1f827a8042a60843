"""`fathom train release RECIPE`: a trained run becomes a checkpoint to ship, with a card that says what it is.

    SFT export (FP32) -> FP8 blocks in Hugging Face layout, tokenizer, chat template, generation settings
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

from fathom.checkpoint.locate import resolve
from fathom.checkpoint.reader import load_model, read_config
from fathom.checkpoint.writer import save_model
from fathom.config import ModelConfig
from fathom.model.cost import parameters
from fathom.runtime import UserError, atomic_write, read_json, write_json, write_text
from fathom.text.chat import BUILTIN
from fathom.train.config import TrainConfig
from fathom.train.figures import draw_curves, heldout_bits, measure
from fathom.train.report import Record, read_run


@dataclass(frozen=True)
class Stage:
    """One run of those that made a model."""

    run: Path
    config: TrainConfig
    log: list[Record]

    @property
    def kind(self) -> str:
        """As the card names it."""
        if self.config.extend.phases:
            return f"extension to {self.config.data.sequence_length:,} tokens"
        return "SFT" if self.config.run.init_from else "pretraining"

    @property
    def seconds(self) -> float:
        """Of training, by the median speed: a pause or a busy hour does not count."""
        return float(self.log[-1]["tokens"] / np.median([r["tokens_per_second"] for r in self.log]))


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
        stages.insert(0, Stage(folder, config, read.records))
        if not config.run.init_from:
            return stages
        folder = Path(config.run.init_from).parent
        if folder in [stage.run for stage in stages]:
            raise UserError(f"{folder} starts from itself (run.init_from)")


def release(config: TrainConfig, folder: Path, beside: str = "") -> Path:
    """Write the model of the finished SFT run `config` to `folder` with its card; returns `folder`.

    `beside`: folder or name of an older model, measured on the same text for the card.
    """
    export = Path(config.run.out) / "export"
    if not (export / "config.json").exists():
        raise UserError(f"{export} does not exist; finish `fathom train sft` first")
    stages = lineage(Path(config.run.out))
    documents, chats = stages[0].config.data.heldout, config.data.heldout
    if not documents or not chats:
        raise UserError("data.heldout of pretraining or SFT is empty; the card is measured on held-out text")
    if beside and Path(documents).is_dir():
        raise UserError(f"--beside needs held-out text that any tokenizer can read, but {documents} holds token shards")
    context = read_config(stages[0].run / "export").max_position_embeddings  # what every stage and the older one has
    older = measure(resolve(beside), documents, chats, context) if beside else None  # first: `folder` may be its own
    master = load_model(export, dtype="float32")
    save_model(master, folder, dtype="fp8", mtp_copies=False, side_files_from=export, overwrite=True)
    template = Path(__file__).parents[1] / "text" / "templates" / BUILTIN[config.data.template]
    shutil.copyfile(template, folder / "chat_template.jinja")
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
    write_text(folder / "README.md", card(m, stages, figures, with_lengths=lengths is not None and lengths.exists()))
    return folder


def card(model: ModelConfig, stages: list[Stage], figures: dict[str, Any], *, with_lengths: bool) -> str:
    """README.md of the model: what it is, what it saw, what it can do."""
    pretraining = stages[0]
    sources = read_json(Path(pretraining.config.data.train).parent / "sources.json")
    template = (Path(__file__).parent / "card.md.jinja").read_text(encoding="utf-8")
    text: str = (
        jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)
        .from_string(template)
        .render(
            config=model,
            count=parameters(model),
            stages=stages,
            sft=stages[-1].config.data,
            o=pretraining.config.optim,
            b=pretraining.config.balance,
            minutes=math.ceil(sum(stage.seconds for stage in stages) / 60),
            speed=f"{pretraining.log[-1]['tokens'] / pretraining.seconds:,.0f}",
            millions=lambda n: f"{n / 1e6:.1f}",
            sources={n: {"skipped": False, "also_evaluation": False, "package": ""} | s for n, s in sources.items()},
            skipped=", ".join(n for n, s in sources.items() if s.get("skipped")),
            with_lengths=with_lengths,
            **figures,
        )
    )
    return text
