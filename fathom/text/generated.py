"""Generated text that is drawn anew for every row, so that no epoch repeats another: nothing lies on the disk.

Each row is filled with whole documents, BOS text EOS; the last is cut. Row n is a pure function of (seed, n), made when
it is asked for (by the threads of prefetch.py), and mixed with packed natural text by mixture.py.

Shares are shares of the tokens: a maker of long documents is drawn less often. With fill-in-the-middle a share of the
documents is told in that form, a coin for each (the packed text rearranges an exact share, see fim.py).

What is held out is made from seeds of another form (`sample`), which no row uses. Easy documents may occur in both.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import numpy as np
import torch

from fathom.text.batch import Array, Batch
from fathom.text.fim import cuts, rearranged
from fathom.text.packed import Noise
from fathom.text.synthetic.makers import MAKERS, shares

NOTHING = Noise()
MEASURED = 60  # documents of each maker from which its mean length is known
ROOM = 1.2  # a row's text is made at once, so much longer than its mean, and further documents are rarely needed


class GeneratedRows:
    """row(n): [length + 1] tokens. `encode` turns texts into ids, without begin and end tokens."""

    def __init__(
        self, encode: Callable[[list[str]], list[list[int]]], *, bos: int, eos: int, length: int, seed: int,
        weights: Mapping[str, float] | None = None, noise: Noise = NOTHING,
    ) -> None:  # fmt: skip
        self.encode, self.bos, self.eos, self.length, self.seed = encode, bos, eos, length, seed
        self.shares, self.noise = shares(weights or {}), noise
        rng = random.Random("mean lengths")
        texts = {name: [MAKERS[name](rng) for _ in range(MEASURED)] for name in self.shares}
        tokens = {name: sum(map(len, encode(made))) / MEASURED + 2 for name, made in texts.items()}
        self.names = list(self.shares)
        self.draws = [share / tokens[name] for name, share in self.shares.items()]
        characters = {name: sum(map(len, made)) / MEASURED for name, made in texts.items()}
        self.per_token = sum(draw * characters[name] for name, draw in zip(self.names, self.draws, strict=True))

    def row(self, number: int) -> Array:
        """Whatever was asked before."""
        rng = random.Random(f"{self.seed}/{number}")
        ids: list[int] = []
        while len(ids) <= self.length:
            for document in self.encode(self._texts(rng, self.length + 1 - len(ids))):
                ids += self._told(rng, [self.bos, *document, self.eos])
        row = np.array(ids, dtype=np.int64)
        if self.noise.split_rate:
            assert self.noise.joined is not None
            row = self.noise.joined.split(row, self.noise.split_rate, np.random.default_rng(rng.getrandbits(64)))
        return row[: self.length + 1]

    def batch(self, number: int) -> Batch:
        """Row `number` as a batch of one."""
        tokens = torch.from_numpy(self.row(number))[None]
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def _texts(self, rng: random.Random, tokens: int) -> list[str]:
        """About `tokens` tokens of documents."""
        texts: list[str] = []
        missing = ROOM * tokens * self.per_token
        while missing > 0:
            texts.append(MAKERS[rng.choices(self.names, self.draws)[0]](rng))
            missing -= len(texts[-1])
        return texts

    def _told(self, rng: random.Random, document: list[int]) -> list[int]:
        """With its middle last, as the coin falls."""
        if not self.noise.fim_rate or rng.random() >= self.noise.fim_rate:
            return document
        assert self.noise.fim is not None
        first, second = cuts(len(document) - 2, [rng.getrandbits(64)])
        told: list[int] = []
        for piece in rearranged(len(document), first, second, self.noise.fim):
            told += [piece] if isinstance(piece, int) else document[piece[0] : piece[1]]
        return told


def sample(name: str, characters: float, use: str) -> list[str]:
    """Documents of one maker, always the same for the same `use`, of so many characters at least."""
    rng, texts, size = random.Random(f"{use} {name}"), [], 0
    while size < characters:
        texts.append(MAKERS[name](rng))
        size += len(texts[-1])
    return texts
