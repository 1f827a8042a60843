"""`fathom data build`: text files of any kind to token shards. `fathom data show`: what a batch of them looks like."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from fathom.commands.flags import parse_flags
from fathom.runtime import UserError, atomic_write
from fathom.text.bpe import Digits
from fathom.text.build import build
from fathom.text.encoder import vocabulary
from fathom.text.filters import Rules
from fathom.text.ingest import Reading, find
from fathom.text.own_tokenizer import own_tokenizer
from fathom.text.packed import Noise, PackedDataset
from fathom.text.shards import open_streams, stored_weights
from fathom.text.stages import Plan
from fathom.text.tokenizer import Tokenizer

USAGE = """usage: fathom data build INPUT ... --out DIR (--tokenizer DIR | --train-tokenizer IDS) [flags]
       fathom data show DIR [--step N] [flags]

build reads text, JSONL, Parquet (.gz, .zst) or hub data sets, normalises and filters them, drops near duplicates, and
writes token shards; a build that was interrupted continues when the same command is run again. With
--train-tokenizer the tokenizer is trained on the same text.
show prints a training batch of the shards as text.
`fathom data build --help` and `fathom data show --help` list the flags.

examples:
  fathom data build books/*.txt web=crawl.parquet --out data/mine --tokenizer data/minnow/tokenizer
  fathom data show data/mine --step 3
"""
EXAMPLES_BUILD = """
  fathom data build books/ web=crawl/*.jsonl.zst --out tokens --tokenizer data/minnow/tokenizer --weights web=0.5
  fathom data build hub:HuggingFaceFW/fineweb:sample-10BT:train --out tokens --tokenizer DIR --processes 8
  fathom data build books/ --out tokens --train-tokenizer 16384 --digits single
  fathom data build data/minnow/train.jsonl --source-column source --no-dedup --out tokens --tokenizer DIR
"""
EXAMPLES_SHOW = """
  fathom data show tokens --step 100 --fim-rate 0.1
  fathom data show tokens --rows 2 --length 256 --chars 0
"""


@dataclass(frozen=True)
class Build:
    """Build token shards from files."""

    inputs: tyro.conf.Positional[Annotated[list[str], tyro.conf.arg(metavar="[NAME=]INPUT")]]
    """Files, folders, globs, hub:ID[:CONFIG[:SPLIT]]; NAME is the source, by default that of the file or folder."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the shards."""
    tokenizer: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder with tokenizer.json."""
    train_tokenizer: Annotated[int, tyro.conf.arg(metavar="IDS")] = 0
    """In place of --tokenizer: train one with so many ids on the inputs, into the folder tokenizer of --out."""
    digits: Digits | None = None
    """Of a trained tokenizer: numbers as groups of up to three digits as in V3 (default), or each digit alone."""
    weights: Annotated[list[str], tyro.conf.arg(metavar="NAME=FACTOR")] = field(default_factory=list)
    """Factors on the sources' shares of tokens in training; a recipe's data.weights come before them."""
    text_column: str = "text"
    """The text of a JSONL line or a Parquet row."""
    source_column: str = ""
    """A column that names each document's source, in place of the input's name."""
    separator: str = ""
    """A line that ends a document in text files; without it each file is one document."""
    normalise: bool = True
    """--no-normalise leaves text as it is; else: NFC, line feeds, no control characters, no blanks at line ends."""
    filter: bool = True
    """--no-filter keeps all but empty documents; else the rules below decide."""
    rules: tyro.conf.OmitArgPrefixes[Rules] = field(default_factory=Rules)
    dedup: bool = True
    """--no-dedup keeps copies; else near duplicates are dropped (MinHash over word 5-grams)."""
    near: float = 0.8
    """Similarity from which on a document counts as a near duplicate."""
    heldout_percent: float = 0.0
    """Share of documents, by their hash, that go into the folder heldout in the output folder."""
    shard_tokens: int = 1 << 28
    """A shard is full from this many tokens on."""
    processes: int = 0
    """Processes that filter and tokenise; 0: this one does. The result is the same."""

    def run(self) -> int:
        """Build, then say what was built."""
        least: list[tuple[str, float, float, float]] = [
            ("--processes", self.processes, 0, 4096), ("--shard-tokens", self.shard_tokens, 1, 1 << 40),
            ("--heldout-percent", self.heldout_percent, 0, 50), ("--near", self.near, 0.01, 1),
        ]  # fmt: skip
        for flag, value, low, high in least:
            if not low <= value <= high:
                raise UserError(f"{flag} is {value}; give a number from {low} to {high}")
        plan = Plan(
            find(self.inputs), Reading(self.text_column, self.source_column, self.separator), self.normalise,
            self.rules if self.filter else None, self.near if self.dedup else 0.0, self.heldout_percent,
            self.shard_tokens,
        )  # fmt: skip
        weights = parse_weights(self.weights)
        names = sorted({part.source for part in plan.parts})
        if not self.source_column and set(weights) - set(names):
            raise UserError(f"--weights name {sorted(set(weights) - set(names))}, the sources are {names}")
        tokenizer = self._tokenizer(plan)
        meta = build(self.out, plan, vocabulary(tokenizer), processes=self.processes, weights=weights or None)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (tokenizer / name).exists() and tokenizer != self.out / "tokenizer":
                with atomic_write(self.out / "tokenizer" / name) as path:
                    path.write_bytes((tokenizer / name).read_bytes())
        print("\n".join(summary(meta)))
        return 0

    def _tokenizer(self, plan: Plan) -> Path:
        """The folder of the tokenizer that was given, or of one that is trained now."""
        if (self.tokenizer is None) == (not self.train_tokenizer):
            raise UserError("give --tokenizer DIR or --train-tokenizer IDS, one of the two")
        if self.tokenizer is not None:
            if self.digits is not None:
                raise UserError(f"--digits {self.digits} has no effect with --tokenizer; it is for --train-tokenizer")
            return self.tokenizer
        return own_tokenizer(self.out, plan, self.train_tokenizer, self.digits or "v3")


def parse_weights(given: list[str]) -> dict[str, float]:
    """NAME=FACTOR, ..."""
    weights: dict[str, float] = {}
    for item in given:
        name, _, factor = item.partition("=")
        try:
            weights[name] = float(factor)
        except ValueError:
            raise UserError(f"--weights {item!r} is not NAME=FACTOR, such as web=0.5") from None
        if not 0 <= weights[name] < float("inf"):
            raise UserError(f"--weights {item!r}: a factor is 0 or more")
    return weights


def summary(meta: dict[str, Any]) -> list[str]:
    """What a build made, source by source, and what became of the documents."""
    sources = meta["sources"]
    tokens = {name: entry["tokens"] * meta["weights"].get(name, 1.0) for name, entry in sources.items()}
    total = sum(tokens.values()) or 1.0
    lines = [f"{'source':<20} {'documents':>12} {'MB':>10} {'Mtokens':>10} {'mixture':>8}"]
    for name, entry in sorted(sources.items()):
        size, million = entry["bytes"] / 1e6, entry["tokens"] / 1e6
        share = tokens[name] / total
        lines.append(f"{name:<20} {entry['documents']:>12,} {size:>10.2f} {million:>10.3f} {share:>8.1%}")
    counts = ", ".join(f"{name} {number:,}" for name, number in meta["counts"].items())
    return [*lines, f"documents: {counts}"]


@dataclass(frozen=True)
class Show:
    """Print a training batch as text: one row after the other, with its source, epoch and window."""

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR")]]
    """What fathom data build made, or a run's folder tokens/train (with --tokenizer)."""
    step: int = 0
    """The optimizer step."""
    rows: int = 4
    """Rows of the batch."""
    length: int = 512
    """Tokens of a row."""
    seed: int = 0
    """The run's seed."""
    weights: Annotated[list[str], tyro.conf.arg(metavar="NAME=FACTOR")] = field(default_factory=list)
    """Factors on the sources' shares; default: those of the build."""
    fim_rate: float = 0.0
    """Share of documents told as prefix, suffix, middle; the report trains with 0.1."""
    split_rate: float = 0.0
    """Share of tokens such as ".\\n\\n" that are taken apart."""
    tokenizer: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Default: the copy that the build keeps."""
    chars: int = 1000
    """Characters of a row that are printed; 0: all."""

    def run(self) -> int:
        """Print."""
        if self.step < 0 or self.rows < 1 or self.length < 1 or self.seed < 0 or self.chars < 0:
            raise UserError("--step, --seed and --chars are 0 or more, --rows and --length 1 or more")
        streams = open_streams(self.folder)
        tokenizer = Tokenizer.from_pretrained(self.tokenizer or self.folder / "tokenizer")
        data = PackedDataset(
            streams, rows=self.rows, length=self.length, seed=self.seed,
            weights=parse_weights(self.weights) or stored_weights(self.folder) or None,
            noise=Noise.of(tokenizer, self.fim_rate, self.split_rate),
        )  # fmt: skip
        batch = data.batch(self.step)
        for row, place in zip(batch.tokens.tolist(), data.places(self.step), strict=True):
            print(f"--- {place.source}, epoch {place.epoch}, window {place.window} ---")
            print(_shown(tokenizer.decode(row, skip_special=False), self.chars))
        return 0


def _shown(text: str, chars: int) -> str:
    left = len(text) - chars
    return text if not chars or left <= 0 else f"{text[:chars]} ... ({left} more characters)"


def main(argv: list[str]) -> int:
    """Entry point of the sub-command: argv without `data`."""
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if not argv or argv[0] not in ("build", "show"):
        given = f"has no {argv[0]!r}" if argv else "needs an action"
        raise UserError(f"data {given}; use build or show; see `fathom data --help`")
    if argv[0] == "build":
        return parse_flags(Build, "fathom data build", argv[1:], examples=EXAMPLES_BUILD).run()
    return parse_flags(Show, "fathom data show", argv[1:], examples=EXAMPLES_SHOW).run()
