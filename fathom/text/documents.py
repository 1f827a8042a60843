"""Documents out of a corpus by the shares of their sources, and others of the same kind that training never sees.

Which ones are held out is a property of the text (its hash), so it holds for every selection from every corpus.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path

from fathom.runtime import UserError, atomic_write
from fathom.text.dataset import read_jsonl

HELD_OUT_PART = 12  # every twelfth document, by its hash


def held_out(text: str) -> bool:
    """Whether a document belongs to the part that no selection trains on."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % HELD_OUT_PART == 0


class Selection:
    """Documents of `corpus` (what `fathom corpus build` wrote) by source, in an order drawn with `seed`.

    train      {"source": ..., "text": ...} for each, `characters` in all, shared out by `shares`
    heldout    texts of the sources in `measured` that are held out, all of them
    short      source -> characters that it has, where that is less than its share
    """

    def __init__(
        self, corpus: Path, shares: Mapping[str, float], characters: int, *, measured: tuple[str, ...], seed: int
    ) -> None:
        wanted = {*shares, *measured}
        by_source: dict[str, list[dict[str, str]]] = {name: [] for name in shares}
        self.heldout: list[str] = []
        found: set[str] = set()
        for record in read_jsonl(corpus):
            source, text = record.get("source"), record.get("text")
            if not isinstance(text, str) or source not in wanted:
                continue
            found.add(source)
            if held_out(text):
                self.heldout += [text] if source in measured else []
            elif source in by_source:
                by_source[source].append({"source": source, "text": text})
        if missing := sorted(wanted - found):
            raise UserError(f"{corpus} has no documents of {', '.join(missing)}; its sources.json lists what it has")

        rng = random.Random(seed)
        total = sum(shares.values())
        self.train: list[dict[str, str]] = []
        self.short: dict[str, int] = {}
        for source, share in shares.items():
            rng.shuffle(by_source[source])
            taken, limit = 0, characters * share / total
            for document in by_source[source]:
                if taken >= limit:
                    break
                taken += len(document["text"])
                self.train.append(document)
            if taken < limit:
                self.short[source] = taken
        rng.shuffle(self.train)
        rng.shuffle(self.heldout)

    def write(self, out: Path, heldout: Path | None, heldout_characters: int) -> None:
        """The selection as JSONL; the first `heldout_characters` of the held-out texts with an empty line between."""
        with atomic_write(out) as path, path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(document) + "\n" for document in self.train)
        if heldout is not None:
            with atomic_write(heldout) as path, path.open("w", encoding="utf-8") as file:
                written = 0
                for text in self.heldout:
                    file.write(f"{text}\n\n")
                    written += len(text)
                    if written > heldout_characters:
                        break
