"""What a teacher said, on disk: asked once before the run, read in every epoch, by every rank.

    OUT/teacher/meta.json         what it is of: teacher, K, temperature, ...; written first
    OUT/teacher/rows.bin          16 bytes per row that name it, in order: which data it is of
    OUT/teacher/part-00000.bin    one record per row: ids [T, K] uint16 or uint32, log-probabilities [T, K] FP16 and,
                                  of a frozen main model, hidden states [T, D] FP16; each part whole or not there

All distinct rows of the run are known beforehand (a batch is a function of the step). A row is found by a hash of its
tokens and segments: so whichever step, epoch or rank brings it, it is read where it lies. Parts are memory-mapped. A
build that was killed goes on with the next part; ranks make every n-th one. Outputs of another teacher or of other rows
are refused; a run that gets more steps adds rows. A token takes 4 K bytes (6 K above 65,536 words), and 2 D more with
hidden states.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.parallel.group import Group
from fathom.runtime import UserError, atomic_write, progress, read_json, require_disk
from fathom.text.batch import Array, Batch, stack
from fathom.train.teacher import Targets, Teacher

FORMAT = 1
KEY_BYTES = 16
PART_TOKENS = 16_384
ROWS_AT_ONCE = 4


def row_key(tokens: Tensor, segments: Tensor | None) -> bytes:
    """16 bytes that name a row [T]."""
    digest = hashlib.blake2b(tokens.to(torch.int32).cpu().numpy().tobytes(), digest_size=KEY_BYTES)
    if segments is not None:
        digest.update(segments.to(torch.int32).cpu().numpy().tobytes())
    return digest.digest()


def keys_of(batch: Batch) -> list[bytes]:
    """Of every row of a batch."""
    segments = [None] * len(batch.tokens) if batch.segments is None else list(batch.segments)
    return [row_key(tokens, own) for tokens, own in zip(batch.tokens, segments, strict=True)]


@dataclass(frozen=True)
class Where:
    """A row: the row of a batch of this number."""

    batch: int
    row: int


@dataclass(frozen=True)
class Plan:
    """The distinct rows of a run, in order of appearance."""

    rows: dict[bytes, Where]
    length: int

    @classmethod
    def of(cls, batch_at: Callable[[int], Batch], steps: int) -> Plan:
        """From the batches 0 .. steps - 1, all with rows of one length. With more steps the first rows are the same."""
        rows: dict[bytes, Where] = {}
        length = 0
        with progress("rows of the run", steps, "steps") as bar:
            for step in range(steps):
                batch = batch_at(step)
                length = batch.tokens.shape[1]
                for row, key in enumerate(keys_of(batch)):
                    rows.setdefault(key, Where(step, row))
                bar.advance(1)
        return cls(rows, length)


@dataclass(frozen=True)
class Shape:
    """What a record holds. hidden 0: no hidden states."""

    length: int
    top_k: int
    vocab_size: int
    hidden: int

    @property
    def record(self) -> np.dtype[Any]:
        """One row on disk."""
        ids = np.uint16 if self.vocab_size <= 2**16 else np.uint32
        fields: list[Any] = [
            ("ids", ids, (self.length, self.top_k)),
            ("log_probs", np.float16, (self.length, self.top_k)),
        ]
        if self.hidden:
            fields.append(("hidden", np.float16, (self.length, self.hidden)))
        return np.dtype(fields)

    @property
    def part_rows(self) -> int:
        """Rows of a part."""
        return max(PART_TOKENS // self.length, 1)


class Cache:
    """A finished cache: a teacher that looks up what was said."""

    def __init__(self, folder: Path, shape: Shape, keys: Iterable[bytes]) -> None:
        self.folder, self.shape = folder, shape
        self._place = {key: place for place, key in enumerate(keys)}
        self._parts: dict[int, Array] = {}

    def __call__(self, batch: Batch) -> Targets:
        records = [self._record(key) for key in keys_of(batch)]

        def field(name: str, kind: type[Any]) -> Tensor:
            return torch.from_numpy(np.stack([r[name] for r in records]).astype(kind)).to(batch.tokens.device)

        hidden = field("hidden", np.float32) if self.shape.hidden else None
        return Targets(field("ids", np.int64), field("log_probs", np.float32), hidden)

    def _record(self, key: bytes) -> Any:
        if key not in self._place:
            raise UserError(
                f"{self.folder} has no teacher's outputs of a row of this run; remove the folder and run again"
            )
        part, row = divmod(self._place[key], self.shape.part_rows)
        if part not in self._parts:
            self._parts[part] = np.memmap(part_path(self.folder, part), dtype=self.shape.record, mode="r")
        return self._parts[part][row]


def part_path(folder: Path, number: int) -> Path:
    """The file of a part."""
    return folder / f"part-{number:05d}.bin"


def build(
    folder: Path, shape: Shape, plan: Plan, identity: dict[str, Any], teacher: Callable[[], Teacher],
    batch_at: Callable[[int], Batch], group: Group, tick: Callable[[], None],
) -> Cache:  # fmt: skip
    """Ask `teacher` (loaded when there is something to ask) for every row that is not there yet; a collective."""
    meta = {"format": FORMAT, **identity, **vars(shape), "part_rows": shape.part_rows}
    keys = _agreed(folder, meta, shape, list(plan.rows))
    places = list(plan.rows.values())
    missing = [n for n in range(math.ceil(len(places) / shape.part_rows)) if not _whole(folder, n, shape, len(keys))]
    group.sum(torch.zeros(1, device=group.device))  # everybody has looked
    if group.rank == 0:
        require_disk(folder, min(len(missing) * shape.part_rows, len(places)) * shape.record.itemsize)
        _write(folder, meta, keys)
    rounds = math.ceil(len(missing) / group.size)
    if rounds:
        asked = teacher()
        with progress("teacher", len(missing) * shape.part_rows * shape.length, "tokens") as bar:
            for number in range(rounds):
                for part in missing[number * group.size + group.rank :][:1]:
                    own = places[part * shape.part_rows : (part + 1) * shape.part_rows]
                    records = _ask(asked, own, batch_at, shape, group.device, tick, bar.advance)
                    with atomic_write(part_path(folder, part)) as temporary:
                        records.tofile(temporary)
                # nobody is more than a part ahead: no collective waits for longer than one takes
                group.sum(torch.zeros(1, device=group.device))
                tick()
    return Cache(folder, shape, keys)


def _agreed(folder: Path, meta: dict[str, Any], shape: Shape, rows: list[bytes]) -> list[bytes]:
    """The rows of the cache: these, or all of a longer run whose outputs are there; UserError if others are."""
    if not (folder / "meta.json").exists() or not (folder / "rows.bin").exists():
        return rows
    theirs, there = read_json(folder / "meta.json"), (folder / "rows.bin").read_bytes()
    other = sorted(k for k in meta.keys() | theirs.keys() if meta.get(k) != theirs.get(k))
    known = [there[at : at + KEY_BYTES] for at in range(0, len(there), KEY_BYTES)]
    if known[: len(rows)] != rows[: len(known)]:
        other.append("data")
    if other:
        raise UserError(
            f"{folder} holds a teacher's outputs of another run (different: {', '.join(other)}); remove it or "
            "choose another run.out"
        )
    parts = range(math.ceil(len(known) / shape.part_rows))
    return known if len(known) > len(rows) and all(_whole(folder, n, shape, len(known)) for n in parts) else rows


def _write(folder: Path, meta: dict[str, Any], keys: list[bytes]) -> None:
    contents = {"meta.json": json.dumps(meta, indent=2).encode(), "rows.bin": b"".join(keys)}
    for path, content in ((folder / name, content) for name, content in contents.items()):
        if not path.exists() or path.read_bytes() != content:
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)


def _whole(folder: Path, part: int, shape: Shape, rows: int) -> bool:
    """Whether a part is there with all its rows; the last one of a run that gets more steps is not."""
    path, own = part_path(folder, part), min(rows - part * shape.part_rows, shape.part_rows)
    return path.exists() and path.stat().st_size == own * shape.record.itemsize


def _ask(
    teacher: Teacher, places: list[Where], batch_at: Callable[[int], Batch], shape: Shape, device: torch.device,
    tick: Callable[[], None], advance: Callable[[float], None],
) -> Array:  # fmt: skip
    records = np.empty(len(places), dtype=shape.record)
    read = lru_cache(maxsize=2)(batch_at)
    for first in range(0, len(places), ROWS_AT_ONCE):
        some = places[first : first + ROWS_AT_ONCE]
        said = teacher(stack([read(p.batch).rows(p.row, p.row + 1) for p in some]).to(device))
        own = records[first : first + len(some)]
        own["ids"] = said.ids.cpu().numpy()
        own["log_probs"] = said.log_probs.cpu().numpy()
        if shape.hidden:
            assert said.hidden is not None
            own["hidden"] = said.hidden.float().cpu().numpy()
        tick()
        advance(len(some) * shape.length)
    return records
