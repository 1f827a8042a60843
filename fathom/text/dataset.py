"""From documents and dialogues to training batches.

    files --ingest, filters, dedup, build--> shards (shards.py) --packed.py, fim.py--> Batch of any step
    dialogues (sft.jsonl) -- encode, mask, pack (here) --> rows ---------------------> Batch of any step

Pretraining packs documents one after the other, without a mask between them (report section 4.1); SFT packs whole
dialogues and masks them from each other (section 5.1). A batch is a pure function of (seed, step).

Shapes: B rows, T tokens per row. labels[b, t] is the token after tokens[b, t], or IGNORE.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.runtime import UserError
from fathom.text.batch import IGNORE, Array, Batch, digest
from fathom.text.build import tokenize
from fathom.text.packed import PackedDataset, permutation
from fathom.text.shards import open_streams

__all__ = [
    "IGNORE", "Array", "Batch", "DialogueDataset", "PackedDataset", "Sample", "collate", "digest", "open_streams",
    "pack", "read_jsonl", "tokenize",
]  # fmt: skip


def read_jsonl(path: Path | str) -> Iterator[dict[str, Any]]:
    """The objects of a file; see `read_placed`."""
    return (record for _, record in read_placed(path))


def read_placed(path: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("line 7", object) for each line of a JSONL file, or ("item 7", object) of the array that a `.json` file is.

    A broken one is an error that names it. Empty lines and a byte-order mark are passed over.
    """
    try:
        with open(path, encoding="utf-8-sig") as lines:
            if Path(path).suffix == ".json":
                yield from ((f"item {number}", each) for number, each in enumerate(_array(path, lines.read()), 1))
                return
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise UserError(f"{path} line {number} is not JSON ({error}); fix or remove it") from None
                if not isinstance(record, dict):
                    raise UserError(f"{path} line {number} holds a {type(record).__name__}, not an object")
                yield f"line {number}", record
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); convert it") from None


def _array(path: Path | str, text: str) -> list[dict[str, Any]]:
    try:
        records = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not one JSON array ({error}); name a file with an object per line .jsonl") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path} is no array of objects; a .json file must be one")
    return records


@dataclass(frozen=True)
class Sample:
    """One dialogue: token ids, and which of them the model is trained to say."""

    ids: list[int]
    trained: list[bool]


class DialogueDataset:
    """Whole dialogues packed once into rows of T tokens; the rows are shuffled anew every epoch.

    Samples of a row do not see each other, so which ones share it does not matter. All rows of all epochs form one
    sequence that batches cut: every dialogue that fits a row is seen exactly once per epoch, and a step alone names its
    rows. The others are left out, and counted.
    """

    def __init__(self, samples: list[Sample], *, rows: int, length: int, seed: int, pad: int, note: str = "") -> None:
        fitting = [s for s in samples if 1 < len(s.ids) <= length]
        if not fitting:
            shortest = min((len(s.ids) for s in samples), default=0)
            raise UserError(
                f"none of {len(samples)} dialogues fits into {length} tokens, the shortest has {shortest}; "
                "raise data.sequence_length"
            )
        self.rows, self.length, self.seed, self.pad = rows, length, seed, pad
        self.note = note  # what the file was recognised as
        self.left_out = len(samples) - len(fitting)
        order = np.random.Generator(np.random.PCG64([seed, 3])).permutation(len(fitting))
        self.samples = [fitting[i] for i in order]
        self.packed = pack([len(s.ids) for s in self.samples], length)
        self.steps_per_epoch = max(len(self.packed) // rows, 1)

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step`, whatever was asked before."""
        return collate([self._row(step * self.rows + r) for r in range(self.rows)], self.length, self.pad)

    def _row(self, number: int) -> list[Sample]:
        epoch, index = divmod(number, len(self.packed))
        row = permutation(self.seed, 0, epoch, len(self.packed))[index]
        return [self.samples[i] for i in self.packed[row]]


def pack(lengths: list[int], room: int, window: int = 64) -> list[list[int]]:
    """First fit: indices of `lengths` grouped so that each group sums to at most `room`; `window` groups stay open."""
    done: list[list[int]] = []
    open_rows: list[tuple[int, list[int]]] = []
    for index, length in enumerate(lengths):
        for position, (used, row) in enumerate(open_rows):
            if used + length <= room:
                row.append(index)
                open_rows[position] = (used + length, row)
                break
        else:
            open_rows.append((length, [index]))
            if len(open_rows) > window:
                fullest = max(range(len(open_rows)), key=lambda p: open_rows[p][0])
                done.append(open_rows.pop(fullest)[1])
    return done + [row for _, row in open_rows]


def collate(rows: list[list[Sample]], length: int, pad: int) -> Batch:
    """Rows of samples to one batch; padding is its own segment and never trained on."""
    tokens = torch.full((len(rows), length), pad, dtype=torch.int64)
    labels = torch.full((len(rows), length), IGNORE, dtype=torch.int64)
    segments = torch.full((len(rows), length), -1, dtype=torch.int64)
    for r, row in enumerate(rows):
        start = 0
        for number, sample in enumerate(row):
            end = start + len(sample.ids)
            tokens[r, start:end] = torch.tensor(sample.ids)
            segments[r, start:end] = number
            wanted = [t if keep else IGNORE for t, keep in zip(sample.ids, sample.trained, strict=True)]
            labels[r, start : end - 1] = torch.tensor(wanted[1:])
            start = end
    return Batch(tokens, labels, segments)
