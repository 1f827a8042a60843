"""Writing checkpoints in Hugging Face layout: streaming, sharded, each file whole or not there, same bytes every time.

One shard is a list of recipes; `write_file` is the only place that writes weights, for models in memory and for
conversions alike. A checkpoint that fits one shard is `model.safetensors` without an index, as transformers writes it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from fathom.checkpoint.layout import INDEX, SINGLE
from fathom.checkpoint.names import Slot, expected
from fathom.checkpoint.recipes import Recipe, StoredWeight, recipe
from fathom.checkpoint.safetensors_io import TensorWriter
from fathom.checkpoint.sources import MemoryTensor, Source
from fathom.config import ModelConfig, QuantizationConfig
from fathom.model.transformer import DeepseekV3
from fathom.runtime import UserError, atomic_write, progress, read_json, require_disk, write_json, write_text

MAX_SHARD_BYTES = 5 * 10**9
TEMPLATE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
SIDE_FILES = (  # what travels with the weights
    "*token*", "vocab.json", "merges.txt", "*.tiktoken", "chat_template*", "generation_config.json",
    "configuration_*.py", "modeling_*.py", "LICENSE*",
)  # fmt: skip

SaveDtype = Literal["bf16", "fp8", "fp32"]
Shard = tuple[str, Sequence[Recipe]]  # file name, what goes into it


def write_file(path: Path, recipes: Sequence[Recipe], advance: Callable[[int], None] = lambda n: None) -> None:
    """Write one safetensors file, a chunk at a time; `advance` is told the bytes."""
    entries = [entry for r in recipes for entry in r.entries]
    with atomic_write(path) as temporary, TensorWriter(temporary, entries) as writer:
        for r in recipes:
            for name, start, rows in r.run():
                advance(writer.write(name, start, rows))


def plan_shards(recipes: Iterable[Recipe], max_bytes: int) -> list[Shard]:
    """Fill shards in order; a weight and its scale stay together, and a tensor larger than a shard has its own."""
    groups: list[list[Recipe]] = [[]]
    size = 0
    for r in recipes:
        if groups[-1] and size + r.nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(r)
        size += r.nbytes
    if len(groups) == 1:
        return [(SINGLE, groups[0])]
    return [(f"model-{n:05}-of-{len(groups):05}.safetensors", group) for n, group in enumerate(groups, 1)]


def index_of(shards: Iterable[Shard]) -> dict[str, Any]:
    """The content of model.safetensors.index.json."""
    placed = [(entry.name, file, entry.nbytes) for file, recipes in shards for r in recipes for entry in r.entries]
    weight_map = {name: file for name, file, _ in sorted(placed)}
    return {"metadata": {"total_size": sum(n for _, _, n in placed)}, "weight_map": weight_map}


def copy_side_files(source: Path, destination: Path) -> None:
    """Copy tokenizer, template and generation settings.

    A template that is a file of its own also goes into tokenizer_config.json: the official converter copies `*token*`
    files alone.
    """
    for path in sorted({path for pattern in SIDE_FILES for path in source.glob(pattern)}):
        if path.is_file() and path.suffix != ".safetensors":
            with atomic_write(destination / path.name) as temporary:
                shutil.copyfile(path, temporary)
    template = destination / TEMPLATE
    if template.exists():
        _template_in_settings(destination, template.read_text(encoding="utf-8"), replace=False)


def write_template(folder: Path, text: str) -> None:
    """The chat template of a checkpoint, in both places where programs look for it."""
    write_text(folder / TEMPLATE, text)
    _template_in_settings(folder, text, replace=True)


def _template_in_settings(folder: Path, text: str, *, replace: bool) -> None:
    path = folder / TOKENIZER_CONFIG
    try:
        settings = read_json(path) if path.exists() else None
    except UserError:
        return  # what was broken stays as it was; loading the tokenizer says so
    if isinstance(settings, dict) and (replace or "chat_template" not in settings):
        write_json(path, settings | {"chat_template": text})


def config_for(config: ModelConfig, dtype: str, scale_fmt: str | None) -> ModelConfig:
    """The config that describes the same model stored as `dtype`."""
    if dtype == "fp8":
        block = (config.quantization or QuantizationConfig()).weight_block_size
        return config.replace(quantization=QuantizationConfig(block, scale_fmt), torch_dtype="bfloat16")
    return config.replace(quantization=None, torch_dtype="float32" if dtype == "fp32" else "bfloat16")


def save_model(
    model: DeepseekV3,
    folder: Path | str,
    *,
    dtype: SaveDtype = "bf16",
    scale_fmt: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    mtp_copies: bool = True,
    side_files_from: Path | str | None = None,
    overwrite: bool = False,
    source: Callable[[Slot], Source] | None = None,
) -> None:
    """Write `model` as a Hugging Face checkpoint.

    mtp_copies       write the MTP layers' duplicates of embedding and head, as released checkpoints do
    side_files_from  a folder whose tokenizer, template and generation settings are copied
    overwrite        replace a checkpoint that lies there (its other shards are removed at the end)
    source           where the values of a slot are read from, for a `model` on the meta device; default: from `model`
    """
    folder = Path(folder)
    stale = {p.name for p in folder.glob("*.safetensors")} | ({INDEX} if (folder / INDEX).exists() else set())
    if stale and not overwrite:
        raise UserError(f"{folder} already holds a checkpoint ({len(stale)} files); choose another folder")
    config = config_for(model.config, dtype, scale_fmt)
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    recipes = []
    specs = expected(config)
    for spec in specs.values():
        if spec.copy_of is not None and not mtp_copies:
            continue
        slot = specs[spec.copy_of].slot if spec.copy_of else spec.slot
        assert slot is not None
        values = source(slot) if source else MemoryTensor(slot.of(state[slot.param]))
        recipes.append(recipe(StoredWeight(spec, values), dtype, config.quantization))
    shards = plan_shards(recipes, max_shard_bytes)
    total = sum(r.nbytes for r in recipes)
    require_disk(folder, total)
    (folder / "config.json").unlink(missing_ok=True)  # it comes back last: a half-overwritten folder does not load
    with progress("saving", total) as bar:
        for file, shard in shards:
            write_file(folder / file, shard, bar.advance)
    if len(shards) > 1:
        write_json(folder / INDEX, index_of(shards))
    write_json(folder / "config.json", config.to_dict())
    if side_files_from is not None:
        copy_side_files(Path(side_files_from), folder)
    for name in stale - {file for file, _ in shards} - ({INDEX} if len(shards) > 1 else set()):
        (folder / name).unlink()
