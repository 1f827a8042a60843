"""Writing the result: tensors are made when their turn comes, a layer at a time, and the folder appears whole.

Everything is written into `.NAME.*.part` beside the destination and renamed at the end, config.json last. What a killed
run left there is removed by the next one to the same destination (a run that is alive holds a lock on its folder).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fathom.checkpoint.layout import INDEX
from fathom.checkpoint.names import TensorSpec, expected, layer_prefix
from fathom.checkpoint.recipes import Recipe, StoredWeight, recipe
from fathom.checkpoint.writer import MAX_SHARD_BYTES, SaveDtype, index_of, plan_shards, write_file
from fathom.config import ModelConfig
from fathom.runtime import UserError, progress, require_disk, write_json

Make = Callable[[int | str], dict[str, Tensor]]  # a layer's number, or the name of a tensor of the whole model


class OneAtATime:
    """Remembers what was made last: all chunks of all tensors of a layer come from one call."""

    def __init__(self, make: Make) -> None:
        self._make, self._key, self._made = make, None, {}  # type: tuple[Make, int | str | None, dict[str, Tensor]]

    def get(self, spec: TensorSpec) -> Tensor:
        """The values of one tensor."""
        key = spec.layer if spec.layer is not None else spec.name
        if key != self._key:
            self._made = {}
            self._made = self._make(key)
            self._key = key
        name = spec.name if spec.layer is None else spec.name.removeprefix(layer_prefix(spec.layer))
        values = self._made[name]
        assert tuple(values.shape) == spec.shape, f"{spec.name}: {tuple(values.shape)}, not {spec.shape}"
        return values


@dataclass(frozen=True, slots=True)
class Computed:
    """A checkpoint.sources.Source whose values are computed when they are asked for."""

    spec: TensorSpec
    maker: OneAtATime

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    def rows(self, start: int, stop: int) -> Tensor:
        return self.maker.get(self.spec)[start:stop]


def write_weights(config: ModelConfig, make: Make, folder: Path, to: SaveDtype) -> None:
    """All tensors that `config` promises, without the MTP layers' copies of embedding and head; then config.json."""
    maker = OneAtATime(make)
    recipes: list[Recipe] = [
        recipe(StoredWeight(spec, Computed(spec, maker)), to, config.quantization)
        for spec in expected(config).values()
        if spec.copy_of is None
    ]
    shards = plan_shards(recipes, MAX_SHARD_BYTES)
    total = sum(r.nbytes for r in recipes)
    require_disk(folder, total)
    with progress("upcycling", total) as bar:
        for file, shard in shards:
            write_file(folder / file, shard, bar.advance)
    if len(shards) > 1:
        write_json(folder / INDEX, index_of(shards))
    write_json(folder / "config.json", config.to_dict())


@contextmanager
def whole_folder(destination: Path) -> Iterator[Path]:
    """A new folder that becomes `destination` if all goes well and disappears if not."""
    if destination.exists() or destination.is_symlink():
        raise UserError(f"{destination} exists already; choose a new folder")
    parent = destination.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(parent, destination.name)
        part = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".part", dir=parent))
    except OSError as error:
        raise UserError(f"cannot write into {parent}: {error.strerror}; choose another folder") from None
    descriptor = os.open(part, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield part
        part.chmod(0o755)
        try:
            part.rename(destination)
        except OSError as error:
            raise UserError(f"cannot rename {part} to {destination}: {error.strerror}; choose another folder") from None
    finally:
        os.close(descriptor)
        shutil.rmtree(part, ignore_errors=True)


def _remove_left_over(parent: Path, name: str) -> None:
    for part in parent.glob(f".{name}.*.part"):
        descriptor = os.open(part, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part, ignore_errors=True)
        except OSError:
            pass  # it is being written
        finally:
            os.close(descriptor)
