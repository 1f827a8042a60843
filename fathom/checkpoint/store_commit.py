"""How many ranks write one checkpoint that is there whole or not at all. They talk through the folder they write to.

    each rank   writes its part into .step-N.X.tmp, flushes it to the disk, then names it: rank-R.json. If it cannot, it
                takes its files away and leaves rank-R.failed instead
    rank 0      waits for one of the two from everybody. All parts there: writes index.json, renames the folder to
                step-N. Otherwise leaves `failed` with the reasons, waits until the others have read it, removes all
    the others  wait until the folder is gone (renamed: saved) or `failed` appears (they raise the same reasons)

Why files and not a process group: this runs in a thread beside training. Collectives of two threads on one group mix
up, on a group of their own they would still hang when a rank is killed; files need no partner that lives, outlast it,
and the folder has to be shared by all ranks anyway. A full disk still takes the empty file that says so.

A kill at any moment leaves step-N there with all it needs, or a .tmp folder that nobody reads. X is drawn by rank 0 for
each run and counts saves, so that neither leftovers nor a rank that comes far too late can mix with a later attempt.
A rank is given up when nothing in the folder has changed for `patience` seconds; how long writing takes does not count.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fathom.checkpoint.store_format import data_name, fsync, part_name, read_index
from fathom.runtime import UserError

FAILED = "failed"
FAREWELL = 10.0  # seconds in which the others read why it failed
ALIVE = "whether it is alive, and whether all hosts share this folder"


def failed_name(rank: int) -> str:
    """File that says that a rank cannot write its part."""
    return f"rank-{rank:05d}.failed"


def reason(error: Exception) -> str:
    """What went wrong and what to do, in half a sentence."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    if isinstance(cause, OSError):
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "; free some space or choose another folder" if full else ""
        return (cause.strerror or str(cause)) + remedy
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Attempt:
    """One checkpoint being written, seen from one rank."""

    target: Path
    name: str  # the same on all ranks, never used twice
    rank: int
    size: int
    patience: float

    @property
    def folder(self) -> Path:
        """Where it is written before it is renamed."""
        return self.target.with_name(f".{self.target.name}.{self.name}.tmp")

    def run(self, write: Callable[[], None], finish: Callable[[], None]) -> None:
        """`write` this rank's part; once all have, rank 0 does `finish` and renames the folder. One UserError for all
        ranks if it cannot be done."""
        error = self._write(write)
        try:
            if self.rank == 0:
                self._commit(error, finish)
            else:
                self._learn(error)
        except UserError as told:
            raise told from error

    def _write(self, write: Callable[[], None]) -> Exception | None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write()
        except Exception as error:  # a mistake in the program, too: the others must not wait for this rank
            self._remove_own()
            if self.rank:
                self._note(failed_name(self.rank), reason(error))
            return error
        return None

    def _commit(self, error: Exception | None, finish: Callable[[], None]) -> None:
        """Rank 0: see to it that all of the parts become a checkpoint, or none."""
        problems = self._gather({} if error is None else {0: reason(error)})
        if not problems:
            try:
                return self._publish(finish)
            except Exception as unfinished:
                problems = {0: reason(unfinished)}
        told = [f"rank {r}: {text}" if self.size > 1 else text for r, text in sorted(problems.items())]
        message = f"cannot write checkpoint {self.target}: {', '.join(told[:3])} (the checkpoints before it are whole)"
        self._note(FAILED, message)
        end = time.monotonic() + FAREWELL
        while time.monotonic() < end and self._heard(self._listing()) - {0}:  # who has read it takes its files away
            time.sleep(0.02)
        shutil.rmtree(self.folder, ignore_errors=True)
        raise UserError(message)

    def _publish(self, finish: Callable[[], None]) -> None:
        if self.target.exists():
            if read_index(self.target) is not None:
                raise UserError(f"{self.target} exists already; remove it or choose another folder")
            shutil.rmtree(self.target)  # without some of its files it is no checkpoint
        finish()
        _fsync_folder(self.folder)
        self.folder.rename(self.target)
        _fsync_folder(self.target.parent)

    def _gather(self, problems: dict[int, str]) -> dict[int, str]:
        """Wait until each rank has written its part or failed; why, of those that failed. `problems`: known already."""
        wait = _Wait(self.patience)
        while True:
            seen = self._listing()
            problems |= {r: self._read(failed_name(r)) for r in range(1, self.size) if failed_name(r) in seen}
            silent = set(range(self.size)) - self._heard(seen) - problems.keys()
            if not silent:
                return problems
            if not wait.more(seen):
                late = f"wrote nothing for {self.patience:g} s; see {ALIVE}"
                return problems | dict.fromkeys(silent, late)

    def _heard(self, seen: dict[str, int]) -> set[int]:
        """Ranks that have said that their part is there, or that it will not be."""
        return {r for r in range(self.size) if part_name(r) in seen or failed_name(r) in seen}

    def _learn(self, error: Exception | None) -> None:
        """The other ranks: wait for what rank 0 makes of it."""
        wait = _Wait(self.patience)
        why = "rank 0 gave it up; see what it printed" if error is None else f"rank {self.rank}: {reason(error)}"
        while self.folder.exists():
            seen = self._listing()
            if FAILED in seen:
                message = self._read(FAILED)
                self._remove_own()
                raise UserError(message)
            if not wait.more(seen):
                self._remove_own()
                with contextlib.suppress(OSError):
                    self.folder.rmdir()  # if rank 0 was done with it, this rank made it anew
                why = f"rank 0 did not complete it within {self.patience:g} s; see {ALIVE}"
                break
        index = read_index(self.target)
        if index is None or index.save != self.name:
            raise UserError(f"cannot write checkpoint {self.target}: {why}")

    def _listing(self) -> dict[str, int]:
        """Files in the folder and their sizes; any of them may vanish at any moment."""
        sizes = {}
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    sizes[entry.name] = entry.stat().st_size
        return sizes

    def _remove_own(self) -> None:
        for name in (data_name(self.rank), part_name(self.rank), failed_name(self.rank)):
            with contextlib.suppress(OSError):
                (self.folder / name).unlink()

    def _note(self, name: str, text: str) -> None:
        """Leave a note; on a full disk an empty one, for that it is there says enough."""
        path, new = self.folder / name, self.folder / f"{name}.new"
        with contextlib.suppress(OSError):
            new.touch()
            with contextlib.suppress(OSError):
                new.write_text(text, encoding="utf-8")
            new.rename(path)

    def _read(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / name).read_text(encoding="utf-8") or "failed without a word; is the disk full?"
        return "failed"


def _fsync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system lets a folder be opened
        fsync(folder)


class _Wait:
    """Waiting for changes: at first often, later twice a second."""

    def __init__(self, patience: float) -> None:
        self._patience, self._seen, self._pause = patience, {"": -1}, 0.005
        self._changed = time.monotonic()

    def more(self, seen: dict[str, int]) -> bool:
        """Sleep a little; False when nothing has changed for too long."""
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._changed = seen, now
        time.sleep(self._pause)
        self._pause = min(1.5 * self._pause, 0.5)
        return now - self._changed < self._patience
