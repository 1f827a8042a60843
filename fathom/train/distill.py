"""`fathom train distill RECIPE`: a model learns from another one's distributions, token by token.

    rows of the run -> teacher: its K most likely tokens at every position (OUT/teacher, once) -> the loop

The loss is in distillation.py, the teachers are in teacher.py, what is kept of them in teacher_cache.py.

Two uses
 1. Healing: run.train names the parts that changed (experts, router, lora), the teacher is the original.
 2. MTP for a model that had none: run.train = ["mtp"], no teacher. The main model is frozen, so it is its own teacher,
    and what it says, hidden states included, is kept as well: after the first pass only the module runs.

Data: documents as in pretraining, or dialogues as in SFT (found by their first row), with a share of documents among
them (data.text). distill.positions says whether of dialogues all tokens are learnt from, or answers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from fathom.model.transformer import DeepseekV3
from fathom.parallel.group import Group
from fathom.parallel.mesh import Mesh, single
from fathom.runtime import UserError, keep_freed_memory, pick_device
from fathom.text.batch import Batch, stack
from fathom.text.chat import ChatTemplate
from fathom.text.dataset import read_jsonl
from fathom.text.dialogues import is_dialogue
from fathom.text.prefetch import Prefetched
from fathom.text.shards import open_streams
from fathom.text.tokenizer import Tokenizer
from fathom.train.config import TrainConfig
from fathom.train.distillation import Distillation
from fathom.train.evaluate import ROWS_AT_ONCE, Nats
from fathom.train.export import OWN, export
from fathom.train.limits import EXTENSION, refuse
from fathom.train.loop import Trainer
from fathom.train.pretrain import batches, open_tokenizer, start_model, token_stream
from fathom.train.selection import main_trains
from fathom.train.sft import dialogues, with_text
from fathom.train.teacher import Asked, Teacher, check_teacher, identity, load_speaker
from fathom.train.teacher_cache import Plan, Shape, build


def check(config: TrainConfig) -> None:
    """What a distillation needs and what it does not take, before anything is read."""
    d, layout, parts = config.distill, config.parallel, config.run.train
    if not config.run.init_from:
        raise UserError("run.init_from is empty; a distillation starts from a checkpoint")
    if not d.teacher and main_trains(parts):
        raise UserError(
            f"distill.teacher is empty, but run.train {parts} changes the main model; name a teacher (also "
            'run.init_from may be one), or train ["mtp"] alone'
        )
    if not main_trains(parts) and not (config.balance.mtp_lambda and config.balance.mtp_lambda_late):
        raise UserError(
            "run.train names MTP alone, but balance.mtp_lambda or mtp_lambda_late is 0: nothing trains then"
        )
    if layout.pipeline > 1 or layout.sharding == "fsdp2":
        way = f"parallel.pipeline {layout.pipeline}" if layout.pipeline > 1 else 'parallel.sharding "fsdp2"'
        raise UserError(f"a distillation runs on data and expert ranks with zero1; {way} is not among them")
    if config.data.template != OWN:
        ChatTemplate.builtin(config.data.template)
    refuse(config, EXTENSION, "a distillation; they belong to `fathom train extend`")
    refuse(config, ["data.long_length"], "a distillation; its rows have data.sequence_length tokens")


def is_dialogues(path: str) -> bool:
    """Whether the first record of a JSONL file is a dialogue; a folder holds token shards."""
    if Path(path).is_dir() or not Path(path).exists():
        return False
    try:
        return any(map(is_dialogue, islice(read_jsonl(path), 1)))
    except UserError:
        return False  # whoever reads it all says what is wrong


def rows_of(config: TrainConfig, model: DeepseekV3, tokenizer: Tokenizer, data_ranks: int) -> tuple[Prefetched, str]:
    """The batches of the run, and what its dialogues were recognised as."""
    d, everywhere = config.data, config.distill.positions == "all"
    if is_dialogues(d.train):
        refuse(config, ["data.ramp_from_rows"], "a distillation over dialogues")
        own = 1 if d.text else d.batch_rows
        talks = dialogues(config, d.train, model.config, tokenizer, rows=own, everywhere=everywhere)
        return Prefetched(with_text(config, talks, model.config, tokenizer), d.workers), talks.note
    for_talks = ["data.template", "data.text", "distill.positions"]
    refuse(config, for_talks, "a distillation over documents; data.train has no dialogues")
    shards = token_stream(d.tokenizer, model.config, d.train, Path(config.run.out) / "tokens" / "train")
    return batches(config, shards, tokenizer, data_ranks), ""


def heldout_of(config: TrainConfig, model: DeepseekV3, tokenizer: Tokenizer) -> list[Batch]:
    """Held-out rows, a few per batch: run.eval_rows per source of documents, or as many of dialogues."""
    d, rows = config.data, config.run.eval_rows
    if not d.heldout:
        return []
    if is_dialogues(d.heldout):
        everywhere = config.distill.positions == "all"
        talks = dialogues(config, d.heldout, model.config, tokenizer, rows=1, everywhere=everywhere)
        found = [talks.batch(row) for row in range(min(rows, talks.steps_per_epoch))]
        return [stack(found[first : first + ROWS_AT_ONCE]) for first in range(0, len(found), ROWS_AT_ONCE)]
    shards = token_stream(d.tokenizer, model.config, d.heldout, Path(config.run.out) / "tokens" / "heldout")
    return document_rows(shards, rows=rows, length=d.sequence_length)


def document_rows(folder: Path, *, rows: int, length: int) -> list[Batch]:
    """The first `rows` whole rows of each source of tokenised documents."""
    found = []
    for stream in open_streams(folder).values():
        for row in range(min(rows, (len(stream) - 1) // length)):
            ids = torch.from_numpy(np.asarray(stream[row * length : (row + 1) * length + 1]).astype(np.int64))[None]
            found.append(Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()))
    if not found:
        raise UserError(f"no source of data.heldout has more than {length} tokens; add text or leave it empty")
    return [stack(found[first : first + ROWS_AT_ONCE]) for first in range(0, len(found), ROWS_AT_ONCE)]


def teacher_of(
    config: TrainConfig, model: DeepseekV3, data: Prefetched, heldout: list[Batch], group: Group,
    tick: Callable[[], None],
) -> Teacher | None:  # fmt: skip
    """The cache of what the teacher says about all rows, or the teacher; None: the model asks its own main part."""
    d, mains = config.distill, main_trains(config.run.train)
    name = d.teacher or config.run.init_from

    def asked() -> Asked:
        return Asked(load_speaker(name, model, group.device), d.top_k, d.temperature, keeps_hidden=not d.teacher)

    if not d.cache:
        return asked() if d.teacher else None
    steps, length = config.run.steps, config.data.sequence_length

    def batch_at(number: int) -> Batch:
        return heldout[number] if number < len(heldout) else data.data.batch(number - len(heldout))

    plan = Plan.of(batch_at, len(heldout) + steps)
    shape = Shape(length, d.top_k, model.config.vocab_size, 0 if d.teacher or mains else model.config.hidden_size)
    kept = {"teacher": identity(name), "temperature": d.temperature}
    folder = Path(config.run.out) / "teacher"
    return build(folder, shape, plan, kept, asked, batch_at, group, tick)


def distill(config: TrainConfig, mesh: Mesh | None = None, tick: Callable[[], None] = lambda: None) -> Path:
    """Train to the end (or resume); returns the folder of the exported checkpoint."""
    check(config)
    keep_freed_memory()
    torch.set_flush_denormal(True)
    d, model = config.distill, start_model(config)
    if d.top_k > model.config.vocab_size:
        raise UserError(f"distill.top_k is {d.top_k}, the vocabulary has {model.config.vocab_size} words")
    tokenizer = open_tokenizer(config, model.config)
    if d.teacher:
        check_teacher(d.teacher, model, tokenizer)
    mesh = mesh or single(pick_device())
    rows, note = rows_of(config, model, tokenizer, mesh.data.size)
    with rows as data:
        heldout = heldout_of(config, model, tokenizer)
        objective = Distillation(config, teacher_of(config, model, data, heldout, mesh.world, tick))

        def evaluate(nats: Nats) -> dict[str, float]:
            found = objective.measure(model, heldout, mtp=config.balance.mtp_lambda > 0)
            tick()
            return found

        talks = config.data.template if is_dialogues(config.data.train) else ""
        trainer = Trainer(
            config, model, data, evaluate if heldout else None, unit="nats/token", mesh=mesh, tick=tick, template=talks,
            objective=objective,
        )  # fmt: skip
        if note:
            trainer.watch.note(note)
        trainer.watch.note(
            f"teacher {d.teacher or 'the main model itself'}: its {d.top_k} most likely of {model.config.vocab_size} "
            f"tokens, {d.direction} KL"
        )
        if heldout and trainer.store.latest() is None:
            before = objective.measure(model, heldout, mtp=config.balance.mtp_lambda > 0)
            trainer.watch.note("before: " + ", ".join(f"{name} {value:.4f}" for name, value in before.items()))
        trainer.train()
    return export(trainer)
