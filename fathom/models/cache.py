"""Where named models lie once they are made, and the lock under which that happens.

    downloads/   wheels as they came; kept, so that a build can be repeated without network
    models/      NAME-FINGERPRINT/ a finished model, never changed again; .NAME-*.part what a killed build left;
                 .NAME.lock held while a model is fetched, built or removed (the kernel drops it with the process)

The folder of the two is $FATHOM_CACHE, or fathom/ in $XDG_CACHE_HOME or ~/.cache.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fathom.runtime import UserError

VARIABLE = "FATHOM_CACHE"


@dataclass(frozen=True)
class Cache:
    """The two folders; they need not exist."""

    root: Path

    @classmethod
    def of_user(cls) -> Cache:
        """As the environment has it."""
        if chosen := os.environ.get(VARIABLE):
            return cls(Path(chosen).expanduser().absolute())
        base = os.environ.get("XDG_CACHE_HOME", "")
        try:
            root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
        except RuntimeError:
            raise UserError(f"there is no home folder to keep models in; set {VARIABLE} to a folder") from None
        return cls(root / "fathom")

    @property
    def downloads(self) -> Path:
        return self.root / "downloads"

    @property
    def models(self) -> Path:
        return self.root / "models"

    def builds(self, name: str) -> list[Path]:
        """The finished folders of a model, of whichever recipe."""
        return sorted(path for path in self.models.glob(f"{name}-*") if path.is_dir())

    def parts(self, name: str) -> list[Path]:
        """What interrupted builds left."""
        return sorted(self.models.glob(f".{name}-*.part"))

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Alone with one model, in this process and all others."""
        try:
            for folder in (self.models, self.downloads):
                folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.models / f".{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                print(f"fathom: another process is at work on {name}; waiting for it", file=sys.stderr, flush=True)
                lock.acquire()
        except OSError as error:
            raise UserError(
                f"cannot keep models in {self.root}: {error.strerror}; set {VARIABLE} to a folder that you may write to"
            ) from None
        try:
            yield
        finally:
            lock.release()


def remove_folder(folder: Path) -> None:
    """First out of its name, then away: a folder that is half removed is no model."""
    doomed = folder.with_name(f".{folder.name}.part") if not folder.name.startswith(".") else folder
    if doomed != folder:
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
    shutil.rmtree(doomed)


def folder_bytes(folder: Path) -> int:
    """What the files of a folder take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def in_megabytes(nbytes: int) -> str:
    """For people."""
    return f"{nbytes / 1e6:.0f} MB"
