"""Rows of made-up long documents: the data of the long-context extension, mixed with packed text (mixture.py).

Each row begins with a document and is filled up with further ones, the last of which is cut; so a question's fact is
always in the row, before it. Row n is a pure function of (seed, n), made when it is asked for: no files, no repeats.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch

from fathom.text.batch import Array, Batch
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

    def batch(self, number: int) -> Batch:
        """Row `number` as a batch of one."""
        tokens = torch.from_numpy(self.row(number))[None]
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
