"""Reading a training checkpoint into any layout, or tensor by tensor; every byte that is used is checked first.

A wanted range is covered by walking over the stored ranges of its tensor in order:

    stored   |------ rank 0 ------|---- rank 1 ----|------ rank 2 -------|
    wanted              |------------------------------|
                        | part    | all            |prt|

and each part comes in chunks: read, compare the checksum, copy what is wanted. Memory: one chunk, which is kept for the
next piece, that may lie in it, too.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from fathom.checkpoint.safetensors_io import DTYPE_NAMES, FileReader, file_size, layout
from fathom.checkpoint.store_format import (
    CHUNK_BYTES,
    Index,
    Range,
    by_name,
    damaged,
    data_name,
    part_name,
    read_index,
    read_part,
)
from fathom.parallel.piece import Piece
from fathom.runtime import UserError


@dataclass(frozen=True)
class _Placed:
    """A stored range and the byte in its file at which it begins."""

    range: Range
    offset: int


class Reader:
    """One checkpoint, opened: `with Reader(folder) as reader`."""

    def __init__(self, folder: Path) -> None:
        index = read_index(folder)
        if index is None:
            raise UserError(f"{folder} is not a complete checkpoint: files are missing; choose another one")
        self.folder, self.index = folder, index
        self._files = FileReader()
        self._buffer = torch.empty(CHUNK_BYTES, dtype=torch.uint8)
        self._in_buffer: tuple[Range, int] | None = None  # which chunk that is: a range and an element

    def __enter__(self) -> Reader:
        try:
            self.tensors = self._tensors(self.index)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)

    def _tensors(self, index: Index) -> dict[str, list[_Placed]]:
        """Where the elements of each tensor lie, in order."""
        ranges: list[Range] = []
        offsets: dict[tuple[int, str], int] = {}
        for rank, crc32 in enumerate(index.parts):
            part = read_part(self.folder, rank, crc32)
            entries = [r.entry for r in part]
            if file_size(entries) != index.sizes[rank]:
                raise damaged(self.folder / part_name(rank), "it describes a file of another size")
            header, places = layout(entries)
            found = torch.empty(len(header), dtype=torch.uint8)
            self._files.read_into(self.folder / data_name(rank), 0, found)
            if found.numpy().tobytes() != header:
                raise damaged(self.folder / data_name(rank), "its header is another")
            offsets |= {(rank, name): place.offset for name, place in places.items()}
            ranges += part
        return {n: [_Placed(r, offsets[r.rank, r.entry.name]) for r in own] for n, own in by_name(ranges).items()}

    def check(self, pieces: Sequence[Piece]) -> None:
        """Whether the checkpoint has what `pieces` ask for, in the same shapes and dtypes."""
        wrong = []
        for piece in pieces:
            stored = self.tensors.get(piece.name)
            if stored is None:
                wrong.append(f"{piece.name} is missing")
                continue
            first, wanted = stored[0].range, (piece.whole, piece.data.dtype)
            if (first.whole, first.dtype) != wanted:
                have = f"{DTYPE_NAMES[first.dtype]} {list(first.whole)}"
                wrong.append(f"{piece.name} is {have} instead of {DTYPE_NAMES[wanted[1]]} {list(wanted[0])}")
        if wrong:
            raise UserError(
                f"{self.folder} is of another model: {len(wrong)} of {len(pieces)} tensors differ "
                f"({', '.join(wrong[:3])}); choose the checkpoint of this model, or another folder for this run"
            )

    def require(self, names: Iterable[str]) -> None:
        """UserError unless the checkpoint has all of them."""
        if missing := [name for name in names if name not in self.tensors]:
            raise UserError(f"{self.folder} has no {', '.join(missing[:3])}; it has names such as {min(self.tensors)}")

    def fill(self, piece: Piece) -> None:
        """Set `piece.data` to the stored elements."""
        position = piece.start
        for placed in self.tensors[piece.name]:
            start, end = max(position, placed.range.start), min(piece.end, placed.range.end)
            if start < end:
                self._copy(placed, start, end, piece.data[start - piece.start : end - piece.start])
                position = end

    def _copy(self, placed: _Placed, start: int, end: int, out: Tensor) -> None:
        """Elements start .. end, which lie within the range, to `out`."""
        r, out, size = placed.range, out.detach(), placed.range.dtype.itemsize
        per_chunk = CHUNK_BYTES // size
        for number in range((start - r.start) // per_chunk, -(-(end - r.start) // per_chunk)):
            first = r.start + number * per_chunk
            last = min(first + per_chunk, r.end)
            raw = self._buffer[: (last - first) * size]
            if self._in_buffer is None or self._in_buffer[0] is not r or self._in_buffer[1] != first:
                self._in_buffer = None
                self._files.read_into(self.folder / data_name(r.rank), placed.offset + (first - r.start) * size, raw)
                if zlib.crc32(raw.numpy().data) != r.crc32[number]:
                    raise damaged(self.folder / data_name(r.rank), f"the checksum of {r.name} is another")
                self._in_buffer = r, first
            low, high = max(first, start), min(last, end)
            out[low - start : high - start].copy_(raw.view(r.dtype)[low - first : high - first])


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor of an opened checkpoint, or the part of `shape` that begins at element `start`: a sources.Source."""

    reader: Reader
    name: str
    shape: tuple[int, ...]
    start: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return self.reader.tensors[self.name][0].range.dtype

    def rows(self, start: int, stop: int) -> Tensor:
        width = math.prod(self.shape[1:])
        data = torch.empty((stop - start) * width, dtype=self.dtype)
        whole = self.reader.tensors[self.name][0].range.whole
        self.reader.fill(Piece(self.name, whole, self.start + start * width, data))
        return data.view(stop - start, *self.shape[1:])


def read_whole(folder: Path, names: Sequence[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors of the checkpoint `folder`, one at a time, whatever layout wrote them; `names` None: all."""
    with Reader(folder) as reader:
        wanted = sorted(reader.tensors) if names is None else names
        reader.require(wanted)
        for name in wanted:
            kind = reader.tensors[name][0].range
            data = torch.empty(kind.whole.numel(), dtype=kind.dtype)
            reader.fill(Piece(name, kind.whole, 0, data))
            yield name, data.view(kind.whole)
