"""Cleaning, fingerprints and duplicates.

Two finders of near duplicates. `NearDuplicates` is for `fathom data build`: MinHash by the library `rensa` (Rust, no
dependencies of its own; datasketch, the older choice, brings scipy). `Deduplicator` is the corpus builder's and stays
as it is: which documents it drops is part of the released corpus, which must come out the same with every version of
every library. Word 5-grams are hashed once, each hash falls into one of 32 bins by its remainder, a bin keeps its
minimum (one-permutation MinHash). Documents that agree in all 4 bins of one of the 8 bands are taken for copies; the
first stays.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import unicodedata
import zlib
from typing import Any

from fathom.runtime import UserError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff\ufffd]")


def clean(text: str) -> str:
    """NFC, no control characters, single spaces, at most one empty line in a row."""
    text = _CONTROL.sub(
        "", unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\t", " ").replace("\u00a0", " "))
    )
    text = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", text))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def fingerprint(text: str) -> bytes:
    """Equal for texts that differ only in case, punctuation and spacing."""
    return hashlib.blake2b(" ".join(re.findall(r"\w+", text.lower())).encode(), digest_size=16).digest()


def is_heldout(text: str, percent: float = 1.0) -> bool:
    return int.from_bytes(fingerprint(text)[:8], "big") % 10_000 < percent * 100


class Deduplicator:
    """Remembers what it has seen; `is_new` is False for a copy and, with `near`, for a near copy."""

    BINS, ROWS, SHINGLE = 32, 4, 5

    def __init__(self) -> None:
        self._exact: set[bytes] = set()
        self._bands: set[tuple[int, ...]] = set()

    def is_new(self, text: str, near: bool = True) -> bool:
        mark = fingerprint(text)
        if mark in self._exact:
            return False
        bands = self._signature(text) if near else []
        if any(band in self._bands for band in bands):
            return False
        self._exact.add(mark)
        self._bands.update(bands)
        return True

    def _signature(self, text: str) -> list[tuple[int, ...]]:
        words = re.findall(r"\w+", text.lower())
        if len(words) < 4 * self.SHINGLE:
            return []  # too short for a fair estimate; exact copies are still found
        bins = [-1] * self.BINS
        for k in range(len(words) - self.SHINGLE + 1):
            value = zlib.crc32(" ".join(words[k : k + self.SHINGLE]).encode())
            slot, value = value % self.BINS, value // self.BINS
            if bins[slot] < 0 or value < bins[slot]:
                bins[slot] = value
        rows = [tuple(bins[k : k + self.ROWS]) for k in range(0, self.BINS, self.ROWS)]
        return [(k, *row) for k, row in enumerate(rows) if -1 not in row]


_WORD = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|[^\W\u3040-\u30ff\u4e00-\u9fff]+")  # Chinese: each sign a word


def words(text: str) -> list[str]:
    """Words in small letters; in Chinese and Japanese every sign."""
    return _WORD.findall(text.lower())


class NearDuplicates:
    """Documents that share most of their word 5-grams with an earlier one.

    A signature holds 128 minima of hashes of the 5-grams; two signatures agree in a share of places that estimates the
    Jaccard similarity of the two documents. Candidates are found by LSH (16 bands of 8), then the estimate decides.
    Exact copies (but for case, punctuation and spacing) are found by fingerprint, also among documents that are too
    short for a fair estimate. Memory: about 1.5 KB per kept document.
    """

    SIZE, BANDS, SHINGLE, SEED = 128, 16, 5, 1

    def __init__(self, threshold: float = 0.8) -> None:
        if not 0 < threshold <= 1:
            raise UserError(f"the similarity of near duplicates is {threshold}; it must be above 0 and at most 1")
        self._near = _rensa().RMinHashDeduplicator(threshold, self.SIZE, True, self.BANDS, self.SEED)
        self._exact: set[bytes] = set()

    def verdict(self, mark: tuple[bytes, bytes]) -> str | None:
        """ "copy", "near", or None for a new document, which is then remembered. `mark` comes from `mark`."""
        exact, near = mark
        if exact in self._exact:
            return "copy"
        if near and not self._near.add(exact.hex(), _minhash(near)):
            return "near"
        self._exact.add(exact)
        return None

    @classmethod
    def mark(cls, found: list[str]) -> tuple[bytes, bytes]:
        """What a verdict needs to know of a text with these words: fingerprint, signature (empty for a short one)."""
        exact = hashlib.blake2b(" ".join(found).encode(), digest_size=16).digest()
        if len(found) < 4 * cls.SHINGLE:
            return exact, b""
        minhash = _rensa().RMinHash(cls.SIZE, cls.SEED)
        minhash.update([" ".join(found[i : i + cls.SHINGLE]) for i in range(len(found) - cls.SHINGLE + 1)])
        return exact, bytes(minhash.__getstate__())

    @staticmethod
    def version() -> str:
        """Signatures of different versions cannot be compared."""
        return f"rensa {_rensa().RMinHash.ALGORITHM_VERSION}"


def _minhash(state: bytes) -> Any:
    minhash = _rensa().RMinHash(NearDuplicates.SIZE, NearDuplicates.SEED)
    minhash.__setstate__(state)
    return minhash


def _rensa() -> Any:
    try:
        return importlib.import_module("rensa")
    except ImportError:
        raise UserError("near duplicates need the library rensa; pip install rensa, or build with --no-dedup") from None
