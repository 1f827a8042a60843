"""safetensors files read and written in pieces, so that memory never depends on the size of a file or of a tensor.

The format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data.
Reading uses pread into our own buffer, not a memory map: mapped pages would count as memory of this process, and a
file that shrinks under a map kills the process instead of raising.
Writing puts the header first (all shapes are known) and then each piece at its place, in any order. The layout is the
safetensors library's own (widest dtype first, then by name), so both write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fathom.runtime import UserError

# In the library's order of writing.
DTYPES: dict[str, torch.dtype] = {
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "U32": torch.uint32,
    "I32": torch.int32, "BF16": torch.bfloat16, "F16": torch.float16, "U16": torch.uint16, "I16": torch.int16,
    "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000  # the library's own limit
MAX_OPEN_FILES = 64


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: `offset` is absolute in `path`."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (everything behind the first axis)."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """What a file says it holds; `digest` identifies that content cheaply (it covers names, shapes, offsets)."""

    path: Path
    size: int
    digest: str
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> Header:
    """Read and check the header of one file; every defect is a UserError that names the file."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
            if len(first) < 8 or length > min(MAX_HEADER_BYTES, max(size - 8, 0)):
                raise UserError(f"{path} is truncated or not a safetensors file ({size} bytes); download it again")
            raw = file.read(length)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        data = json.loads(raw, object_pairs_hook=_no_duplicates)
        if not isinstance(data, dict):
            raise ValueError("it is not an object")
        data.pop("__metadata__", None)
        tensors = {name: _tensor_info(path, name, entry, 8 + length) for name, entry in data.items()}
    except UnknownDtype:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} has a broken safetensors header ({error}); download it again") from None
    _check_extent(path, size, 8 + length, tensors)
    return Header(path, size, hashlib.sha256(first + raw).hexdigest(), tensors)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name appears twice")
    return out


def _tensor_info(path: Path, name: str, entry: dict[str, Any], data_start: int) -> TensorInfo:
    if entry["dtype"] not in DTYPES:
        raise UnknownDtype(f"{path}: {name} has dtype {entry['dtype']!r:.40}, which is not read")
    shape = tuple(entry["shape"])
    start, end = entry["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)):
        raise ValueError(f"shape or offsets of {name} are not whole numbers")
    info = TensorInfo(path, name, DTYPES[entry["dtype"]], shape, data_start + start)
    if end - start != info.nbytes:
        raise ValueError(f"{name} of shape {list(shape)} needs {info.nbytes} bytes, its offsets span {end - start}")
    return info


def _check_extent(path: Path, size: int, data_start: int, tensors: dict[str, TensorInfo]) -> None:
    """The tensors must tile the data section: no gap, no overlap, nothing missing at the end."""
    position = data_start
    for info in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        if info.offset != position:
            raise UserError(
                f"{path} has a broken safetensors header ({info.name} overlaps or leaves a gap); download it again"
            )
        position += info.nbytes
    if size < position:
        raise UserError(
            f"{path} is truncated: its header promises {position} bytes, the file has {size}; download it again"
        )
    if size > position:
        raise UserError(f"{path} has {size - position} bytes more than its header promises; download it again")


class UnknownDtype(UserError):
    """A tensor of a dtype that torch does not have, such as packed 4-bit numbers: another file would not help."""


class FileReader:
    """Reads byte ranges of many files, keeping the most recent descriptors open."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _descriptor(self, path: Path) -> int:
        if path in self._open:
            self._open.move_to_end(path)
        else:
            if len(self._open) >= MAX_OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            try:
                self._open[path] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}") from None
        return self._open[path]

    def read_into(self, path: Path, offset: int, target: Tensor) -> None:
        """Fill a contiguous CPU tensor with the bytes from `offset` on."""
        view = target.view(-1).view(torch.uint8).numpy().data
        descriptor, done = self._descriptor(path), 0
        while done < len(view):
            try:
                count = os.preadv(descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}") from None
            if count == 0:
                raise UserError(f"{path} became shorter while it was read; is it still being downloaded?")
            done += count

    def rows(self, info: TensorInfo, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Rows [start, stop) of a tensor, into `out` (contiguous, same dtype, CPU) when one is given."""
        if out is None:
            out = torch.empty((stop - start, *info.shape[1:]), dtype=info.dtype)
        if out.numel():
            self.read_into(info.path, info.offset + start * info.row_bytes, out)
        return out


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def layout(entries: Sequence[Entry]) -> tuple[bytes, dict[str, TensorInfo]]:
    """(length and header as bytes, where each tensor goes); the same bytes as the safetensors library writes."""
    order = list(DTYPES)
    entries = sorted(entries, key=lambda e: (order.index(DTYPE_NAMES[e.dtype]), e.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for e in entries:
        span = [position, position + e.nbytes]
        header[e.name] = {"dtype": DTYPE_NAMES[e.dtype], "shape": list(e.shape), "data_offsets": span}
        position = span[1]
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    start, places = 8 + len(raw), {}
    for e in entries:
        places[e.name] = TensorInfo(Path(), e.name, e.dtype, e.shape, start)
        start += e.nbytes
    return struct.pack("<Q", len(raw)) + raw, places


def file_size(entries: Sequence[Entry]) -> int:
    """Bytes of the file that holds `entries`."""
    return len(layout(entries)[0]) + sum(e.nbytes for e in entries)


@dataclass
class TensorWriter:
    """Writes one file piece by piece; closing it checks that every byte was written exactly once."""

    path: Path
    entries: Sequence[Entry]
    _written: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> TensorWriter:
        self._header, self._places = layout(self.entries)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            self._pwrite(memoryview(self._header), 0)
        except OSError:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        if kind is None:
            wrong = [n for n, place in self._places.items() if self._written.get(n, 0) != place.nbytes]
            assert not wrong, f"{self.path}: {wrong[:3]} were not written completely"

    def write(self, name: str, start: int, rows: Tensor) -> int:
        """Put `rows` at row `start` of tensor `name`; returns the bytes written."""
        place = self._places[name]
        assert rows.dtype == place.dtype and tuple(rows.shape[1:]) == place.shape[1:], name
        data = rows.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        self._pwrite(data, place.offset + start * place.row_bytes)
        self._written[name] = self._written.get(name, 0) + len(data)
        return len(data)

    def _pwrite(self, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], offset + done)
