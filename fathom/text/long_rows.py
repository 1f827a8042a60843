"""Rows of made-up long documents, and a mixture of them with packed text: the data of the long-context extension.

Each row begins with a document and is filled up with further ones, the last of which is cut; so a question's fact is
always in the row, before it. Row n is a pure function of (seed, n), made when it is asked for: no files, no repeats.

    global row g of a run: made up if floor((g + 1) share) > floor(g share), else the next row of packed text

so that any run of rows holds `share` of made-up ones, to one row.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import torch

from fathom.text.batch import Array, Batch
from fathom.text.packed import PackedDataset
from fathom.text.synthetic.long_documents import long_document

FILLED = (0.6, 0.95)  # how much of a row its first document takes
SHORTEST = 60  # words of a document that fills up


class LongRows:
    """row(n): [length + 1] tokens. `encode` turns text into ids, without begin and end tokens."""

    def __init__(self, encode: Callable[[str], list[int]], *, bos: int, eos: int, length: int, seed: int) -> None:
        self.encode, self.bos, self.eos, self.length, self.seed = encode, bos, eos, length, seed
        sample = long_document(random.Random(f"{seed}/length"), 1000)
        self.tokens_per_word = len(encode(sample)) / len(sample.split())

    def row(self, number: int) -> Array:
        """Whatever was asked before."""
        rng = random.Random(f"{self.seed}/{number}")
        ids: list[int] = []
        while len(ids) <= self.length:
            words = (self.length - len(ids)) * rng.uniform(*FILLED) / self.tokens_per_word
            ids += [self.bos, *self.encode(long_document(rng, max(int(words), SHORTEST))), self.eos]
        return np.array(ids[: self.length + 1], dtype=np.int64)


class LongMixture:
    """Batches of `rows` rows. `packed` has one row per batch: its batch i is row i of the packed text."""

    def __init__(self, packed: PackedDataset, long: LongRows, *, rows: int, share: float) -> None:
        assert packed.ramp.end == 1 and packed.length == long.length
        self.packed, self.long, self.rows, self.share = packed, long, rows, share

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step`, whatever was asked before."""
        made = [self._row(g) for g in range(step * self.rows, (step + 1) * self.rows)]
        return Batch(torch.cat([b.tokens for b in made]), torch.cat([b.labels for b in made]))

    def _row(self, g: int) -> Batch:
        before = math.floor(g * self.share)  # made-up rows so far
        if math.floor((g + 1) * self.share) > before:
            tokens = torch.from_numpy(self.long.row(before))[None]
            return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        return self.packed.batch(g - before)
