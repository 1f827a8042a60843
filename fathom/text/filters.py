"""Which documents are worth training on: text made uniform, then four plain rules.

The report only says that its corpus has "minimised redundancy" (section 4.1); the rules here are of the kind that
MassiveText and C4 made common, each one line of arithmetic with one threshold. A rule that rejects says its name, and
the build counts them, so that a threshold that throws too much away is seen.

    short, long    characters outside [min_chars, max_chars]
    letters        share of letters and digits among characters that are not white space, below min_letters
    lines          share of characters in lines that came before in the document, above max_repeated_lines
    phrases        share of 5-grams of words that came before in the document, above max_repeated_phrases
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from fathom.runtime import UserError
from fathom.text.dedup import words

# Control characters but tab and line feed, invisible marks that only confuse a tokenizer, halves of surrogate pairs.
_NOISE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\ufeff\ud800-\udfff]")


def normalise(text: str) -> str:
    """NFC, line feeds, no control characters, no blanks at line ends. Indentation stays: code needs it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n\n")
    text = unicodedata.normalize("NFC", _NOISE.sub("", text))
    return re.sub(r"\n{4,}", "\n\n\n", re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)).strip("\n")


@dataclass(frozen=True)
class Rules:
    """Thresholds; the loosest value of each switches its rule off."""

    min_chars: int = 50
    """Characters that a document has at least."""
    max_chars: int = 10_000_000
    """Characters that it has at most."""
    min_letters: float = 0.5
    """Share of letters and digits; 0: any."""
    max_repeated_lines: float = 0.3
    """Share of text in lines that came before; 1: any."""
    max_repeated_phrases: float = 0.4
    """Share of 5-word phrases that came before; 1: any."""

    def __post_init__(self) -> None:
        for name in ("min_letters", "max_repeated_lines", "max_repeated_phrases"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1")
        if not 0 <= self.min_chars <= self.max_chars:
            raise UserError(f"documents of {self.min_chars} to {self.max_chars} characters: that leaves none")

    def verdict(self, text: str, found: list[str] | None = None) -> str | None:
        """The name of the first rule that rejects `text` (`found`: its words), None when all accept it."""
        if len(text) < self.min_chars:
            return "short"
        if len(text) > self.max_chars:
            return "long"
        if self.min_letters > 0 and letters(text) < self.min_letters:
            return "letters"
        if self.max_repeated_lines < 1 and repeated_lines(text) > self.max_repeated_lines:
            return "lines"
        if self.max_repeated_phrases < 1:
            found = words(text) if found is None else found
            if repeated_phrases(found) > self.max_repeated_phrases:
                return "phrases"
        return None


def letters(text: str) -> float:
    """Letters, combining marks and digits among what is not white space."""
    solid = "".join(text.split())
    # \w: letters, digits, underscore. Combining marks (Indic vowel signs, ...) are parts of letters.
    marks = 0 if solid.isascii() else sum(unicodedata.category(c)[0] == "M" for c in solid)
    return (len(re.findall(r"[^\W_]", solid)) + marks) / max(len(solid), 1)


def repeated_lines(text: str) -> float:
    """Share of characters in lines that are equal to an earlier line."""
    seen: set[str] = set()
    again = total = 0
    for line in map(str.strip, text.split("\n")):
        total += len(line)
        again += len(line) * (line in seen)
        seen.add(line)
    return again / max(total, 1)


def repeated_phrases(found: list[str], size: int = 5) -> float:
    """Share of n-grams of words that came before."""
    grams = len(found) - size + 1
    if grams < 1:
        return 0.0
    return 1 - len({tuple(found[i : i + size]) for i in range(grams)}) / grams
