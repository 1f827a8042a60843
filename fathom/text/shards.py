"""Token streams on disk: memory-mapped files, and an index of where each document starts.

    DIR/<source>-00000.bin   tokens, uint16 or uint32:  BOS document EOS BOS document EOS ...
    DIR/<source>-00000.idx   int64: the first token of each document, counted from the start of its .bin
    DIR/meta.json            written last: without it the folder is unfinished and is not read

A source that is large lies in several shards; a shard ends with a document. `Stream` joins them to one sequence again.
The index is there for what happens to whole documents (fill-in-the-middle, see fim.py); BOS inside a text would not be
a safe mark.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from fathom.runtime import UserError, read_json
from fathom.text.batch import Array

FORMAT = 2


class Stream:
    """One source's tokens: len(stream), stream[a:b] -> 1-D array, and `starts`, the first token of each document."""

    def __init__(self, shards: list[Array], indices: list[Array]) -> None:
        self._shards = shards
        self._first = np.cumsum([0, *map(len, shards)])
        self._indices = indices

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self._shards[0].dtype
        return dtype

    @property
    def starts(self) -> Array:
        """[documents + 1] int64, ascending; the last entry is the length of the stream."""
        moved = [index + first for index, first in zip(self._indices, self._first[:-1], strict=True)]
        return np.concatenate([*moved, self._first[-1:]]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, part: slice) -> Array:
        start, end, step = part.indices(len(self))
        if step != 1:
            raise IndexError("a stream is cut into consecutive tokens")
        shard = int(np.searchsorted(self._first, start, "right")) - 1
        pieces: list[Array] = []
        while start < end:
            stop = min(end, int(self._first[shard + 1]))
            pieces.append(self._shards[shard][start - self._first[shard] : stop - self._first[shard]])
            start, shard = stop, shard + 1
        if len(pieces) == 1:
            return np.asarray(pieces[0])
        return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)

    def tolist(self) -> list[int]:
        """All tokens."""
        return [int(token) for token in self[:]]


def open_streams(folder: Path | str) -> dict[str, Stream]:
    """The streams of a finished folder by source."""
    folder = Path(folder)
    meta = read_meta(folder)
    dtype = np.dtype(meta["dtype"])
    streams: dict[str, Stream] = {}
    for name in sorted(meta["sources"]):
        shards, indices = [], []
        for number, (tokens, documents) in enumerate(meta["sources"][name]["shards"]):
            stem = folder / f"{name}-{number:05d}"
            shards.append(_map(stem.with_name(f"{stem.name}.bin"), dtype, tokens))
            indices.append(_map(stem.with_name(f"{stem.name}.idx"), np.dtype(np.int64), documents))
        streams[name] = Stream(shards, indices)
    return streams


def read_meta(folder: Path | str) -> dict[str, Any]:
    """meta.json of a finished folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of tokens; make one with fathom data build")
    if not (folder / "meta.json").exists():
        raise UserError(f"{folder} holds no finished tokens (no meta.json); run the build again, it continues")
    meta: dict[str, Any] = read_json(folder / "meta.json")
    if meta.get("format") != FORMAT:
        raise UserError(f"{folder} is of format {meta.get('format')}, this version reads {FORMAT}; remove it and build")
    return meta


def stored_weights(folder: Path | str) -> dict[str, float]:
    """The weights that were given when the folder was built; a recipe's own come first."""
    return dict(read_meta(folder)["weights"])


def require_tokens(folder: Path | str, bos: int, eos: int, vocab_size: int) -> None:
    """Refuse a folder whose tokens are not those of a model."""
    meta = read_meta(folder)
    if (meta["bos"], meta["eos"]) != (bos, eos) or meta["vocab_size"] > vocab_size:
        raise UserError(
            f"{folder} has {meta['vocab_size']} ids, BOS {meta['bos']}, EOS {meta['eos']}; the model has {vocab_size} "
            f"rows, BOS {bos}, EOS {eos}: take the tokenizer that belongs to the model and build again"
        )


def _map(path: Path, dtype: np.dtype[Any], count: int) -> Array:
    size = count * dtype.itemsize
    if not path.exists() or path.stat().st_size != size:
        raise UserError(
            f"{path} does not hold the {size} bytes that meta.json names; remove {path.parent} and run again"
        )
    return np.memmap(path, dtype=dtype, mode="r")


class ShardWriter:
    """Appends documents to the shards of one folder. What is not committed is cut off by the next writer."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], shard_tokens: int, sources: dict[str, Any]) -> None:
        """`sources`: those of the last commit, {} for a new folder; files beyond it are cut or removed."""
        self.folder, self.dtype, self.shard_tokens, self.sources = folder, dtype, shard_tokens, sources
        self._pending: dict[Path, list[Array]] = {}
        wanted: dict[Path, int] = {}
        for name, entry in sources.items():
            for number, (tokens, documents) in enumerate(entry["shards"]):
                wanted[self._path(name, number, "bin")] = tokens * dtype.itemsize
                wanted[self._path(name, number, "idx")] = documents * 8
        for path in [p for kind in ("bin", "idx") for p in folder.glob(f"*-{'[0-9]' * 5}.{kind}")]:
            if path not in wanted:
                path.unlink()
        for path, size in wanted.items():
            if not path.exists() or path.stat().st_size < size:
                raise UserError(f"{path} is shorter than the {size} bytes that were written; remove {folder}")
            with open(path, "r+b") as file:
                file.truncate(size)

    def _path(self, source: str, number: int, kind: str) -> Path:
        return self.folder / f"{source}-{number:05d}.{kind}"

    def add(self, source: str, tokens: Array, size: int) -> None:
        """One document with its BOS and EOS; `size` is its text in UTF-8 bytes."""
        entry = self.sources.setdefault(source, {"tokens": 0, "documents": 0, "bytes": 0, "shards": [[0, 0]]})
        if entry["shards"][-1][0] >= self.shard_tokens:
            entry["shards"].append([0, 0])
        shard, number = entry["shards"][-1], len(entry["shards"]) - 1
        self._pending.setdefault(self._path(source, number, "idx"), []).append(np.array([shard[0]], np.int64))
        self._pending.setdefault(self._path(source, number, "bin"), []).append(tokens.astype(self.dtype))
        shard[0] += len(tokens)
        shard[1] += 1
        entry["tokens"] += len(tokens)
        entry["documents"] += 1
        entry["bytes"] += size

    def flush(self) -> None:
        """Everything added so far is on the disk; the caller may now commit `sources`."""
        append({path: np.concatenate(arrays).tobytes() for path, arrays in self._pending.items()})
        self._pending = {}


def append(pieces: dict[Path, bytes]) -> None:
    """Append to files, and wait until the disk has it."""
    for path, data in pieces.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; free some space, then run again") from None
