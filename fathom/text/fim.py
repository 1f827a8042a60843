"""What happens to documents and tokens on their way into a row: fill-in-the-middle, and joined tokens taken apart.

Fill-in-the-middle (report section 4.1): a share of the documents is cut at two places into prefix, middle, suffix and
told in the order prefix, suffix, middle (PSM), before documents are packed into rows:

    BOS document EOS   ->   BOS begin prefix hole suffix end middle EOS

The model so learns to write what belongs between two texts, by nothing but next-token prediction. A document grows by
exactly three tokens; which documents of an epoch are told so is known for all of them at once (`chosen`), so the place
of every document in the rearranged stream is one cumulative sum, and any window of it can be read without the windows
before it. Only the parts of a document that lie in the window are read.

Joined tokens: V3's vocabulary has tokens that join punctuation with line breaks, such as ".\\n\\n". A prompt that ends
right after "." would never continue with "\\n\\n" if the two only ever came as one token. So a share of these tokens
(`rate`; the report does not give it) is replaced by its parts.

Deviations: (1) the two cuts fall between tokens, not between characters; (2) exactly rate * documents are rearranged in
each epoch, others in each, instead of a coin per document: over 1/rate epochs every document comes once in each form.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fathom.runtime import UserError
from fathom.text.batch import Array
from fathom.text.tokenizer import Tokenizer

ADDED = 3  # control tokens per rearranged document


class FimTokens(NamedTuple):
    """Ids of the three control tokens."""

    begin: int
    hole: int
    end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> FimTokens:
        """Found by name, with the bars and blanks of V3 or with plain ones."""
        return cls(*(_control_id(tokenizer, name) for name in ("begin", "hole", "end")))


def _control_id(tokenizer: Tokenizer, name: str) -> int:
    for spelled in (f"<｜fim▁{name}｜>", f"<|fim_{name}|>"):
        found = tokenizer.id_of(spelled)
        if found is not None:
            return found
    raise UserError(f"the tokenizer has no token <|fim_{name}|>; set data.fim_rate to 0 or take one that has it")


def cuts(length: int, key: list[int]) -> tuple[int, int]:
    """Where a text of `length` tokens is cut: 0 <= first <= second <= length, uniform, a function of `key`."""
    first, second = sorted(np.random.Generator(np.random.PCG64(key)).integers(0, length + 1, 2).tolist())
    return first, second


def chosen(documents: int, rate: float, seed: int, source: int, epoch: int) -> Array:
    """[documents] bool: those rearranged in `epoch`; their number is the same in every epoch."""
    count = round(rate * documents)
    rank = np.random.Generator(np.random.PCG64([seed, 4, source])).permutation(documents)
    return np.asarray((rank + epoch * count) % max(documents, 1) < count)


def rearranged(length: int, first: int, second: int, tokens: FimTokens) -> list[tuple[int, int] | int]:
    """A document of `length` tokens (BOS and EOS among them) as pieces: ranges of it, and control tokens."""
    first, second, end = first + 1, second + 1, length - 1  # counted from BOS
    return [
        (0, 1), tokens.begin, (1, first), tokens.hole, (second, end), tokens.end, (first, second), (end, length),
    ]  # fmt: skip


def restored(ids: list[int], tokens: FimTokens) -> list[int]:
    """The document as it was, from its rearranged form."""
    begin, hole, end = (ids.index(token) for token in tokens)
    return ids[:begin] + ids[begin + 1 : hole] + ids[end + 1 : -1] + ids[hole + 1 : end] + ids[-1:]


@dataclass(frozen=True)
class Joined:
    """Tokens that join punctuation with line breaks, and the tokens they are made of."""

    parts: dict[int, list[int]]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Joined:
        """Those of a vocabulary, by what each token reads; control tokens stay whole."""
        parts: dict[int, list[int]] = {}
        for token in range(tokenizer.vocab_size):
            text = tokenizer.decode([token], skip_special=False)
            sign = text.rstrip("\r\n")
            if token in tokenizer.control_tokens or len(sign) == len(text) or not _is_punctuation(sign):
                continue
            pieces = [*tokenizer.encode_plain(sign), *tokenizer.encode_plain(text[len(sign) :])]
            if len(pieces) > 1 and tokenizer.decode(pieces, skip_special=False) == text:
                parts[token] = pieces
        return cls(parts)

    @cached_property
    def _is_joined(self) -> Array:
        """By id; the last entry stands for all larger ids."""
        table = np.zeros(max(self.parts, default=0) + 2, dtype=bool)
        table[list(self.parts)] = True
        return table

    def split(self, row: Array, rate: float, random: np.random.Generator) -> Array:
        """`row` with a share of its joined tokens taken apart; at least as long as it was."""
        where = np.flatnonzero(self._is_joined[np.minimum(row, len(self._is_joined) - 1)])
        where = where[random.random(len(where)) < rate]
        pieces: list[Any] = []
        start = 0
        for at in where.tolist():
            pieces += [row[start:at], np.array(self.parts[int(row[at])], row.dtype)]
            start = at + 1
        return np.concatenate([*pieces, row[start:]])


def _is_punctuation(text: str) -> bool:
    """Signs, with at most one blank before them."""
    signs = text.removeprefix(" ")
    return bool(signs) and all(unicodedata.category(sign)[0] in "PS" and sign != "\ufffd" for sign in signs)
