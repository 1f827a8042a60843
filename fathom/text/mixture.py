"""Rows of two data sets in one batch: packed text with made-up long documents, dialogues with packed text.

    global row g of a run: of `other` if floor((g + 1) share) > floor(g share), else of `main`

so that any run of rows holds `share` of the other's, to one row, and neither skips a row of its own.
"""

from __future__ import annotations

import math

from fathom.text.batch import Batch, stack
from fathom.text.prefetch import Batches


class Mixture:
    """Batches of `rows` rows. Both data sets have one row per batch: their batch i is their row i."""

    def __init__(self, main: Batches, other: Batches, *, rows: int, share: float) -> None:
        self.main, self.other, self.rows, self.share = main, other, rows, share

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step`, whatever was asked before."""
        return stack([self._row(g) for g in range(step * self.rows, (step + 1) * self.rows)])

    def _row(self, g: int) -> Batch:
        before = math.floor(g * self.share)  # the other's rows so far
        if math.floor((g + 1) * self.share) > before:
            return self.other.batch(before)
        return self.main.batch(g - before)
