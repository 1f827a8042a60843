"""Ranks that die, or find the disk full, at every single moment of a save; what is left after each is reported.

    python tests/checkpoint/store_lives.py FOLDER RANKS:VICTIM:kill|full|limit ...

With a complete checkpoint of step 1 in a fresh folder, RANKS processes save step 2 and keep only one. The VICTIM dies
before the k-th thing it does to files (kill; the others are then told that nothing more will come), or every write
fails from there on (full), or no file may be larger than 3000 * k bytes (limit). One line of JSON for each k, until the
victim comes through unharmed. `left` is what a reader finds afterwards, and `after` what a next save leaves.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from store_worlds import Quiet, blank, differing, pieces, quiet_stores, save_all, state, zero_cuts

from fathom.checkpoint import store_commit
from fathom.checkpoint.store import Store
from fathom.parallel.piece import Piece
from fathom.runtime import UserError

WRITES = {"write", "fsync"}
FEW = ("model.head", "tokens")  # of the tensors: each is one more moment
BESIDE = 12  # lives at a time: most of the time is spent in waiting


class Fate:
    """Counts what this process does to files in `folder`, until it is time."""

    def __init__(self, folder: Path, left: int, kind: str) -> None:
        self.folder, self.left, self.kind, self.struck = str(folder), left, kind, False
        pwrite = os.pwrite

        def half_written(descriptor: int, data: memoryview, offset: int) -> int:
            if self.left == 1 and self.kind == "kill":
                pwrite(descriptor, data[: len(data) // 2], offset)
            self.event("write")
            return pwrite(descriptor, data, offset)

        def flushed(descriptor: int) -> None:
            self.event("fsync")  # and no more: a killed process loses nothing that the kernel has

        os.pwrite, os.fsync = half_written, flushed  # type: ignore[assignment]
        sys.addaudithook(self.audit)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod") or (
            event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if changes and (not isinstance(args[0], str | Path) or self.folder in str(args[0]) or args[0] in _OWN):
            self.event(event)

    def event(self, what: str) -> None:
        self.left -= 1
        if self.left <= 0 and (self.kind == "kill" or what in WRITES):
            self.struck = True
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# names relative to a folder, as shutil.rmtree gives them
_OWN = {f"rank-{r:05d}{end}" for r in range(2) for end in (".safetensors", ".json", ".failed")} | {"index.json"}


def child(work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return pid


def dead(folder: Path) -> Path:
    """The file that says that the victim is."""
    return folder.parent / "dead"


def one_rank(folder: Path, rank: int, size: int, step: int, k: int, kind: str) -> int:
    """0: saved, and nothing struck. 10: saved all the same. 2: a UserError."""
    group = Quiet(rank, size, None, torch.device("cpu"))
    store = Store(folder, group, keep=1, patience=20.0)
    if kind == "kill":
        store_commit._Wait.more = lambda wait, seen: time.sleep(0.01) or not dead(folder).exists()  # type: ignore[method-assign,func-returns-value]
    fate = Fate(folder, k, kind) if k and kind != "limit" else None
    if k and kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000 * k, 3000 * k))
    try:
        store.save(step, parts(size, step)[rank], {"step": step}, wait=True)
    except UserError as error:
        (folder.parent / f"error{rank}").write_text(str(error))
        return 2
    return 10 if fate is not None and fate.struck else 0


def parts(size: int, step: int) -> list[list[Piece]]:
    """Each rank's share of a few tensors."""
    return [pieces(state(step), [cut for cut in cuts if cut[0] in FEW]) for cuts in zero_cuts(size, 1)]


def world(folder: Path, size: int, step: int, victim: int, k: int, kind: str) -> dict[int, int]:
    """All ranks save `step`; pid -> rank."""
    hurt = {rank: k if rank == victim else 0 for rank in range(size)}
    return {child(partial(one_rank, folder, rank, size, step, hurt[rank], kind)): rank for rank in range(size)}


def ends(folder: Path, pids: dict[int, int], victim: int = -1) -> dict[int, int]:
    """rank -> exit code; the victim's end is waited for first."""
    codes = {}
    for pid, rank in sorted(pids.items(), key=lambda item: item[1] != victim):
        codes[rank] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if rank == victim:
            dead(folder).touch()
    return codes


def sound(folder: Path) -> list[int]:
    """Steps of the complete checkpoints; all must hold exactly what was saved."""
    store, whole = Store(folder, None, keep=9), [cut for cut in zero_cuts(1, 0)[0] if cut[0] in FEW]
    for step in store.steps():
        target = blank(whole)
        assert store.load(step, target) == {"step": step} and not differing(target, state(step)), (folder, step)
    return store.steps()


def lives(base: Path, size: int, victim: int, kind: str) -> None:
    """All lives of one kind."""
    save_all(quiet_stores(base / "first", size), 1, parts(size, 1))
    for first in itertools.count(1, BESIDE):
        folders = {k: base / f"{k}" / "checkpoints" for k in range(first, first + BESIDE)}
        for folder in folders.values():
            shutil.copytree(base / "first", folder)
        worlds = {k: world(folder, size, 2, victim, k, kind) for k, folder in folders.items()}
        records: dict[int, dict[str, Any]] = {}
        for k, folder in folders.items():
            codes = ends(folder, worlds[k], victim)
            errors = [path.read_text() for path in sorted(folder.parent.glob("error*"))]
            records[k] = {"case": base.name, "k": k, "codes": [codes[r] for r in range(size)], "errors": errors}
            records[k] |= {"left": sound(folder), "names": sorted(path.name for path in folder.iterdir())}
            save_all(quiet_stores(folder, size, keep=1), 3, parts(size, 3))
            assert sound(folder)[-1] == 3
            print(json.dumps(records[k] | {"after": sorted(path.name for path in folder.iterdir())}), flush=True)
            if records[k]["codes"][victim] == 0:
                return


def main(base: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    for case in cases:
        size, victim, kind = case.split(":")
        lives(base / case, int(size), int(victim), kind)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
