"""`fathom train pretrain RECIPE`: corpus -> token streams -> the loop -> a checkpoint in Hugging Face layout."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend

from fathom.checkpoint.locate import resolve
from fathom.checkpoint.reader import open_checkpoint
from fathom.config import ModelConfig
from fathom.model.transformer import DeepseekV3
from fathom.parallel.mesh import Mesh
from fathom.runtime import UserError
from fathom.text.dataset import Batch, PackedDataset, open_streams, tokenize
from fathom.text.packed import Noise
from fathom.text.prefetch import Prefetched
from fathom.text.ramp import Ramp
from fathom.text.shards import require_tokens, stored_weights
from fathom.text.tokenizer import Tokenizer
from fathom.train.config import TrainConfig, differences
from fathom.train.evaluate import Nats, bits_per_byte
from fathom.train.export import export
from fathom.train.limits import EXTENSION, refuse
from fathom.train.loop import Data, Trainer, ramp_of
from fathom.train.parts import check_rows

# What may differ between a recipe's [model] and the checkpoint it starts from: how it is stored, how it was made, RoPE.
FREE = {"rope_scaling", "max_position_embeddings", "initializer_range", "quantization_config", "torch_dtype"}


def start_model(config: TrainConfig) -> DeepseekV3:
    """The model of `run.init_from`, or a new one, on the meta device: each rank makes or reads its part (parts.py)."""
    if not config.run.init_from:
        return DeepseekV3(config.model_config(), device="meta")
    with open_checkpoint(resolve(config.run.init_from)) as checkpoint:
        for note in checkpoint.notes:
            warnings.warn(note, stacklevel=2)
        found = checkpoint.config
    described, stored = config.model_config().to_dict(), found.replace(extra={}).to_dict()
    changed = [name for name in differences(described, stored) if name.split(".")[0] not in FREE]
    if changed and (config.model or config.preset != TrainConfig.preset):  # a recipe that names no model takes any
        raise UserError(
            f"run.init_from {config.run.init_from} is another model than the recipe's preset and [model] describe "
            f"(different: {', '.join(changed)})"
        )
    return DeepseekV3(found, device="meta", dtype=torch.float32)


def open_tokenizer(config: TrainConfig, model: ModelConfig) -> Tokenizer:
    """The recipe's tokenizer; refused where the model has no rows for its ids, or knows them as other tokens."""
    for key in ("train", "tokenizer"):
        if not getattr(config.data, key):
            raise UserError(f"data.{key} is empty; set it in the recipe or with --data.{key}")
    tokenizer = Tokenizer.from_pretrained(config.data.tokenizer)
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{config.data.tokenizer} has {tokenizer.vocab_size} ids, the model only {model.vocab_size} rows; "
            "raise model.vocab_size or take the tokenizer that belongs to the model"
        )
    start = resolve(config.run.init_from) if config.run.init_from else None
    if start and (start / "tokenizer.json").exists() and (other := tokenizer.unlike(Tokenizer.from_pretrained(start))):
        raise UserError(
            f"data.tokenizer {config.data.tokenizer} is not that of run.init_from {start}: {len(other)} tokens have "
            f"other ids, such as {other[0]!r}; set data.tokenizer to {start} and read text that was made with it"
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
