"""Loss spikes: a step whose loss or gradient norm jumps is not applied (run.spike_factor; 0 applies every step).

The report's run had no irrecoverable spike and no rollback (abstract); smaller runs on rougher data do have them. One
bad batch then costs one batch, not the run.

    deviation(x) = (x - median(last N)) / max(1.4826 * MAD(last N), floor)      MAD: median distance from the median
    spike        = deviation(loss) > factor  or  deviation(log norm) > factor

Medians, since a mean would follow the very spike it is asked about. The floor keeps a flat stretch from turning
harmless noise into a spike: half a percent of the loss, 0.1 for the logarithm of the norm. Only upward jumps count.
Skipped steps never enter the history. Losses are judged from the 21st step on; NaN and infinity always.

The decision must be the same on every rank: give it the loss and the norm of the whole step, after the all-reduce.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import Any

from fathom.runtime import UserError

WINDOW = 128  # steps that the medians look back
LEAST = 20  # steps before which there is nothing to compare with
LIMIT = 10  # skipped steps in a row that a healthy run does not have


class SpikeGuard:
    """Judges each step once, in order."""

    def __init__(self, factor: float, *, window: int = WINDOW, least: int = LEAST, limit: int = LIMIT) -> None:
        self.factor, self.least, self.limit = factor, least, limit
        self.losses: deque[float] = deque(maxlen=window)
        self.norms: deque[float] = deque(maxlen=window)
        self.in_a_row = 0
        self.skipped = 0

    def is_spike(self, loss: float, norm: float) -> bool:
        """Whether this step must not be applied. More than `limit` spikes in a row end the run (UserError)."""
        if not self.factor:
            return False
        finite = math.isfinite(loss) and math.isfinite(norm)
        log_norm = math.log(max(norm, 1e-30)) if finite else 0.0
        if finite and not self._jumps(self.losses, loss, 0.005) and not self._jumps(self.norms, log_norm, 0.0, 0.1):
            self.losses.append(loss)
            self.norms.append(log_norm)
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        self.skipped += 1
        if self.in_a_row > self.limit:
            usual = f"median of the last steps {median(self.losses):.4f}" if self.losses else "no good step yet"
            raise UserError(
                f"{self.in_a_row} spikes in a row (loss {loss:.4f}, gradient norm {norm:.4g}; {usual}), "
                f"the limit is {self.limit}: this run diverges; start again from an earlier checkpoint with a lower "
                "optim.peak_lr, or raise run.spike_factor"
            )
        return True

    def _jumps(self, history: Iterable[float], value: float, relative_floor: float, floor: float = 0.0) -> bool:
        values = list(history)
        if len(values) < self.least:
            return False
        middle = median(values)
        spread = 1.4826 * median(abs(v - middle) for v in values)
        return value - middle > self.factor * max(spread, relative_floor * abs(middle), floor)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON; floats survive it exactly."""
        return {
            "losses": list(self.losses), "norms": list(self.norms), "in_a_row": self.in_a_row, "skipped": self.skipped,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.losses.clear()
        self.norms.clear()
        self.losses.extend(state["losses"])
        self.norms.extend(state["norms"])
        self.in_a_row, self.skipped = int(state["in_a_row"]), int(state["skipped"])
