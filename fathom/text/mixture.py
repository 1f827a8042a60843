"""Rows of two data sets in one batch: packed text with made-up documents, dialogues with packed text.

    global row g of a run: of `other` if floor((g + 1) share) > floor(g share), else of `main`

so that any run of rows holds `share` of the other's, to one row, and neither skips a row of its own.
"""

from __future__ import annotations

import math

from fathom.text.batch import Batch, stack
from fathom.text.prefetch import Batches
from fathom.text.ramp import Ramp


class Mixture:
    """Batches of `rows` rows. Both data sets have one row per batch: their batch i is their row i."""

    def __init__(self, main: Batches, other: Batches, *, rows: int | Ramp, share: float) -> None:
        self.main, self.other, self.share = main, other, share
        self.ramp = Ramp(rows) if isinstance(rows, int) else rows

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step`, whatever was asked before."""
        return stack([self._row(g) for g in range(self.ramp.first_row(step), self.ramp.first_row(step + 1))])

    def _row(self, g: int) -> Batch:
        before = math.floor(g * self.share)  # the other's rows so far
        if math.floor((g + 1) * self.share) > before:
            return self.other.batch(before)
        return self.main.batch(g - before)
