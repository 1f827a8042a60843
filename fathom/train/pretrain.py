"""`fathom train pretrain RECIPE`: corpus -> token streams -> the loop -> a checkpoint in Hugging Face layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Thread

import torch
from tokenizers import Tokenizer as Backend
from torch import Tensor

from fathom.checkpoint.locate import resolve
from fathom.checkpoint.reader import load_model, read_config
from fathom.checkpoint.store import Store, read_whole
from fathom.checkpoint.store_format import read_index
from fathom.checkpoint.writer import SaveDtype, save_model
from fathom.config import ModelConfig
from fathom.model.moe import Gate
from fathom.model.transformer import DeepseekV3
from fathom.parallel.mesh import Mesh
from fathom.runtime import UserError, read_json, write_text
from fathom.text.chat import ChatTemplate
from fathom.text.dataset import Batch, PackedDataset, open_streams, tokenize
from fathom.text.packed import Noise
from fathom.text.prefetch import Prefetched
from fathom.text.ramp import Ramp
from fathom.text.shards import require_tokens, stored_weights
from fathom.text.tokenizer import Tokenizer
from fathom.train.config import TrainConfig, differences
from fathom.train.evaluate import Nats, bits_per_byte
from fathom.train.limits import EXTENSION, refuse
from fathom.train.loop import Data, Trainer, ramp_of
from fathom.train.parts import check_rows

EXPORT_POLL = 0.5  # seconds between two looks at rank 0's export
# What may differ between a recipe's [model] and the checkpoint it starts from: how it is stored, how it was made, RoPE.
FREE = {"rope_scaling", "max_position_embeddings", "initializer_range", "quantization_config", "torch_dtype"}


def start_model(config: TrainConfig) -> DeepseekV3:
    """The weights of `run.init_from` in FP32, or a model without memory: each rank makes its part of it (parts.py)."""
    if not config.run.init_from:
        return DeepseekV3(config.model_config(), device="meta")
    found = read_config(resolve(config.run.init_from)).replace(extra={})
    changed = [
        name for name in differences(config.model_config().to_dict(), found.to_dict()) if name.split(".")[0] not in FREE
    ]
    if changed and (config.model or config.preset != TrainConfig.preset):  # a recipe that names no model takes any
        raise UserError(
            f"run.init_from {config.run.init_from} is another model than the recipe's preset and [model] describe "
            f"(different: {', '.join(changed)})"
        )
    return load_model(config.run.init_from, dtype="float32")


def open_tokenizer(config: TrainConfig, model: ModelConfig) -> Tokenizer:
    """The recipe's tokenizer; refused where the model has no rows for its ids."""
    for key in ("train", "tokenizer"):
        if not getattr(config.data, key):
            raise UserError(f"data.{key} is empty; set it in the recipe or with --data.{key}")
    tokenizer = Tokenizer.from_pretrained(config.data.tokenizer)
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{config.data.tokenizer} has {tokenizer.vocab_size} ids, the model only {model.vocab_size} rows; "
            "raise model.vocab_size or take the tokenizer that belongs to the model"
        )
    return tokenizer


def token_stream(tokenizer: Path | str, model: ModelConfig, jsonl: str, out: Path) -> Path:
    """Tokenise a JSONL file of documents into `out` once and return `out`; a folder holds shards already.

    `tokenizer`: its folder.
    """
    backend = Backend.from_file(str(Path(tokenizer) / "tokenizer.json"))

    def encode_batch(texts: list[str]) -> list[list[int]]:
        return [e.ids for e in backend.encode_batch(texts, add_special_tokens=False)]

    if model.bos_token_id is None or not model.eos_token_id:
        raise UserError("documents are separated by BOS and EOS: set model.bos_token_id and model.eos_token_id")
    bos = model.bos_token_id
    if Path(jsonl).is_dir():
        require_tokens(jsonl, bos, model.eos_token_id[0], model.vocab_size)
        return Path(jsonl)
    tokenize(Path(jsonl), out, encode_batch, bos, model.eos_token_id[0], model.vocab_size)
    return out


class Staged:
    """Short rows first, long rows from step `switch` on, so that the whole context is seen before the run ends."""

    def __init__(self, short: Data, long: Data, switch: int) -> None:
        self.short, self.long, self.switch = short, long, switch

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step`."""
        return (self.short if step < self.switch else self.long).batch(step)


def batches(config: TrainConfig, folder: Path, tokenizer: Tokenizer, data_ranks: int) -> Prefetched:
    """The data of a whole pretraining run, from token shards."""
    d, seed, ramp = config.data, config.run.seed, ramp_of(config, data_ranks)
    noise = Noise.of(tokenizer, d.fim_rate, d.split_rate)
    streams, weights = open_streams(folder), d.weights or stored_weights(folder) or None

    def packed(rows: int | Ramp, length: int, seed: int) -> PackedDataset:
        return PackedDataset(streams, rows=rows, length=length, seed=seed, weights=weights, noise=noise)

    short = packed(ramp, d.sequence_length, seed)
    if not d.long_length:
        return Prefetched(short, d.workers)
    rows, left = divmod(d.batch_rows * d.sequence_length, d.long_length)
    if rows < 1 or left:
        raise UserError(
            f"data.long_length {d.long_length} does not divide the {d.batch_rows * d.sequence_length} tokens of a step"
        )
    check_rows(config, rows, data_ranks)  # now, and not when their turn comes
    long = packed(rows, d.long_length, seed + 1)
    return Prefetched(Staged(short, long, round(config.run.steps * (1 - d.long_fraction))), d.workers)


def check(config: TrainConfig) -> None:
    """What pretraining does not take, before anything is read."""
    refuse(config, ["data.template", "data.text"], "pretraining; they belong to SFT")
    refuse(config, EXTENSION, "pretraining; they belong to `fathom train extend`")


def pretrain(config: TrainConfig, mesh: Mesh | None = None, tick: Callable[[], None] = lambda: None) -> Path:
    """Train to the end (or resume); returns the folder of the exported checkpoint."""
    out, d = Path(config.run.out), config.data
    check(config)
    model = start_model(config)
    tokenizer = open_tokenizer(config, model.config)
    shards = token_stream(d.tokenizer, model.config, d.train, out / "tokens" / "train")
    heldout = token_stream(d.tokenizer, model.config, d.heldout, out / "tokens" / "heldout") if d.heldout else None

    def evaluate(nats: Nats) -> dict[str, float]:
        assert heldout is not None
        return bits_per_byte(nats, heldout, rows=config.run.eval_rows, length=d.sequence_length)

    with batches(config, shards, tokenizer, mesh.data.size if mesh else 1) as data:
        trainer = Trainer(config, model, data, evaluate if heldout else None, mesh=mesh, tick=tick)
        trainer.train()
    return export(trainer)


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
    config = TrainConfig.from_dict(read_json(run / "config.json"))
    store = Store(run / "checkpoints", None, keep=config.run.keep_checkpoints, best="heldout")
    step = store.latest() if step is None else step
    if step is None:
        raise UserError(f"{run} has no complete checkpoint yet")
    path = store.folder / f"step-{step:08d}"
    index = read_index(path)
    if index is None:
        raise UserError(f"{path} is not a complete checkpoint; complete ones: {store.steps()}")
    saved = ModelConfig.from_dict(index.extra["model"])
    model = DeepseekV3(saved, device="meta").to_empty(device="cpu")
    if saved.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    own: dict[str, Tensor] = {f"{'ema' if ema else 'model'}.{n}": p for n, p in model.named_parameters()}
    gates_of = [m for m in model.modules() if isinstance(m, Gate) and m.config.has_router_bias]
    own |= {f"router_bias.{i}": gate.e_score_correction_bias for i, gate in enumerate(gates_of)}
    tokenizer = Path(config.data.tokenizer)
    if not (tokenizer / "tokenizer.json").exists():
        raise UserError(
            f"data.tokenizer {tokenizer} has no tokenizer.json, seen from {Path.cwd()}; start where the run was started"
        )
    if ema and not config.optim.ema_decay:
        raise UserError(f"{run} kept no average of its weights (optim.ema_decay is 0); leave --ema out")
    for name, tensor in read_whole(path, list(own)):  # refuses a checkpoint that lacks one of them
        own[name].detach().copy_(tensor.view_as(own[name]))
    save_model(model, folder, dtype=dtype, side_files_from=tokenizer, overwrite=True)
    if template := index.extra.get("template"):
        write_text(folder / "chat_template.jinja", ChatTemplate.builtin(template).source)
    return folder
