"""Make the next batches while this one trains.

Batches are pure functions of the step, so threads need no order among themselves: each makes one whole batch, and the
caller gets them by step. Threads and not processes: a batch is copied out of memory-mapped files by numpy, there is
nothing to pickle, and an error keeps its traceback. Asking for a step that was not foreseen (a resumed run, an
evaluation) drops what was made ahead and starts from there.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

from fathom.runtime import UserError
from fathom.text.batch import Batch


class Batches(Protocol):
    """Any data set."""

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step`; called from several threads at once."""


class Prefetched:
    """The same batches as `data`, made up to `ahead` steps early by `workers` threads; 0 workers: when asked."""

    def __init__(self, data: Batches, workers: int = 2, ahead: int = 4) -> None:
        if workers < 0 or ahead < 1:
            raise UserError(f"{workers} workers, {ahead} batches ahead: give 0 or more workers and at least 1 batch")
        self.data, self.ahead = data, ahead
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batches") if workers else None
        self._made: dict[int, Future[Batch]] = {}

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step`; an error of the thread that made it is raised here."""
        if self._pool is None:
            return self.data.batch(step)
        seek = step not in self._made
        for other in [other for other in self._made if seek or other < step]:
            self._made.pop(other).cancel()
        for wanted in range(step, step + self.ahead + 1):
            if wanted not in self._made:
                self._made[wanted] = self._pool.submit(self.data.batch, wanted)
        return self._made.pop(step).result()

    def close(self) -> None:
        """Stop the threads; what was made ahead is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._made.clear()

    def __enter__(self) -> Prefetched:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
