"""The GGUF format: one file with everything, read in pieces and never trusted.

    magic "GGUF", version (3; 2 reads the same), number of tensors, number of entries
    entries   key, type, value: integers, floats, strings, arrays of one of these
    tensors   name, dimensions (fastest first, the reverse of PyTorch's), type, offset
    data      each tensor from its offset on, aligned to 32 bytes or to what general.alignment says

Quantised types are blocks of 32 or 256 values of one row. Their arithmetic is the `gguf` library's, as are their sizes;
its reader is not used: it maps the file (one that shrinks kills the process), believes every count it reads, and makes
an array object of each string. Here every count is held against the bytes that are left before anything is made of it.
"""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from fathom.checkpoint.safetensors_io import FileReader
from fathom.runtime import UserError

READABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
MAX_HEADER_BYTES = 256 * 2**20
MAX_ENTRIES = 65_536
MAX_TENSORS = 262_144
MAX_ITEMS = 2**22  # of one array; the largest vocabularies have 2**18 tokens and twice as many merges
MAX_STRING = 2**24
PIECE = 2**22  # values dequantised at once
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_KINDS = {kind.value: kind.name for kind in GGMLQuantizationType}
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies. `shape` is PyTorch's; `kind` is the name of its type, `offset` absolute."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """What a file says it holds."""

    path: Path
    entries: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def read(self, name: str, reader: FileReader) -> Tensor:
        """FP32 values of one tensor; memory is that and a piece."""
        info = self.tensors[name]
        width = info.shape[-1]
        rows = math.prod(info.shape[:-1])
        row_bytes = info.nbytes // rows
        values = torch.empty((rows, width), dtype=torch.float32)
        step = max(PIECE // width, 1)
        for start in range(0, rows, step):
            raw = torch.empty((min(step, rows - start), row_bytes), dtype=torch.uint8)
            reader.read_into(self.path, info.offset + start * row_bytes, raw)
            values[start : start + step] = torch.from_numpy(dequantize(raw.numpy(), GGMLQuantizationType[info.kind]))
        return values.view(info.shape)


def read_gguf(path: Path) -> GgufFile:
    """Read and check everything but the data; every defect is a UserError that names the file."""
    split = _SPLIT.search(path.name)
    if split and int(split[2]) > 1:
        raise UserError(f"{path} is part {int(split[1])} of {int(split[2])}; join them with llama-gguf-split --merge")
    try:
        with open(path, "rb") as file:
            return _Parser(path, file).parse()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


class _Parser:
    """Reads one header from front to back; `need` is the only way to get bytes."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.limit = min(self.size, MAX_HEADER_BYTES)
        self.position = 0

    def parse(self) -> GgufFile:
        n_tensors = self._opening()
        n_entries = self._count(MAX_ENTRIES, "entries")
        entries: dict[str, Any] = {}
        for _ in range(n_entries):
            key = self._name()
            if key in entries:
                raise self._broken(f"{key!r} appears twice")
            entries[key] = self._value(self._scalar("I"))
        if entries.get("split.count", 1) not in (0, 1):
            raise UserError(
                f"{self.path} is one of {entries['split.count']} parts; join them with llama-gguf-split --merge"
            )
        places = [self._place() for _ in range(n_tensors)]
        alignment = entries.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 65_536 or alignment & (alignment - 1):
            raise self._broken(f"general.alignment is {alignment!r}")
        start = -(-self.position // alignment) * alignment
        return GgufFile(self.path, entries, self._tensors(places, start))

    def _opening(self) -> int:
        magic = self._need(4) if self.size >= 4 else b""
        if magic in (b"ggml", b"lmgg", b"ggjt", b"tjgg", b"ggla", b"fmgg"):
            raise UserError(f"{self.path} is a GGML file from before GGUF; take or make a GGUF file of the model")
        if magic != b"GGUF":
            raise UserError(
                f"{self.path} is not a GGUF file (it begins with {magic!r}); give one, or a folder of safetensors files"
            )
        version = self._scalar("I")
        if version & 0xFFFF == 0:
            raise UserError(f"{self.path} is a big-endian GGUF file; take or make the usual little-endian one")
        if version not in (2, 3):
            raise UserError(f"{self.path} is GGUF version {version}, read are 2 and 3; convert the model again")
        return self._count(MAX_TENSORS, "tensors")

    def _tensors(self, places: list[tuple[str, tuple[int, ...], int, int]], start: int) -> dict[str, GgufTensor]:
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in places:
            if name in tensors:
                raise self._broken(f"tensor {name!r} appears twice")
            if _KINDS.get(kind) not in READABLE:
                raise UserError(
                    f"{self.path}: {name} has type {_KINDS.get(kind, kind)}; read are {', '.join(READABLE)}; "
                    "take such a file of the model"
                )
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            if shape[-1] % block:
                raise self._broken(f"rows of {name} have {shape[-1]} values, blocks of its type {block}")
            nbytes = math.prod(shape) // block * size
            if start + offset + nbytes > self.size:
                raise UserError(
                    f"{self.path} is truncated: {name} ends at byte {start + offset + nbytes}, "
                    f"the file has {self.size}; download it again"
                )
            tensors[name] = GgufTensor(name, shape, _KINDS[kind], start + offset, nbytes)
        return tensors

    def _place(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._name()
        n_dims = self._scalar("I")
        if not 1 <= n_dims <= 4:
            raise self._broken(f"tensor {name!r} has {n_dims} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(n_dims))[::-1]
        if not 0 < math.prod(shape) < 2**40:
            raise self._broken(f"tensor {name!r} has shape {list(shape)}")
        return name, shape, self._scalar("I"), self._scalar("Q")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise self._broken(f"an entry has type number {kind}")
        kind = self._scalar("I")
        count = self._count(MAX_ITEMS, "items of an array")
        if kind == _STRING:
            return [self._string() for _ in range(count)]
        if kind not in _SCALARS:
            raise self._broken(f"an array has items of type number {kind}")
        code = f"<{count}{_SCALARS[kind]}"
        return list(struct.unpack(code, self._need(struct.calcsize(code))))

    def _count(self, limit: int, what: str) -> int:
        count: int = self._scalar("Q")
        if count > min(limit, self.limit - self.position):
            raise self._broken(f"it promises {count} {what}")
        return count

    def _string(self) -> str:
        length = self._count(MAX_STRING, "bytes of text")
        try:
            return self._need(length).decode()
        except UnicodeDecodeError:
            raise self._broken("a text in it is not UTF-8") from None

    def _name(self) -> str:
        name = self._string()
        if not name.isprintable() or len(name) > 1000:
            raise self._broken(f"a name in it is {name[:40]!r}")
        return name

    def _scalar(self, code: str) -> Any:
        code = "<" + code
        return struct.unpack(code, self._need(struct.calcsize(code)))[0]

    def _need(self, count: int) -> bytes:
        if self.position + count > self.limit:
            if self.limit < self.size:
                raise self._broken(f"its header is longer than {MAX_HEADER_BYTES} bytes")
            raise UserError(f"{self.path} is truncated within its header ({self.size} bytes); download it again")
        data = self.file.read(count)
        if len(data) != count:
            raise UserError(f"{self.path} became shorter while it was read; is it still being downloaded?")
        self.position += count
        return data

    def _broken(self, why: str) -> UserError:
        return UserError(f"{self.path} has a broken GGUF header ({why}); download it again")
