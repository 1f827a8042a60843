"""Held-out bits per byte by context length: the same text, read in pieces of 1K, 2K, 4K, ... tokens.

The text is the first rows of each held-out source, as long as the longest context; a piece of N tokens starts anew at
position 0. A model that cannot use a length gets worse there; one that can gets better, as far as the text lets it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.runtime import UserError, atomic_write, read_json
from fathom.text.batch import Batch
from fathom.text.dataset import open_streams
from fathom.train.evaluate import Nats

TOKENS_AT_ONCE = 8192  # of a forward pass, or one piece


def halvings(trained: int, longest: int) -> list[int]:
    """`longest`, its half, its quarter, ... down to the trained context; ascending."""
    out = [longest]
    while out[0] % 2 == 0 and out[0] // 2 >= trained:
        out.insert(0, out[0] // 2)
    return out


def by_length(nats: Nats, folder: Path, *, rows: int, lengths: Sequence[int]) -> dict[str, float]:
    """Length -> bits per byte over the sources of the tokenised `folder`, from each `rows` rows of the longest.

    A source that does not fill one of them is left out: every length reads the same text.
    """
    meta: dict[str, Any] = read_json(folder / "meta.json")
    longest = max(lengths)
    texts: list[torch.Tensor] = []
    covered = 0.0
    for name, stream in open_streams(folder).items():
        source = meta["sources"][name]
        for row in range(min(rows, (len(stream) - 1) // longest)):
            ids = np.asarray(stream[row * longest : (row + 1) * longest + 1]).astype(np.int64)
            texts.append(torch.from_numpy(ids))
            covered += longest * source["bytes"] / source["tokens"]
    if not texts:
        raise UserError(
            f"no source of the held-out text has more than {longest} tokens; add text to data.heldout or leave it empty"
        )
    return {str(length): _nats(nats, texts, length) / math.log(2) / covered for length in lengths}


def _nats(nats: Nats, texts: list[torch.Tensor], length: int) -> float:
    pieces = [text[s : s + length + 1] for text in texts for s in range(0, len(text) - 1, length)]
    total, at_once = 0.0, max(TOKENS_AT_ONCE // length, 1)
    for size in sorted({len(p) for p in pieces}):  # the last piece of a row may be shorter
        same = [p for p in pieces if len(p) == size]
        for first in range(0, len(same), at_once):
            both = torch.stack(same[first : first + at_once])
            total += nats(Batch(both[:, :-1].contiguous(), both[:, 1:].contiguous()))
    return total


def draw_lengths(curves: dict[str, dict[str, float]], path: Path) -> None:
    """One curve per moment of the extension."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    for name, values in curves.items():
        lengths = sorted(int(n) for n in values)
        axis.plot(lengths, [values[str(n)] for n in lengths], "o-", label=name)
        axis.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axis.minorticks_off()
    axis.set(title="held-out text, read in pieces of N tokens", xlabel="N", ylabel="bits per byte")
    axis.legend()
    axis.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
    plt.close(figure)
