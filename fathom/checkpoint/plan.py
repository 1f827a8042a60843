"""What a conversion will write: every output file with the recipes of its tensors, decided before anything is written.

    to bf16, fp8   the source's own files, same names, each output file made from the same tensors
    to hf          the same dtypes in Hugging Face layout, in table order, shards of at most max_shard_bytes
    to demo        one file per rank of the official inference folder: `model{rank}-mp{N}.safetensors`
A source in the demo layout has no shards worth keeping: whatever it becomes is sharded by size, as for `hf`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from fathom.checkpoint.layout import INDEX, SINGLE
from fathom.checkpoint.names import demo_scale, expected
from fathom.checkpoint.reader import Checkpoint
from fathom.checkpoint.recipes import Recipe, StoredWeight, recipe
from fathom.checkpoint.safetensors_io import file_size
from fathom.checkpoint.sources import Narrowed, Source
from fathom.checkpoint.writer import MAX_SHARD_BYTES, Shard, config_for, index_of, plan_shards
from fathom.config import ModelConfig
from fathom.config_demo import said_otherwise
from fathom.runtime import UserError, read_json


@dataclass(frozen=True)
class Options:
    """What to convert to. None means: not asked for (an option that has no effect is refused)."""

    to: Literal["bf16", "fp8", "demo", "hf"]
    scale_fmt: Literal["ue8m0"] | None = None
    model_parallel: int | None = None
    max_shard_bytes: int | None = None
    mtp: bool = False  # keep MTP layers in the demo layout (the official converter drops them)
    untie: bool = False  # write the head as a tensor of its own


@dataclass(frozen=True)
class Plan:
    """Files to write: weights in order, then small JSON files."""

    shards: list[Shard]
    json_files: dict[str, dict[str, Any]]
    notes: list[str]

    def sizes(self) -> dict[str, int]:
        """Bytes of each weight file."""
        return {file: file_size([e for r in recipes for e in r.entries]) for file, recipes in self.shards}


def make_plan(checkpoint: Checkpoint, options: Options) -> Plan:
    """Decide every output file; a conversion that cannot work is a UserError here, before anything is written."""
    from_demo = checkpoint.found.layout == "demo"
    checkpoint = _untied(checkpoint) if options.untie else checkpoint
    _check_options(checkpoint, options, from_demo)
    config, notes = checkpoint.config, list(checkpoint.notes)
    if options.to == "demo":
        weights, config, dropped = _for_demo(checkpoint, options)
        notes += dropped
        ranks = options.model_parallel or 1
        shards: list[Shard] = [
            (f"model{rank}-mp{ranks}.safetensors", list(_rank(weights, config, rank, ranks))) for rank in range(ranks)
        ]
        raw = _config_json(checkpoint, config, None)
        return Plan(shards, {"demo_config.json": config.to_demo(), "config.json": raw}, notes)
    target = options.to if options.to != "hf" else "keep"
    if target != "keep":
        config = config_for(config, target, options.scale_fmt)
    made = {name: recipe(w, target, config.quantization) for name, w in checkpoint.weights.items()}
    if options.to == "hf" or from_demo:
        shards = plan_shards(made.values(), options.max_shard_bytes or MAX_SHARD_BYTES)
    else:
        shards = _same_files(checkpoint, made)
    alone = [file for file, _ in shards] == [SINGLE] and not (checkpoint.path / INDEX).exists()
    json_files = {} if alone else {INDEX: index_of(shards)}
    return Plan(shards, json_files | {"config.json": _config_json(checkpoint, config, target)}, notes)


def _check_options(checkpoint: Checkpoint, options: Options, from_demo: bool) -> None:
    to, ranks, limit = options.to, options.model_parallel, options.max_shard_bytes
    if options.scale_fmt is not None and to != "fp8":
        raise UserError(f"--scale-fmt {options.scale_fmt} only means something with --to fp8, not --to {to}")
    if ranks is not None and to != "demo":
        raise UserError(f"--model-parallel {ranks} only means something with --to demo, not --to {to}")
    if ranks is not None and ranks < 1:
        raise UserError(f"--model-parallel is {ranks}; it must be at least 1")
    if options.mtp and to != "demo":
        raise UserError(f"--mtp only means something with --to demo; --to {to} always keeps MTP layers")
    if limit is not None and to != "hf" and (not from_demo or to == "demo"):
        raise UserError(f"--max-shard-size only means something where files are cut anew (--to hf), not --to {to}")
    if limit is not None and limit < 1:
        raise UserError(f"--max-shard-size is {limit} bytes; it must be at least 1")
    quantization = checkpoint.config.quantization
    if to == "fp8" and checkpoint.is_fp8 and quantization and quantization.scale_fmt == options.scale_fmt:
        raise UserError(
            f"{checkpoint.path} is FP8 with scale_fmt {options.scale_fmt} already; --to hf rewrites its files"
        )


def _untied(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with a head of its own, which is the embedding's values once more."""
    if not checkpoint.config.tie_word_embeddings:
        raise UserError(f"--untie has no effect: {checkpoint.path} has a head of its own")
    config, head = checkpoint.config.replace(tie_word_embeddings=False), "lm_head.weight"
    specs = expected(config)
    weights = {name: replace(w, spec=specs[name]) for name, w in checkpoint.weights.items()}
    embedding = weights["model.embed_tokens.weight"]
    weights[head] = replace(embedding, spec=specs[head])
    found = checkpoint.found
    home = found.home | {head: found.home[embedding.spec.name]}
    return replace(checkpoint, config=config, weights=weights, found=replace(found, home=home))


def _same_files(checkpoint: Checkpoint, made: dict[str, Recipe]) -> list[Shard]:
    by_file: dict[str, list[Recipe]] = {}
    for name in made:
        by_file.setdefault(checkpoint.found.home[name], []).append(made[name])
    return [(file, by_file[file]) for file in sorted(by_file)]


def _config_json(checkpoint: Checkpoint, config: ModelConfig, target: str | None) -> dict[str, Any]:
    """The source's config.json with no more changed than the conversion changes; fields unknown to us stay."""
    data = dict(read_json(checkpoint.config_path))
    if "model_type" not in data:  # the demo's own format
        data = config.to_dict()
    if data.get("num_nextn_predict_layers", data.get("num_mtp_layers", 0)) != config.num_nextn_predict_layers:
        data["num_nextn_predict_layers"] = config.num_nextn_predict_layers
    if data.get("tie_word_embeddings") and not config.tie_word_embeddings:
        data["tie_word_embeddings"] = False
    if target in ("bf16", "fp8"):
        data.pop("quantization_config", None)
        data |= dict.fromkeys({"dtype", "torch_dtype"} & set(data) or {"torch_dtype"}, config.torch_dtype)
        if config.quantization is not None:
            data["quantization_config"] = config.quantization.to_dict()
    return data


# ---- the demo's ranks ------------------------------------------------------------------------------------------------


def _for_demo(checkpoint: Checkpoint, options: Options) -> tuple[list[StoredWeight], ModelConfig, list[str]]:
    """(weights that travel, config of what is written, notes)"""
    config, ranks, notes = checkpoint.config, options.model_parallel or 1, []
    weights = [w for w in checkpoint.weights.values() if options.mtp or not w.spec.mtp]
    if config.num_nextn_predict_layers and not options.mtp:
        notes.append("the demo layout leaves MTP layers out, as the official converter does; --mtp keeps them")
        config = config.replace(num_nextn_predict_layers=0)
    if config.tie_word_embeddings:
        raise UserError("the model ties embedding and head, which the demo layout cannot say; --untie writes both")
    if lost := said_otherwise(config):
        raise UserError(f"the demo's config cannot say what this model's does about {', '.join(lost)}")
    for name, count in (("experts", config.n_routed_experts), ("attention heads", config.num_attention_heads)):
        if count % ranks:
            raise UserError(f"--model-parallel {ranks} does not divide {count} {name}; choose a divisor")
    for w in weights:
        axis = w.spec.axis
        if axis is None or w.spec.expert is not None or ranks == 1:
            continue
        side, block = w.spec.shape[axis], w.block[axis] if w.scale is not None else 1
        if side % (ranks * block):
            unit = f"{-(-side // block)} scale blocks" if block > 1 else f"{side} rows"
            raise UserError(f"--model-parallel {ranks} does not divide the {unit} of {w.spec.name}; choose fewer ranks")
    return weights, config, notes


def _rank(weights: list[StoredWeight], config: ModelConfig, rank: int, ranks: int) -> Iterator[Recipe]:
    """What one rank holds: its experts whole, its slice of sharded tensors (scales with them), all the rest."""
    local = max(config.n_routed_experts // ranks, 1)
    for w in weights:
        spec, axis = w.spec, w.spec.axis
        if spec.expert is not None and spec.expert // local != rank:
            continue
        part = w
        if spec.expert is None and axis is not None:
            scale = None if w.scale is None else _slice(w.scale, axis, rank, ranks)
            part = StoredWeight(spec, _slice(w.weight, axis, rank, ranks), scale, w.block)
        yield recipe(part, "keep", None, spec.demo, demo_scale(spec.demo))


def _slice(source: Source, axis: int, rank: int, ranks: int) -> Source:
    side = source.shape[axis] // ranks
    return source if ranks == 1 else Narrowed(source, axis, rank * side, side)
