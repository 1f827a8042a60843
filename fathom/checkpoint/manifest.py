"""`.fathom-convert.json` in the destination: what is being made from what, and which files are finished.

It holds no time and no machine, so an interrupted and resumed conversion ends byte-equal to an undisturbed one, this
file included. The source is identified by file names, sizes, hashes of headers and of a sample of the values:
cheap, and any other tensor, shape or place shows, and other weights of the same shapes too.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.checkpoint.layout import INDEX
from fathom.checkpoint.plan import Options
from fathom.checkpoint.reader import Checkpoint
from fathom.runtime import UserError, read_json, write_json

NAME = ".fathom-convert.json"
PIECES, PIECE = 64, 4096


@dataclass
class Manifest:
    """The finished files of one conversion into `folder`."""

    folder: Path
    identity: dict[str, Any]
    sizes: dict[str, int]
    done: list[str]
    replaces: list[Path]  # files of another checkpoint that `start` removes
    complete: bool = False  # the whole conversion, with its verification if one was asked for

    def start(self) -> None:
        """First write to the folder: clear what is in the way, record what is being made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in [*self.replaces, *self.folder.glob(".*.tmp")]:  # temporary files of a run that was killed
            path.unlink(missing_ok=True)
        self._save()

    def finish(self, file: str) -> None:
        """Record a finished file."""
        self.done.append(file)
        self._save()

    def close(self) -> None:
        """Record that nothing is left to do."""
        self.complete = True
        self._save()

    def _save(self) -> None:
        state = {"files": self.sizes, "done": self.done, "complete": self.complete}
        write_json(self.folder / NAME, self.identity | state)


def identity_of(checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
    """Source and options as the manifest records them."""
    files = {h.path.name: [h.size, h.digest, sample(h.path, h.size)] for h in checkpoint.found.headers}
    digest = hashlib.sha256(checkpoint.config_path.read_bytes()).hexdigest()
    return {"format": 2, "options": dataclasses.asdict(options), "source": {"config": digest, "files": files}}


def sample(path: Path, size: int) -> str:
    """A hash of PIECES pieces spread evenly over a file: all of a small one, 256 KiB of a large one."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in range(PIECES):
            file.seek(max(size - PIECE, 0) * piece // (PIECES - 1))
            digest.update(file.read(PIECE))
    return digest.hexdigest()


def look(folder: Path, identity: dict[str, Any], sizes: dict[str, int], overwrite: bool) -> Manifest:
    """Whether to start afresh or to go on where the same conversion stopped. Writes nothing."""
    path = folder / NAME
    if path.exists():
        data = read_json(path)
        if isinstance(data, dict) and {k: data.get(k) for k in (*identity, "files")} == identity | {"files": sizes}:
            files = [(file, folder / file) for file in data.get("done", [])]
            whole = [file for file, p in files if file in sizes and p.is_file() and p.stat().st_size == sizes[file]]
            if not (overwrite and data.get("complete")):  # asked to overwrite what is finished: all of it again
                return Manifest(folder, identity, sizes, whole, [])
        elif not overwrite:
            raise UserError(
                f"{folder} holds another conversion (other source or options); choose another folder or --overwrite"
            )
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"{folder} is not empty; choose another folder, or --overwrite to replace the checkpoint in it")
    old = [*folder.glob("*.safetensors"), folder / INDEX, folder / "config.json", folder / "demo_config.json", path]
    return Manifest(folder, identity, sizes, [], [p for p in old if p.exists()])
