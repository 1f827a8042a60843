"""Weight gradients that can wait: the W of zero-bubble schedules (report section 3.2.1).

A linear layer's backward makes two products: the input gradient, which the stage before is waiting for, and the weight
gradient, which nobody needs before the optimizer step. A layer hands the second to a queue. It runs at once, unless the
schedule has asked it to wait; then the schedule takes the work and runs it where it would otherwise idle.
"""

from __future__ import annotations

from collections.abc import Callable

Work = Callable[[], None]


class WeightGradients:
    """One queue for all layers of a rank."""

    def __init__(self) -> None:
        self.waiting = False
        self._work: list[Work] = []

    def add(self, work: Work) -> None:
        """Called by backward functions, in order."""
        if self.waiting:
            self._work.append(work)
        else:
            work()

    def take(self) -> list[Work]:
        """What has waited since the last call; the caller runs it."""
        work, self._work = self._work, []
        return work
