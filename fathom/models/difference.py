"""What training changed of a checkpoint, as one small file: `overlay` lays it over the same base again.

A weight is in it if the base has none of that name, or if any of its values is another; as FP8 blocks with scales where
the table has them so: a quarter of FP32, to be shipped beside code. MTP's copies of embedding and head are no weights
of their own and stay out.
"""

from __future__ import annotations

from pathlib import Path

import torch

from fathom.checkpoint.reader import open_checkpoint
from fathom.checkpoint.recipes import StoredWeight, Target, recipe
from fathom.checkpoint.writer import write_file
from fathom.runtime import UserError, progress


def difference(trained: Path, base: Path, file: Path, *, to: Target = "fp8") -> tuple[int, int]:
    """Write the weights of `trained` that `base` has not; returns how many, and the bytes of the file."""
    if file.exists():
        raise UserError(f"{file} is there already; remove it or choose another name")
    with open_checkpoint(trained) as new, open_checkpoint(base) as old:
        own = {name: weight for name, weight in new.weights.items() if weight.spec.copy_of is None}
        changed = []
        with progress("compare", len(own), unit="weights") as bar:
            for name, weight in own.items():
                before = old.weights.get(name)
                if before is not None and before.weight.shape != weight.weight.shape:
                    raise UserError(
                        f"{name} is {list(weight.weight.shape)} in {trained}, {list(before.weight.shape)} in {base}; "
                        "give the checkpoint that the training started from"
                    )
                if before is None or not _equal(weight, before):
                    changed.append(recipe(weight, to))
                bar.advance(1)
        if not changed:
            raise UserError(f"{trained} holds nothing that {base} has not; nothing is written")
        write_file(file, changed)
    return len(changed), file.stat().st_size


def _equal(one: StoredWeight, other: StoredWeight) -> bool:
    values = zip(one.values(torch.float32), other.values(torch.float32), strict=True)
    return all(torch.equal(a, b) for (_, a), (_, b) in values)
