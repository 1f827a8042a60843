"""The batch size grows in the first part of a run (report section 4.2: 3072 to 15360 sequences over 469B tokens).

Small batches at first make more steps of the same tokens while gradients still agree with each other. The report does
not give the shape of the ramp; here the rows of a step grow linearly with the tokens seen before it:

    rows(x) = start + (end - start) * x / over        x: tokens before the step; from x = over on: end

rounded down to a multiple of `multiple`. The steps of the ramp are a small table (15
thousand entries for the report's numbers), all later ones are a formula, so any step knows its rows at once.
"""

from __future__ import annotations

import numpy as np

from fathom.runtime import UserError


class Ramp:
    """rows(step) and first_row(step): rows [first_row(step), first_row(step) + rows(step)) are the step's."""

    def __init__(self, end: int, *, start: int = 0, over: int = 0, length: int = 1, multiple: int = 1) -> None:
        """`start` to `end` rows of `length` tokens over the first `over` tokens; start or over 0: no ramp."""
        start = start if start and over else end
        if not 1 <= start <= end:
            raise UserError(
                f"the batch cannot grow from {start} to {end} rows; give 1 or more, and not more than {end}"
            )
        for rows in (start, end):
            if rows % multiple:
                raise UserError(f"a batch of {rows} rows is no multiple of {multiple}, by which it grows")
        self.end = end
        table: list[int] = []
        before = 0  # rows of all steps so far
        while start < end and before * length < over:
            share = before * length / over
            rows = int(start + (end - start) * share) // multiple * multiple
            table.append(before)
            before += rows
        self._first = np.array([*table, before], dtype=np.int64)  # first row of each step up to the first full one

    @property
    def steps(self) -> int:
        """Steps until the batch has its full size."""
        return len(self._first) - 1

    def rows(self, step: int) -> int:
        """Rows of optimizer step `step`."""
        return self.first_row(step + 1) - self.first_row(step)

    def first_row(self, step: int) -> int:
        """Rows of all steps before `step`."""
        if step <= self.steps:
            return int(self._first[step])
        return int(self._first[-1]) + (step - self.steps) * self.end
