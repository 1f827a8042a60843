"""What a conversion measures on text: the original runs over some rows, layer by layer, beside the conversion.

A text is cut in rows; the first two thirds are fitted to, the last third is held out for the comparison with the
result. One layer's weights are in memory at a time, and the hidden states of all rows. The bundled text is from Jane
Austen's six novels, in the public domain (Debian's r-cran-janeaustenr).

Shapes: N rows, T tokens, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.runtime import UserError
from fathom.text.tokenizer import Tokenizer
from fathom.upcycle.llama import LlamaLayer, rotation
from fathom.upcycle.source import Source

BUNDLED = Path(__file__).with_name("calibration.txt")
ROW = 512


@dataclass(frozen=True)
class Rows:
    """Token ids: `fit` [N, T] and `held_out` [M, U]."""

    fit: Tensor
    held_out: Tensor


def read_rows(
    path: Path, tokenizer: Tokenizer, fit_tokens: int, held_out_tokens: int, length: int, held_out_length: int
) -> Rows:
    """Rows of the two lengths, as many tokens as asked for and the text has."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the calibration text {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"the calibration text {path} is not UTF-8; give a plain text file") from None
    tokens = torch.tensor(tokenizer.encode_plain(text), dtype=torch.int64)
    cut = len(tokens) * 2 // 3
    if cut < length or len(tokens) - cut < held_out_length:
        needed = max(3 * length // 2, 3 * held_out_length)
        raise UserError(
            f"the calibration text {path} has {len(tokens)} tokens; about {needed} are needed: two thirds for rows of "
            f"{length} to fit to, one third for rows of {held_out_length} to compare on"
        )
    return Rows(_cut(tokens[:cut], length, fit_tokens), _cut(tokens[cut:], held_out_length, held_out_tokens))


def _cut(tokens: Tensor, length: int, count: int) -> Tensor:
    rows = min(len(tokens) // length, -(-count // length))
    return tokens[: rows * length].view(rows, length)


@dataclass(frozen=True)
class Sample:
    """What a layer sees on the rows that are fitted to: `x` [N, T, D] normed without the gain, before attention, and
    `y` the same with the gain, before the FFN."""

    x: Tensor
    y: Tensor


class Walk:
    """The original on its way through the layers. After the last one passed, the hidden states of the rows are `fit`
    [N, T, D] and `held_out` [M, U, D]."""

    def __init__(self, source: Source, rows: Rows) -> None:
        self._source, self._next = source, 0
        self._rope = rotation(source.config, max(rows.fit.shape[1], rows.held_out.shape[1]))
        embedding = source.tensor("model.embed_tokens.weight")
        self.fit, self.held_out = embedding[rows.fit], embedding[rows.held_out]

    def step(self, index: int) -> tuple[LlamaLayer, Sample]:
        """Pass layer `index`, which must be the next one: its weights and what it saw."""
        assert index == self._next
        self._next += 1
        layer = LlamaLayer.read(self._source, index)
        one = torch.ones_like(layer.input_norm)
        sample = Sample(layer.norm(self.fit, one), torch.empty_like(self.fit))
        for row, y in zip(self.fit, sample.y, strict=True):
            y[:] = self._pass(layer, row)
        for row in self.held_out:
            self._pass(layer, row)
        return layer, sample

    def _pass(self, layer: LlamaLayer, row_TD: Tensor) -> Tensor:
        """One row through the layer, in place; returns what its FFN saw."""
        h = row_TD[None]
        h = h + layer.attend(
            layer.norm(h, layer.input_norm), (self._rope[0][: h.shape[1]], self._rope[1][: h.shape[1]])
        )
        y = layer.norm(h, layer.post_norm)
        row_TD[:] = (h + layer.feed_forward(y))[0]
        return y[0]

    def normed(self, h: Tensor) -> Tensor:
        """After the final norm."""
        norm = self._source.tensor("model.norm.weight")
        return F.rms_norm(h, norm.shape, norm, self._source.config.rms_norm_eps)
