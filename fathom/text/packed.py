"""Pretraining batches: rows of T + 1 consecutive tokens of a weighted mixture of streams.

    global row --draw--> source, how often it came before --shuffle--> epoch, window --read--> T + 1 tokens

Documents are packed one after the other, without a mask between them (report section 4.1). A batch is a pure function
of (seed, step): resuming at a step needs no state, every rank can make the rows it wants, and every run with the same
seed sees the same data.

Why any row can be made directly, although fill-in-the-middle and split tokens change lengths (see fim.py):
1. Fill-in-the-middle adds three tokens to a number of documents that is the same in every epoch. The rearranged stream
   has a known length, windows are cut from it, and a cumulative sum over documents finds the documents of a window.
   The sum is made once per source and epoch: 16 bytes and about 20 ns per document.
2. Splitting makes a row longer by the tokens it adds; the row is cut back to T + 1, and what falls off is not seen in
   this epoch (a few tokens of a thousand at the row's end). So that it is not always the same tokens, the windows of
   each epoch then begin at another place. Without splitting nothing is lost but the last, incomplete window.
3. How often a source came before a row is counted in blocks of 65,536 rows: the first batch of a resumed run draws
   the sources of all rows before it, not their data (about 20 ns each).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch

from fathom.runtime import UserError
from fathom.text.batch import Array, Batch
from fathom.text.fim import ADDED, FimTokens, Joined, chosen, cuts, rearranged
from fathom.text.ramp import Ramp
from fathom.text.tokenizer import Tokenizer

BLOCK = 1 << 16


class Tokens(Protocol):
    """A 1-D array, or shards.Stream."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Array: ...


@dataclass(frozen=True)
class Noise:
    """What is done to documents and tokens; nothing by default."""

    fim_rate: float = 0.0
    split_rate: float = 0.0
    fim: FimTokens | None = None
    joined: Joined | None = None

    def __post_init__(self) -> None:
        for name, rate, needs in (("fim", self.fim_rate, self.fim), ("split", self.split_rate, self.joined)):
            if not 0 <= rate <= 1:
                raise UserError(f"data.{name}_rate is {rate}, it must be between 0 and 1")
            assert needs is not None or not rate

    @classmethod
    def of(cls, tokenizer: Tokenizer, fim_rate: float, split_rate: float) -> Noise:
        """With what the rates need of the tokenizer; what a rate of 0 does not need is not looked for."""
        fim = FimTokens.of(tokenizer) if fim_rate else None
        return cls(fim_rate, split_rate, fim, Joined.of(tokenizer) if split_rate else None)


class Place(NamedTuple):
    """Where a row comes from."""

    source: str
    epoch: int
    window: int


class PackedDataset:
    """Rows of T consecutive tokens, drawn from the sources by weight, each source shuffled anew every epoch.

    A source that does not fill one row is left out.
    """

    def __init__(
        self, streams: Mapping[str, Tokens], *, rows: int | Ramp, length: int, seed: int,
        weights: dict[str, float] | None = None, noise: Noise = Noise(),
    ) -> None:  # fmt: skip
        unknown = set(weights or {}) - set(streams)
        if unknown:
            raise UserError(
                f"data.weights name {sorted(unknown)}, the corpus has {sorted(streams)}; if a source was skipped when "
                "the corpus was built, build it again or take the weight out"
            )
        self.ramp = Ramp(rows) if isinstance(rows, int) else rows
        self.length, self.seed, self.noise = length, seed, noise
        # One window must remain wherever the windows of an epoch begin (splitting moves them by up to `length`).
        least = 2 * length if noise.split_rate else length
        self.streams: dict[str, Tokens] = {name: s for name, s in streams.items() if len(s) > least}
        if not self.streams:
            raise UserError(f"no source holds more than {least} tokens; shorten the sequence or add text")
        self.names = sorted(self.streams)
        shares = [len(self.streams[n]) * (weights or {}).get(n, 1.0) for n in self.names]
        if not sum(shares) > 0:
            raise UserError(f"data.weights leave nothing of {self.names}; give at least one source a weight above 0")
        self.shares = np.array(shares) / sum(shares)
        self._draws = _Draws(self.shares, seed)
        self._views = [_View(self.streams[n], i, seed, noise) for i, n in enumerate(self.names)]

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step`, whatever was asked before."""
        return self.part(step, 0, self.ramp.rows(step))

    def part(self, step: int, start: int, end: int) -> Batch:
        """batch(step).rows(start, end), without making the other rows."""
        first = self.ramp.first_row(step)
        rows = [self._row(*self._draws.at(row)) for row in range(first + start, first + end)]
        tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def places(self, step: int) -> list[Place]:
        """Where the rows of a batch come from."""
        first = self.ramp.first_row(step)
        found = []
        for row in range(first, first + self.ramp.rows(step)):
            source, occurrence = self._draws.at(row)
            epoch, index = divmod(occurrence, self._windows(source))
            window = int(permutation(self.seed, source, epoch, self._windows(source))[index])
            found.append(Place(self.names[source], epoch, window))
        return found

    def _windows(self, source: int) -> int:
        """Windows in every epoch of a source."""
        return (len(self._views[source]) - 1) // self.length - (self.noise.split_rate > 0)

    def _row(self, source: int, occurrence: int) -> Array:
        windows = self._windows(source)
        epoch, index = divmod(occurrence, windows)
        start = int(permutation(self.seed, source, epoch, windows)[index]) * self.length
        rate = self.noise.split_rate
        if not rate:
            return self._views[source].read(epoch, start, start + self.length + 1)
        assert self.noise.joined is not None
        start += int(np.random.Generator(np.random.PCG64([self.seed, 6, source, epoch])).integers(self.length))
        row = self._views[source].read(epoch, start, start + self.length + 1)
        random = np.random.Generator(np.random.PCG64([self.seed, 7, source, occurrence]))
        return self.noise.joined.split(row.astype(np.int64), rate, random)[: self.length + 1]


class _Draws:
    """The source of every row, one uniform number each from a counted generator, and how often it came before."""

    def __init__(self, shares: Array, seed: int) -> None:
        self._edges, self._seed = shares.cumsum(), seed
        self._before = [np.zeros(len(shares), dtype=np.int64)]  # per block: rows of each source in earlier blocks
        self._blocks: dict[int, tuple[Array, Array]] = {}
        self._lock = threading.Lock()

    def at(self, row: int) -> tuple[int, int]:
        """(source, occurrence) of a row."""
        block, offset = divmod(row, BLOCK)
        with self._lock:
            if block not in self._blocks:
                self._open(block)
            sources, occurrences = self._blocks[block]
        return int(sources[offset]), int(occurrences[offset])

    def _sources(self, block: int) -> Array:
        random = np.random.PCG64([self._seed, 1]).advance(block * BLOCK)
        uniform = np.random.Generator(random).random(BLOCK)
        return np.searchsorted(self._edges, uniform * (1 - 1e-12))

    def _open(self, block: int) -> None:
        while len(self._before) <= block:
            counts = np.bincount(self._sources(len(self._before) - 1), minlength=len(self._edges))
            self._before.append(self._before[-1] + counts)
        sources = self._sources(block)
        occurrences = np.empty(BLOCK, dtype=np.int64)
        for source, before in enumerate(self._before[block]):
            where = np.flatnonzero(sources == source)
            occurrences[where] = before + np.arange(len(where))
        while len(self._blocks) >= 4:
            self._blocks.pop(next(iter(self._blocks)))
        self._blocks[block] = sources, occurrences


class _View:
    """One source as an epoch tells it: read(epoch, a, b) of the stream with some documents rearranged."""

    def __init__(self, stream: Tokens, source: int, seed: int, noise: Noise) -> None:
        self._stream, self._source, self._seed, self._noise = stream, source, seed, noise
        self._starts: Array | None = None
        if noise.fim_rate:
            self._starts = getattr(stream, "starts", None)
            if self._starts is None:
                raise UserError("fill-in-the-middle needs streams with an index of documents; see text/shards.py")
        self._epochs: dict[int, tuple[Array, Array]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        if self._starts is None:
            return len(self._stream)
        return len(self._stream) + ADDED * round(self._noise.fim_rate * (len(self._starts) - 1))

    def read(self, epoch: int, start: int, end: int) -> Array:
        """Tokens [start, end) of the rearranged stream."""
        if self._starts is None:
            return np.asarray(self._stream[start:end])
        flags, told = self._epoch(epoch)
        first, last = np.searchsorted(told, [start, end - 1], "right") - 1
        pieces: list[Array] = []
        for document in (first + np.flatnonzero(flags[first : last + 1])).tolist():
            begin, stop = int(told[document]), min(int(told[document + 1]), end)
            if start < begin:  # documents as they are, up to this one
                shift = begin - int(self._starts[document])
                pieces.append(self._stream[start - shift : begin - shift])
                start = begin
            pieces += self._pieces(epoch, document, start - begin, stop - start)
            start = stop
        if start < end:
            shift = int(told[last + 1] - self._starts[last + 1])
            pieces.append(self._stream[start - shift : end - shift])
        return np.concatenate(pieces)

    def _epoch(self, epoch: int) -> tuple[Array, Array]:
        """Which documents are rearranged, and where each then begins ([documents + 1])."""
        assert self._starts is not None
        with self._lock:
            if epoch not in self._epochs:
                flags = chosen(len(self._starts) - 1, self._noise.fim_rate, self._seed, self._source, epoch)
                while len(self._epochs) >= 2:
                    self._epochs.pop(next(iter(self._epochs)))
                self._epochs[epoch] = flags, self._starts + np.concatenate([[0], np.cumsum(flags) * ADDED])
            return self._epochs[epoch]

    def _pieces(self, epoch: int, document: int, skip: int, count: int) -> list[Array]:
        """`count` tokens of a rearranged document after its first `skip`."""
        assert self._starts is not None and self._noise.fim is not None
        first, length = int(self._starts[document]), int(self._starts[document + 1] - self._starts[document])
        two = cuts(length - 2, [self._seed, 5, self._source, epoch, document])
        pieces: list[Array] = []
        at = 0  # where the piece begins in the rearranged document
        for piece in rearranged(length, *two, self._noise.fim):
            a, b = (0, 1) if isinstance(piece, int) else piece
            low, high = max(skip - at, 0), min(skip + count - at, b - a)
            at += b - a
            if low >= high:
                continue
            if isinstance(piece, int):
                pieces.append(np.array([piece]))
            else:
                pieces.append(self._stream[first + a + low : first + a + high])
        return pieces


@lru_cache(maxsize=64)
def permutation(seed: int, source: int, epoch: int, size: int) -> Array:
    """The order of a source's windows in an epoch."""
    return np.random.Generator(np.random.PCG64([seed, 2, source, epoch])).permutation(size)
