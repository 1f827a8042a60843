"""What lies in a checkpoint folder, from headers alone, under Hugging Face names whatever the layout.

    hf    model.safetensors, or shards with model.safetensors.index.json
    demo  model{rank}-mp{N}.safetensors of the official inference folder; ranks are joined along the table's shard axis

Defects of files (missing shard, truncation, an index that points to the wrong file, a tensor in two files) are
collected in `problems`; whether the tensors are the ones the config promises is check.py's question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from fathom.checkpoint.fused import split
from fathom.checkpoint.names import SCALE, TensorSpec, demo_scale, expected
from fathom.checkpoint.safetensors_io import FileReader, Header, TensorInfo, read_header
from fathom.checkpoint.sources import FileTensor, Joined, Source
from fathom.config import ModelConfig
from fathom.runtime import UserError, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DEMO_FILE = re.compile(r"model(\d+)-mp(\d+)\.safetensors")
SHARD_FILE = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")


@dataclass
class Found:
    """The files and tensors of a folder."""

    layout: str  # "hf" or "demo"
    headers: list[Header]
    tensors: dict[str, Source]  # by Hugging Face name (demo: as far as the config explains it)
    home: dict[str, str]  # tensor -> file name
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model_parallel: int = 1


def is_demo(folder: Path) -> bool:
    """Whether the folder holds a checkpoint in the official demo's layout."""
    return any(DEMO_FILE.fullmatch(p.name) for p in folder.glob("model*-mp*.safetensors"))


def read_layout(folder: Path, config: ModelConfig, reader: FileReader) -> Found:
    """Read all headers of a folder."""
    return _read_demo(folder, config, reader) if is_demo(folder) else read_hf(folder, reader)


def read_hf(folder: Path, reader: FileReader) -> Found:
    """Read all headers of a folder in Hugging Face layout, of whatever model."""
    found = Found("hf", [], {}, {})
    weight_map = _weight_map(folder, found)
    names = sorted(set(weight_map.values())) if weight_map is not None else _unindexed(folder, found)
    for header in _headers(folder, names, found):
        for name, info in header.tensors.items():
            if name in found.home:
                found.problems.append(f"{name} is in both {found.home[name]} and {header.path.name}")
            found.home[name] = header.path.name
            for single, place in split(name, info):
                if single in found.tensors and single != name:
                    found.problems.append(f"{single} is there twice: alone and in {name}")
                found.tensors[single] = FileTensor(place, reader)
                found.home[single] = header.path.name
    if weight_map is not None and not found.problems:
        for listed, file in weight_map.items():
            if found.home.get(listed) != file:
                where = f"it is in {found.home[listed]}" if listed in found.home else "no file holds it"
                found.problems.append(f"{INDEX} puts {listed} into {file}, but {where}")
        extra = [name for header in found.headers for name in header.tensors if name not in weight_map]
        if extra:
            found.notes.append(f"{INDEX} does not list {len(extra)} tensors that the files hold, such as {extra[0]}")
        unused = [p.name for p in sorted(folder.glob("*.safetensors")) if p.name not in names]
        if unused:
            found.notes.append(
                f"{len(unused)} safetensors files are not in {INDEX} and are ignored, such as {unused[0]}"
            )
    return found


def _weight_map(folder: Path, found: Found) -> dict[str, str] | None:
    if not (folder / INDEX).exists():
        return None
    data = read_json(folder / INDEX)
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise UserError(f"{folder / INDEX} has no weight_map of tensor names to file names; download it again")
    outside = [file for file in weight_map.values() if Path(file).name != file or file in ("", "..")]
    if outside:
        raise UserError(f"{folder / INDEX} names {outside[0]!r}, which is not a file of its own folder")
    return weight_map


def _unindexed(folder: Path, found: Found) -> list[str]:
    """Files to read when there is no index: the single file, or shards whose names say how many there must be."""
    if (folder / SINGLE).exists():
        return [SINGLE]
    shards = [m for m in map(SHARD_FILE.fullmatch, sorted(p.name for p in folder.glob("*.safetensors"))) if m]
    if not shards:
        pickled = sorted(folder.glob("*.bin")) or sorted(folder.glob("*.pt*"))
        hint = f"; {pickled[0].name} is a pickle, which is not read: convert it to safetensors first" if pickled else ""
        raise UserError(f"{folder} holds no safetensors checkpoint (no {INDEX}, no {SINGLE}){hint}")
    total = int(shards[0][2])
    width = next((len(m[1]) for m in shards if m[1].startswith("0")), 1)  # padded or not
    found.notes.append(f"{INDEX} is missing; the shards themselves were read")
    return [f"model-{n:0{width}}-of-{shards[0][2]}.safetensors" for n in range(1, total + 1)]


def _headers(folder: Path, names: list[str], found: Found) -> list[Header]:
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        found.problems.append(f"{len(missing)} of {len(names)} files are missing: {shown}; download the rest")
    for name in names:
        if name not in missing:
            try:
                found.headers.append(read_header(folder / name))
            except UserError as error:
                found.problems.append(str(error))
    return found.headers


def _read_demo(folder: Path, config: ModelConfig, reader: FileReader) -> Found:
    names = [p.name for p in sorted(folder.glob("model*-mp*.safetensors")) if DEMO_FILE.fullmatch(p.name)]
    sizes = {int(m[2]) for m in map(DEMO_FILE.fullmatch, names) if m}
    if len(sizes) != 1:
        raise UserError(f"{folder} mixes demo checkpoints for {sorted(sizes)} ranks; keep one of them")
    ranks = sizes.pop()
    found = Found("demo", [], {}, {}, model_parallel=ranks)
    headers = _headers(folder, [f"model{r}-mp{ranks}.safetensors" for r in range(ranks)], found)
    if found.problems:
        return found
    by_rank = [dict(header.tensors) for header in headers]
    layers = {int(m[1]) for name in by_rank[0] if (m := LAYER.match(name))}
    for spec in expected(with_mtp_layers(config, layers)).values():
        _join(spec.name, spec.demo, spec, by_rank, found, reader)
        if spec.kind == "fp8":
            _join(spec.name + SCALE, demo_scale(spec.demo), spec, by_rank, found, reader)
    for rank, left in enumerate(by_rank):
        for name, info in left.items():  # nothing in the table explains these; check.py reports them
            found.tensors[name] = FileTensor(info, reader)
            found.home[name] = headers[rank].path.name
    return found


def _join(
    name: str, demo: str, spec: TensorSpec, by_rank: list[dict[str, TensorInfo]], found: Found, reader: FileReader
) -> None:
    """Take one tensor out of the ranks that hold it."""
    held = [(rank, tensors.pop(demo)) for rank, tensors in enumerate(by_rank) if demo in tensors]
    if not held:
        return
    parts: tuple[Source, ...] = tuple(FileTensor(info, reader) for _, info in held)
    everywhere = spec.expert is None
    if everywhere and len(held) != len(by_rank):
        found.problems.append(f"{demo} is in {len(held)} of {len(by_rank)} ranks")
    if not everywhere and len(held) != 1:
        found.problems.append(f"{demo} is in {len(held)} ranks, an expert lives in one")
    if everywhere and len({(p.dtype, p.shape) for p in parts}) != 1:
        found.problems.append(f"{demo} differs in shape or dtype between ranks")
        return
    found.home[name] = f"model{held[0][0]}-mp{len(by_rank)}.safetensors"
    found.tensors[name] = Joined(parts, spec.axis) if everywhere and spec.axis is not None else parts[0]


def with_mtp_layers(config: ModelConfig, layers: set[int]) -> ModelConfig:
    """The config with as many MTP layers as `layers` (numbers seen in files) has behind the main ones."""
    depth = 0
    while config.num_hidden_layers + depth in layers:
        depth += 1
    return config if depth == config.num_nextn_predict_layers else config.replace(num_nextn_predict_layers=depth)
