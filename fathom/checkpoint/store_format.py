"""A training checkpoint on disk: what each file says, and how it proves to be whole.

    step-00000200/rank-00000.safetensors   ranges that rank 0 held; a whole tensor has its own name and shape
                  rank-00000.json          name, dtype, whole shape, start, end and checksums of each range in that file
                  rank-00001.safetensors   ...
                  index.json               step, metric, the caller's `extra`; size and checksum of every rank's files

Everything is a flat range [start, end) of a named tensor (see parallel/piece.py), so any layout can read what any other
wrote: what a reader needs is cut out of the ranges that overlap it. A tensor may be held by several ranks; all copies
are written, the lowest rank's is read. Checksums (CRC-32) are per chunk of 4 MiB, so that a reader of a part of a range
need not read all of it. The header of a safetensors file follows from its ranges, so it is compared and not parsed.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fathom.checkpoint.safetensors_io import DTYPE_NAMES, DTYPES, Entry, TensorWriter, file_size
from fathom.parallel.piece import Piece
from fathom.runtime import UserError, atomic_write, read_json

FORMAT = "fathom-checkpoint-1"
CHUNK_BYTES = 4 * 2**20
INDEX = "index.json"


def data_name(rank: int) -> str:
    """File of a rank's data."""
    return f"rank-{rank:05d}.safetensors"


def part_name(rank: int) -> str:
    """File that describes a rank's data."""
    return f"rank-{rank:05d}.json"


@dataclass(frozen=True)
class Range:
    """Elements start .. end of the flattened tensor `name`, as one rank wrote them."""

    rank: int
    name: str
    dtype: torch.dtype
    whole: torch.Size
    start: int
    end: int
    crc32: tuple[int, ...]  # one per chunk

    @property
    def entry(self) -> Entry:
        """What it is called in the safetensors file."""
        if self.end - self.start == self.whole.numel():
            return Entry(self.name, self.dtype, tuple(self.whole))
        return Entry(f"{self.name}@{self.start}", self.dtype, (self.end - self.start,))


@dataclass(frozen=True)
class Index:
    """What index.json says."""

    step: int
    save: str  # which attempt to save wrote it
    metric: dict[str, float]  # at most one, by name
    extra: dict[str, Any]
    sizes: list[int]  # bytes of each rank's data file
    parts: list[int]  # CRC-32 of each rank's description


def damaged(path: Path, what: str) -> UserError:
    """The error for a file that is not what was written."""
    folder = path if path.name.startswith("step-") else path.parent
    return UserError(f"{path} is damaged ({what}); remove {folder} to go on from the checkpoint before it")


def chunks(data: memoryview) -> list[memoryview]:
    """`data` cut into chunks of CHUNK_BYTES; none for empty data."""
    return [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)]


def write_part(folder: Path, rank: int, pieces: Sequence[Piece]) -> None:
    """Write a rank's two files. That the second one exists says that both are on the disk, down to the last byte."""
    ranges, held = [], [piece for piece in pieces if piece.data.numel() or not piece.whole.numel()]
    for piece in held:
        data = piece.data.view(torch.uint8).numpy().data
        sums = tuple(zlib.crc32(chunk) for chunk in chunks(data))
        ranges.append(Range(rank, piece.name, piece.data.dtype, piece.whole, piece.start, piece.end, sums))
    entries = [r.entry for r in ranges]
    with TensorWriter(folder / data_name(rank), entries) as writer:
        for entry, piece in zip(entries, held, strict=True):
            writer.write(entry.name, 0, piece.data.view(entry.shape))
    fsync(folder / data_name(rank))
    lines = [
        {"name": r.name, "dtype": DTYPE_NAMES[r.dtype], "whole": list(r.whole), "start": r.start, "end": r.end,
         "crc32": list(r.crc32)}
        for r in ranges
    ]  # fmt: skip
    with atomic_write(folder / part_name(rank)) as temporary:
        temporary.write_text("[" + ",\n".join(map(json.dumps, lines)) + "]\n", encoding="utf-8")


def fsync(path: Path) -> None:
    """Push a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_part(folder: Path, rank: int, crc32: int | None = None) -> list[Range]:
    """A rank's ranges, the description checked against its checksum when one is given."""
    path = folder / part_name(rank)
    try:
        raw = path.read_bytes()
        if crc32 is not None and zlib.crc32(raw) != crc32:
            raise damaged(path, "its checksum is another")
        return [_range(rank, line) for line in json.loads(raw)]
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from None


def _range(rank: int, line: dict[str, Any]) -> Range:
    """A line of a description; ValueError, KeyError or TypeError if it is none."""
    r = Range(
        rank, str(line["name"]), DTYPES[line["dtype"]], torch.Size(line["whole"]), line["start"], line["end"],
        tuple(line["crc32"]),
    )  # fmt: skip
    if not all(type(n) is int and n >= 0 for n in (*r.whole, r.start, r.end, *r.crc32)):
        raise ValueError(f"{r.name} has a number that is not a whole one")
    if not r.start <= r.end <= r.whole.numel() or len(r.crc32) != -(-r.entry.nbytes // CHUNK_BYTES):
        raise ValueError(f"{r.name} has elements {r.start} to {r.end} of {r.whole.numel()}, {len(r.crc32)} checksums")
    return r


def by_name(ranges: Iterable[Range]) -> dict[str, list[Range]]:
    """Ranges of each tensor in order of elements, checked to be of one tensor and to hold all of it."""
    out: dict[str, list[Range]] = {}
    for r in ranges:
        out.setdefault(r.name, []).append(r)
    for name, own in out.items():
        own.sort(key=lambda r: (r.start, r.rank))
        kinds = sorted({f"{DTYPE_NAMES[r.dtype]} {list(r.whole)}" for r in own})
        if len(kinds) > 1:
            raise UserError(f"the ranks disagree about {name}: {' and '.join(kinds)}")
        reached = 0
        for r in own:
            if r.start > reached:
                break
            reached = max(reached, r.end)
        if reached < own[0].whole.numel():
            raise UserError(f"no rank holds element {reached} of {name}, which has {own[0].whole.numel()}")
    return out


def make_index(folder: Path, ranks: int, *, step: int, save: str, metric: dict[str, float], extra: Any) -> Index:
    """The index of the parts in `folder`, which are checked to hold every tensor between them."""
    parts = [read_part(folder, rank) for rank in range(ranks)]
    by_name(r for part in parts for r in part)
    sizes = [file_size([r.entry for r in part]) for part in parts]
    for rank, size in enumerate(sizes):
        found = (folder / data_name(rank)).stat().st_size
        if found != size:
            raise UserError(
                f"rank {rank} wrote {size} bytes, its file has {found}; do all hosts share {folder.parent}?"
            )
    return Index(step, save, metric, extra, sizes, [_file_crc(folder / part_name(rank)) for rank in range(ranks)])


def _file_crc(path: Path) -> int:
    return zlib.crc32(path.read_bytes())


def _index_crc(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def write_index(folder: Path, index: Index) -> None:
    """Write index.json, which makes the folder a checkpoint."""
    content = {"format": FORMAT, **index.__dict__}
    with atomic_write(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(content | {"crc32": _index_crc(content)}, indent=1) + "\n", encoding="utf-8")


def read_index(folder: Path) -> Index | None:
    """The index of a checkpoint; None if a file is missing, UserError if one is not what was written."""
    path = folder / INDEX
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except UserError as error:
        raise damaged(path, str(error).removeprefix(f"{path} ").partition(";")[0]) from None
    if not isinstance(content, dict) or content.pop("crc32", None) != _index_crc(content):
        raise damaged(path, "its checksum is another")
    if content.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not of the format {FORMAT}; read it with the version of fathom that wrote it")
    try:
        index = Index(**content)
        ranks = range(len(index.sizes))
        if len(index.parts) != len(ranks) or not isinstance(index.extra, dict) or not isinstance(index.metric, dict):
            raise TypeError("a field is of another kind")
    except TypeError as error:
        raise damaged(path, str(error)) from None
    try:
        found = [(folder / data_name(rank)).stat().st_size for rank in ranks]
    except OSError:
        return None
    if not all((folder / part_name(rank)).exists() for rank in ranks):
        return None
    for rank, size in enumerate(index.sizes):
        if found[rank] != size:
            raise damaged(folder / data_name(rank), f"it has {found[rank]} bytes instead of {size}")
    return index
