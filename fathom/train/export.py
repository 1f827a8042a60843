"""A training checkpoint becomes a model folder in Hugging Face layout, whatever layout wrote it.

    checkpoint, a chunk of rows at a time -> BF16, FP8 blocks or FP32 -> safetensors, config, tokenizer, chat template

No process ever holds the model: what V3 takes is a few chunks.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from threading import Thread

import torch

from fathom.checkpoint.names import Slot
from fathom.checkpoint.sources import Source
from fathom.checkpoint.store import Store
from fathom.checkpoint.store_format import Index, read_index
from fathom.checkpoint.store_reader import Reader, SavedTensor
from fathom.checkpoint.writer import SaveDtype, save_model, write_template
from fathom.config import ModelConfig
from fathom.model.moe import Gate
from fathom.model.transformer import DeepseekV3
from fathom.runtime import UserError, read_json
from fathom.text.chat import ChatTemplate
from fathom.train.base import Base
from fathom.train.config import TrainConfig
from fathom.train.loop import Trainer
from fathom.train.lora_export import Adapters, export_adapters

OWN = "own"  # data.template: the chat format that lies beside data.tokenizer
EXPORT_POLL = 0.5  # seconds between two looks at rank 0's export


def export(trainer: Trainer) -> Path:
    """The trained model as FP32 checkpoint with its tokenizer beside it; rank 0 writes, from the last checkpoint.

    That may take longer than a collective waits, so all ranks ask each other every moment whether it is done.
    """
    run, world = Path(trainer.config.run.out), trainer.mesh.world
    if world.size == 1:
        return export_run(run, run / "export", dtype="fp32")
    failed: list[BaseException] = []

    def write() -> None:
        try:
            export_run(run, run / "export", dtype="fp32")
        except BaseException as error:
            failed.append(error)

    writer = Thread(target=write, name="export", daemon=True)  # daemon: a rank that must leave does not wait for it
    if trainer.mesh.rank == 0:
        writer.start()
    done = False
    while not done:
        if trainer.mesh.rank == 0:
            writer.join(EXPORT_POLL)
            done = not writer.is_alive()
        done = float(world.sum(torch.tensor([float(done)], device=world.device))) > 0
        trainer.tick()
    if failed:
        raise failed[0]
    return run / "export"


def export_run(run: Path, folder: Path, *, dtype: SaveDtype, step: int | None = None, ema: bool = False) -> Path:
    """A checkpoint of a run (default: the newest), whatever layout wrote it, as model folder in Hugging Face layout."""
    config, path, index = _find(run, step, ema)
    tokenizer = Path(config.data.tokenizer)
    if not (tokenizer / "tokenizer.json").exists():
        raise UserError(
            f"data.tokenizer {tokenizer} has no tokenizer.json, seen from {Path.cwd()}; start where the run was started"
        )
    model = DeepseekV3(ModelConfig.from_dict(index.extra["model"]), device="meta")
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    saved, noted = saved_names(model, "ema" if ema else "model"), index.extra.get("base")
    with Reader(path) as reader, Base(noted) if noted else nullcontext() as base:
        if base is None:
            reader.require(saved.values())
        adapters = Adapters.of(reader, config.lora, "ema" if ema else "model")

        def source(slot: Slot) -> Source:
            part = slot.of(state[slot.param])  # has no values, but knows its place
            if base is None or saved[slot.param] in reader.tensors:
                return SavedTensor(reader, saved[slot.param], tuple(part.shape), int(part.storage_offset()))
            return adapters.added(slot, base.source(slot))

        save_model(model, folder, dtype=dtype, side_files_from=tokenizer, overwrite=True, source=source)
    template = index.extra.get("template")
    if template and template != OWN:
        write_template(folder, ChatTemplate.builtin(template).source)
    return folder


def export_run_adapters(run: Path, folder: Path, *, step: int | None = None, ema: bool = False) -> Path:
    """The adapters alone of a run's checkpoint, in PEFT's format."""
    config, path, index = _find(run, step, ema)
    model = ModelConfig.from_dict(index.extra["model"])
    with Reader(path) as reader:
        export_adapters(reader, model, config.lora, config.run.init_from, folder, "ema" if ema else "model")
    return folder


def _find(run: Path, step: int | None, ema: bool) -> tuple[TrainConfig, Path, Index]:
    """The config of a run and one of its checkpoints."""
    config = TrainConfig.from_dict(read_json(run / "config.json"))
    store = Store(run / "checkpoints", None, keep=config.run.keep_checkpoints, best="heldout")
    step = store.latest() if step is None else step
    if step is None:
        raise UserError(f"{run} has no complete checkpoint yet")
    path = store.folder / f"step-{step:08d}"
    index = read_index(path)
    if index is None:
        raise UserError(f"{path} is not a complete checkpoint; complete ones: {store.steps()}")
    if ema and not config.optim.ema_decay:
        raise UserError(f"{run} kept no average of its weights (optim.ema_decay is 0); leave --ema out")
    return config, path, index


def saved_names(model: DeepseekV3, weights: str) -> dict[str, str]:
    """What a training checkpoint calls the parameters and router biases of a model; weights: "model" or "ema"."""
    gates = [name for name, module in model.named_modules() if isinstance(module, Gate)]
    biases = {f"{gate}.e_score_correction_bias": f"router_bias.{i}" for i, gate in enumerate(gates)}
    return {name: f"{weights}.{name}" for name, _ in model.named_parameters()} | {
        name: biases[name] for name, _ in model.named_buffers()
    }
