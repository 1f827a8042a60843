"""Converting checkpoints: `fathom convert SRC DST --to bf16|fp8|demo|hf`.

    headers -> check -> plan -> disk space -> for each output file: stream it, record it -> JSON and tokenizer files

Memory holds a few chunks of rows, whatever the size of tensors, files and model. Files appear whole; run the same
command again after an interruption and it goes on with the first unfinished file. The source is only read.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from fathom.checkpoint.manifest import Manifest, identity_of, look
from fathom.checkpoint.plan import Options, Plan, make_plan
from fathom.checkpoint.reader import Checkpoint, open_checkpoint
from fathom.checkpoint.safetensors_io import FileReader, read_header
from fathom.checkpoint.writer import copy_side_files, write_file
from fathom.runtime import UserError, locked, progress, require_disk, write_json

QUIET_SECONDS = 30.0


@dataclass(frozen=True)
class Result:
    """What a conversion did."""

    files: int
    bytes: int  # in all weight files
    written: int  # by this run; less after a resume
    seconds: float
    verified: bool
    notes: list[str]

    @property
    def rate(self) -> float:
        """Bytes per second written by this run."""
        return self.written / max(self.seconds, 1e-9)


@torch.no_grad()
def convert(
    source: Path | str,
    destination: Path | str,
    options: Options,
    *,
    verify: bool = False,
    overwrite: bool = False,
    config_file: Path | None = None,
) -> Result:
    """Convert the checkpoint in `source` into the folder `destination`; resumes by itself."""
    source, destination, began = Path(source), Path(destination), time.monotonic()
    _check_apart(source, destination)
    with open_checkpoint(source, config_file) as checkpoint:
        plan = make_plan(checkpoint, options)
        with locked(destination, "another conversion"):
            manifest = look(destination, identity_of(checkpoint, options), plan.sizes(), overwrite)
            written = _write_all(checkpoint, plan, manifest)
            if verify:
                _verify_all(plan, destination)
            manifest.close()
    total = sum(plan.sizes().values())
    return Result(len(plan.shards), total, written, time.monotonic() - began, verify, plan.notes)


def _check_apart(source: Path, destination: Path) -> None:
    a, b = source.resolve(), destination.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise UserError(f"the destination {destination} and the source {source} overlap; choose a folder outside")
    if destination.exists() and not destination.is_dir():
        raise UserError(f"the destination {destination} is a file; give a folder")


def _write_all(checkpoint: Checkpoint, plan: Plan, manifest: Manifest) -> int:
    """Write what is not there yet; returns the bytes of weight files written."""
    sizes, destination = manifest.sizes, manifest.folder
    todo = [(file, recipes) for file, recipes in plan.shards if file not in manifest.done]
    needed = sum(sizes[file] for file, _ in todo)
    require_disk(destination, needed - sum(p.stat().st_size for p in manifest.replaces))
    manifest.start()
    with _telling("converting", sum(sizes.values()), done=sum(sizes.values()) - needed) as advance:
        for file, recipes in todo:
            write_file(destination / file, recipes, advance)
            manifest.finish(file)
    copy_side_files(checkpoint.path, destination)
    for name, content in plan.json_files.items():
        write_json(destination / name, content)
    return needed


def _verify_all(plan: Plan, destination: Path) -> None:
    """Read every output tensor back and compare it with what the source gives now. A file that differs is removed."""

    def refuse(file: str, what: str) -> NoReturn:
        (destination / file).unlink()
        raise UserError(f"{destination / file} {what}; it was removed: convert again to write it anew")

    with FileReader() as reader, _telling("verifying", sum(plan.sizes().values())) as advance:
        for file, recipes in plan.shards:
            try:
                written = read_header(destination / file).tensors
            except UserError:
                refuse(file, "has a damaged header")
            wanted = {e.name: (e.dtype, e.shape) for r in recipes for e in r.entries}
            if {n: (t.dtype, t.shape) for n, t in written.items()} != wanted:
                refuse(file, "does not hold the tensors it should")
            for r in recipes:
                for name, start, rows in r.run():
                    there = reader.rows(written[name], start, start + len(rows))
                    if not torch.equal(there.view(torch.uint8), rows.contiguous().view(torch.uint8)):
                        refuse(file, f"differs from the source in {name}")
                    advance(rows.nbytes)


@contextmanager
def _telling(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; elsewhere a line on standard error every half minute."""
    began, state = time.monotonic(), {"bytes": 0, "told": time.monotonic()}
    quiet = sys.stderr.isatty()
    with progress(what, total) as bar:
        bar.advance(done)

        def advance(count: int) -> None:
            bar.advance(count)
            state["bytes"] += count
            now = time.monotonic()
            if not quiet and now - state["told"] > QUIET_SECONDS:
                state["told"] = now
                rate = state["bytes"] / (now - began) / 1e6
                at = (done + state["bytes"]) / 1e9
                print(f"{what}: {at:.1f} of {total / 1e9:.1f} GB, {rate:.0f} MB/s", file=sys.stderr, flush=True)

        yield advance
