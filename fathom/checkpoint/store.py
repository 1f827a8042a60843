"""Checkpoints of a training run on any number of ranks: asynchronous, whole or not there, readable by any other layout.

    store = Store(out / "checkpoints", group, keep=2, best="heldout")
    store.save(step, pieces, {"tokens": n}, metric=2.31)     # returns once the values are copied; a thread writes
    extra = store.load(step, pieces)                         # the pieces of this layout, whatever layout wrote them

store_format.py says what the files are, store_commit.py how the ranks agree, store_reader.py how one reads.

This is not torch.distributed.checkpoint (2.13), which was the first choice. What it would give us is the overlap of
boxes, in one dimension a line of min and max. What it would bring along: its metadata is a pickle, and loading one runs
code of whoever wrote it; plans travel as pickles, too, in collectives of the background thread, on a process group of
their own that needs every rank alive; nothing has a checksum. Its safetensors writer, when several ranks save, leaves
no index. A planner, a storage writer and a storage reader of our own would cure that, and be longer than these files.

Memory: one staging buffer of the size of this rank's state (pinned if that lies on an accelerator), kept between saves.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import secrets
import shutil
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.checkpoint.safetensors_io import DTYPE_NAMES
from fathom.checkpoint.store_commit import Attempt
from fathom.checkpoint.store_format import Index, make_index, read_index, write_index, write_part
from fathom.checkpoint.store_reader import Reader, read_whole
from fathom.parallel.group import Group
from fathom.parallel.piece import Piece
from fathom.runtime import UserError, require_disk, write_json

__all__ = ["Store", "read_whole"]

ALIGNMENT = 64  # bytes, of a tensor in the staging buffer


class Store:
    """The checkpoints in `folder`, for the ranks of `group` (None: a single process). All ranks call `save` and `load`
    alike. The newest `keep` stay, and the one with the lowest metric, which is called `best`."""

    def __init__(
        self, folder: Path, group: Group | None, *, keep: int, best: str | None = None, patience: float = 300.0
    ) -> None:
        if keep < 1:
            raise UserError(f"{keep} checkpoints to keep; at least 1 is needed to resume from")
        self.folder, self.keep, self.metric, self.patience = folder, keep, best, patience
        self._group = group if group is not None and group.size > 1 else None
        self._rank, self._size = (0, 1) if self._group is None else (self._group.rank, self._group.size)
        self._run = 0  # drawn at the first save
        self._saves = 0
        self._held: int | None = None  # the step of which both the ranks and the folder hold the state
        self._staging = torch.empty(0, dtype=torch.uint8)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    # ---- saving ------------------------------------------------------------------------------------------------------

    def save(
        self, step: int, pieces: list[Piece], extra: dict[str, Any], *, metric: float | None = None, wait: bool = False
    ) -> None:
        """Begin to write a checkpoint of the values as they are now; `wait`: until it is there.

        A step that was just saved or loaded is there already and not written again. `extra` (anything JSON can say) and
        `metric` are rank 0's. Raises the UserError of the save before, if that failed; nothing is saved then.
        """
        assert metric is None or self.metric is not None, "a metric needs a name: Store(best=...)"
        self.wait()
        if step == self._held:
            return
        extra = json.loads(json.dumps(extra))  # the caller may change it later
        metrics = {self.metric: float(metric)} if self.metric and metric is not None and math.isfinite(metric) else {}
        attempt = self._attempt(step)
        staged = self._stage(pieces)
        self._thread = threading.Thread(
            target=self._write, args=(step, attempt, staged, metrics, extra), name="checkpoint", daemon=True
        )
        self._thread.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until the last save is on the disk, whole; to be called before the process ends. Raises what it met."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _attempt(self, step: int) -> Attempt:
        if not self._run:
            drawn = 1 + secrets.randbelow(2**23)  # small enough for any dtype
            if self._group is not None:
                drawn = int(self._group.sum(torch.tensor([drawn * (self._rank == 0)], device=self._group.device)))
            self._run = drawn
        self._saves += 1
        return Attempt(self._path(step), f"{self._run:06x}-{self._saves}", self._rank, self._size, self.patience)

    def _stage(self, pieces: list[Piece]) -> list[Piece]:
        """Copies of the pieces in the staging buffer."""
        unknown = {piece.data.dtype for piece in pieces} - DTYPE_NAMES.keys()
        assert not unknown, f"no file format for {unknown}"
        names = {(piece.name, piece.start) for piece in pieces if piece.data.numel()}
        assert len(names) == sum(1 for piece in pieces if piece.data.numel()), "a piece is given twice"
        places, total = [], 0
        for piece in pieces:
            places.append(total)
            total += -(-piece.data.nbytes // ALIGNMENT) * ALIGNMENT
        moves = any(piece.data.device.type != "cpu" for piece in pieces)
        if len(self._staging) < total:
            self._staging = torch.empty(0, dtype=torch.uint8)  # give back the old one first
            self._staging = torch.empty(total, dtype=torch.uint8, pin_memory=moves)
        staged = []
        for piece, place in zip(pieces, places, strict=True):
            copy: Tensor = self._staging[place : place + piece.data.nbytes].view(piece.data.dtype)
            copy.copy_(piece.data.detach(), non_blocking=moves)
            staged.append(Piece(piece.name, piece.whole, piece.start, copy))
        if moves:
            torch.accelerator.synchronize()
        return staged

    # ---- the thread's side -------------------------------------------------------------------------------------------

    def _write(
        self, step: int, attempt: Attempt, pieces: list[Piece], metrics: dict[str, float], extra: dict[str, Any]
    ) -> None:
        def write() -> None:
            require_disk(self.folder, sum(piece.data.nbytes for piece in pieces))
            write_part(attempt.folder, self._rank, pieces)

        def finish() -> None:
            index = make_index(attempt.folder, self._size, step=step, save=attempt.name, metric=metrics, extra=extra)
            write_index(attempt.folder, index)

        try:
            if self._rank == 0:
                self._clean(attempt)
            attempt.run(write, finish)
            self._held = step
            if self._rank == 0:
                self._retain()
        except Exception as error:  # raised again by the next save() or wait()
            self._error = error

    def _clean(self, attempt: Attempt) -> None:
        """Remove what killed processes left."""
        for leftover in self.folder.glob(".step-*.tmp"):
            if leftover != attempt.folder:
                shutil.rmtree(leftover, ignore_errors=True)

    def _retain(self) -> None:
        """Mark the best checkpoint and remove old ones. Damaged ones do not count, and are left to their owner."""
        sound = {step: index for step, index in self._complete().items() if index is not None}
        best = _lowest(sound, self.metric)
        if best is not None and self.metric is not None:
            value = sound[best].metric[self.metric]
            mark = {"checkpoint": self._path(best).name, "step": best, "metric": self.metric, "value": value}
            with contextlib.suppress(UserError):  # the mark is for people; `best` looks into the indices
                write_json(self.folder / "best.json", mark)
        for step in list(sound)[: -self.keep]:
            if step != best:
                gone = self.folder / f".{self._path(step).name}.old.tmp"  # out of the way at once, then file by file
                with contextlib.suppress(OSError):
                    self._path(step).rename(gone)
                    shutil.rmtree(gone)

    # ---- finding and loading -----------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first. One that has all its files but damaged is among them: `load`
        says what is wrong with it, and it is for a person to remove it."""
        return list(self._complete())

    def latest(self) -> int | None:
        """The newest complete checkpoint."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The checkpoint with the lowest metric, the oldest of equals; None if none has one."""
        return _lowest(self._complete(), self.metric)

    def _complete(self) -> dict[int, Index | None]:
        """Complete checkpoints in order of steps; None: damaged."""
        found: dict[int, Index | None] = {}
        for path in self.folder.glob("step-*"):
            if not re.fullmatch(r"step-\d{8,}", path.name):
                continue
            step = int(path.name[5:])
            try:
                index = read_index(path)
                if index is not None:
                    found[step] = index
            except UserError:
                found[step] = None
        return dict(sorted(found.items()))

    def load(self, step: int, pieces: list[Piece]) -> dict[str, Any]:
        """Fill each piece's data in place; returns what was saved as `extra`.

        A UserError (damaged file, another model) may leave pieces filled halfway.
        """
        if self._group is not None and not self._group.agree(step):
            raise UserError(f"the ranks would load different checkpoints from {self.folder}; do all hosts share it?")
        path = self._path(step)
        if not path.exists():
            known = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{path} does not exist; complete checkpoints there: {known}")
        with Reader(path) as reader, torch.no_grad():
            reader.check(pieces)
            for piece in pieces:
                reader.fill(piece)
            self._held = step
            return reader.index.extra

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


def _lowest(indices: dict[int, Index | None] | dict[int, Index], metric: str | None) -> int | None:
    values = [(i.metric[metric], step) for step, i in indices.items() if i is not None and metric in i.metric]
    return min(values)[1] if values else None
