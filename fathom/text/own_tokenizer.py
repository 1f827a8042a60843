"""A tokenizer trained on the very text of a build, once: `fathom data build --train-tokenizer VOCAB`.

It lies in OUT/tokenizer, with a note of what it was trained on (trained.json, written first): the same build takes it
up again, another one is refused, since ids of two tokenizers must not meet in one folder. At most 500 MB are read, the
same amount of each file; more text hardly changes the merges.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fathom.runtime import UserError, progress, read_json, write_json
from fathom.text.bpe import Digits, train_bpe
from fathom.text.build import TRAINED, claimed
from fathom.text.filters import normalise
from fathom.text.ingest import documents
from fathom.text.stages import Plan

SAMPLE_BYTES = 500_000_000


def own_tokenizer(out: Path, plan: Plan, vocab_size: int, digits: Digits) -> Path:
    """The folder OUT/tokenizer, trained on the plan's inputs unless it is there already."""
    folder = claimed(out) / "tokenizer"
    note: dict[str, Any] = {
        "vocab_size": vocab_size, "digits": digits, "normalise": plan.normalise, "column": plan.reading.text_column,
        "separator": plan.reading.separator,
        "inputs": [[part.source, Path(part.path).name, part.size, part.changed] for part in plan.parts],
    }  # fmt: skip
    files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json")]
    same = (folder / TRAINED).exists() and read_json(folder / TRAINED) == note
    if any(file.exists() for file in files) and not same:
        raise UserError(
            f"{folder} holds a tokenizer that was made from other inputs or in another way; choose another --out or "
            "remove it"
        )
    if not (same and all(file.exists() for file in files)):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / TRAINED, note)
        train_bpe(_texts(plan), vocab_size, folder, digits=digits)
    return folder


def _texts(plan: Plan) -> Iterator[str]:
    share = SAMPLE_BYTES / len(plan.parts)
    with progress("read text for the tokenizer", sum(min(part.size, share) for part in plan.parts)) as bar:
        for part in plan.parts:
            used = 0
            for document in documents(part, plan.reading):
                text = normalise(document.text) if plan.normalise else document.text
                yield text.encode("utf-8", "ignore").decode("utf-8")
                used += len(text)
                bar.advance(len(text))
                if used > share:
                    break
