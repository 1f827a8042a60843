"""`fathom train pretrain RECIPE`: corpus -> token streams -> the loop -> a checkpoint in Hugging Face layout."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend

from fathom.checkpoint.reader import open_checkpoint
from fathom.config import ModelConfig
from fathom.model.transformer import DeepseekV3
from fathom.models.resolve import resolve
from fathom.parallel.mesh import Mesh
from fathom.runtime import UserError
from fathom.text.dataset import Batch, PackedDataset, open_streams, tokenize
from fathom.text.encoder import PlainEncoder
from fathom.text.generated import GeneratedRows
from fathom.text.mixture import Mixture
from fathom.text.packed import Noise
from fathom.text.prefetch import Prefetched
from fathom.text.ramp import Ramp
from fathom.text.shards import read_meta, require_tokens, stored_weights
from fathom.text.tokenizer import Tokenizer
from fathom.train.config import TrainConfig, differences
from fathom.train.epochs import check_epochs
from fathom.train.evaluate import Nats, bits_per_byte
from fathom.train.export import export
from fathom.train.limits import DISTILL, EXTENSION, refuse
from fathom.train.loop import Data, Trainer, ramp_of
from fathom.train.parts import check_rows
from fathom.train.schedules import long_start
from fathom.train.selection import trains

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
    wanted, has = config.model.get("num_nextn_predict_layers"), found.num_nextn_predict_layers
    if wanted and not has and trains("mtp.0", config.run.train):  # fresh modules for a model that had none
        found = found.replace(num_nextn_predict_layers=wanted)
    elif wanted not in (None, has):
        raise UserError(
            f"model.num_nextn_predict_layers is {wanted}, run.init_from has {has} MTP modules; they can be added only "
            'to a model that has none, by a run that trains them (run.train with "mtp" or "all")'
        )
    described, stored = config.model_config().to_dict(), found.replace(extra={}).to_dict()
    changed = [name for name in differences(described, stored) if name.split(".")[0] not in FREE]
    names_one = config.model.keys() - {"num_nextn_predict_layers"} or config.preset != TrainConfig.preset
    if changed and names_one:  # a recipe that names no model takes any
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


def text_rows(
    config: TrainConfig, folder: Path, tokenizer: Tokenizer, *, rows: int | Ramp, length: int, seed: int
) -> Data:
    """Rows of the documents of a token folder, and data.generated_share of them of generated text."""
    d, meta = config.data, read_meta(folder)
    noise = Noise.of(tokenizer, d.fim_rate, d.split_rate)
    packed = PackedDataset(
        open_streams(folder), rows=1 if d.generated_share else rows, length=length, seed=seed,
        weights=d.weights or stored_weights(folder) or None, noise=noise,
    )  # fmt: skip
    if not d.generated_share:
        return packed
    generated = GeneratedRows(
        PlainEncoder(str(d.tokenizer)), bos=meta["bos"], eos=meta["eos"], length=length, seed=seed, weights=d.generated,
        noise=noise,
    )  # fmt: skip
    return Mixture(packed, generated, rows=rows, share=d.generated_share)


def batches(config: TrainConfig, folder: Path, tokenizer: Tokenizer, data_ranks: int) -> Prefetched:
    """The data of a whole pretraining run, from token shards."""
    d, seed, ramp = config.data, config.run.seed, ramp_of(config, data_ranks)
    check_epochs(config, folder, ramp.first_row(config.run.steps) * d.sequence_length)
    short = text_rows(config, folder, tokenizer, rows=ramp, length=d.sequence_length, seed=seed)
    if not d.long_length:
        return Prefetched(short, d.workers)
    rows, left = divmod(d.batch_rows * d.sequence_length, d.long_length)
    if rows < 1 or left:
        raise UserError(
            f"data.long_length {d.long_length} does not divide the {d.batch_rows * d.sequence_length} tokens of a step"
        )
    check_rows(config, rows, data_ranks)  # now, and not when their turn comes
    long = text_rows(config, folder, tokenizer, rows=rows, length=d.long_length, seed=seed + 1)
    return Prefetched(Staged(short, long, long_start(config)), d.workers)


def check(config: TrainConfig) -> None:
    """What pretraining does not take, before anything is read."""
    refuse(config, ["data.template", "data.text"], "pretraining; they belong to SFT")
    refuse(config, EXTENSION, "pretraining; they belong to `fathom train extend`")
    refuse(config, DISTILL, "pretraining; they belong to `fathom train distill`")


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
