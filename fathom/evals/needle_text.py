"""The texts of the needle test: a haystack of held-out sentences, one sentence that does not belong there, a question.

    copy    ... sentence. The magic number of Oslo is 48291. sentence ... sentence. The magic number of Oslo is
    chat    the same text as a user's message, which ends with the question; the answer is free text

`copy` asks for a completion and needs no chat template: it is for models that were only pretrained. The haystack of a
trial begins alike at every length and depth, so that the engine finds most of a prompt in its cache.

Kept apart from training: text/synthetic/long_documents.py has neither this wording nor these cities.

length  tokens of prompt and answer together     depth  share of the haystack's tokens that stand before the needle
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fathom.runtime import UserError
from fathom.text.chat import ChatTemplate
from fathom.text.tokenizer import Tokenizer

Form = Literal["copy", "chat"]
CITIES = (
    "Paris", "Berlin", "Rome", "Madrid", "Lisbon", "London", "Dublin", "Warsaw", "Athens", "Vienna", "Oslo", "Cairo",
    "Moscow", "Tokyo", "Peking", "Delhi", "Lima", "Boston", "Chicago", "Geneva", "Prague", "Naples", "Venice", "Havana",
)  # fmt: skip
WRONG = 4  # wrong numbers that are compared with the right one
SPARE = {"copy": 2, "chat": 16}  # tokens of an answer besides the needle's own
SENTENCE = "The magic number of {city} is"
QUESTION = "What is the magic number of {city}? Answer with the number."


@dataclass(frozen=True)
class Case:
    """One cell's trial. `depth` 0: the needle is the first sentence, 1: the last."""

    form: Form
    length: int
    depth: float
    trial: int


@dataclass(frozen=True)
class Prompt:
    """What a model is asked. `start`: ids that end where only the number is missing. `at`: the depth, as it came out
    (the needle stands between two sentences). `answer`: most tokens of an answer."""

    ids: list[int]
    start: list[int]
    city: str
    number: str
    wrong: tuple[str, ...]
    at: float
    answer: int


class Haystack:
    """Sentences with their lengths in tokens, cut so that they can be joined to text again."""

    def __init__(self, documents: Sequence[str], tokenizer: Tokenizer, source: str) -> None:
        self.tokenizer, self.source = tokenizer, source
        self.documents = [d.strip() for d in documents if d.strip()]
        self._trials: dict[tuple[int, int], tuple[list[str], list[int]]] = {}

    def sentences(self, seed: int, trial: int, tokens: int) -> tuple[list[str], list[int]]:
        """Sentences of the documents in the trial's order, and tokens before each; at least `tokens` in all."""
        pieces, starts = self._trials.setdefault((seed, trial), ([], [0]))
        order = list(range(len(self.documents)))
        random.Random(f"{seed}/{trial}/haystack").shuffle(order)
        if starts[-1] < tokens:
            pieces.clear()
            starts[:] = [0]
            for index in order:
                for piece in cut(self.documents[index]):
                    pieces.append(piece)
                    starts.append(starts[-1] + len(self.tokenizer.encode_plain(piece)))
                if starts[-1] >= tokens:
                    break
            else:
                raise UserError(
                    f"{self.source} has {starts[-1]} tokens, a length of {tokens} needs more; give a longer --haystack"
                )
        return pieces, starts


def cut(document: str) -> list[str]:
    """Sentences with the white space before them; the first begins a paragraph."""
    return [p for p in re.split(r"(?<=[.!?])(?=\s)", f"\n\n{document}") if p]


class Asker:
    """Makes the prompt of a case, for one tokenizer and chat template."""

    def __init__(self, haystack: Haystack, template: ChatTemplate | None, seed: int) -> None:
        self.haystack, self.tokenizer, self.template, self.seed = haystack, haystack.tokenizer, template, seed

    def prompt(self, case: Case) -> Prompt:
        """The longest prompt of at most `case.length` tokens, answer included."""
        rng = random.Random(f"{self.seed}/{case.length}/{case.depth}/{case.trial}")
        city = rng.choice(CITIES)
        number, *wrong = rng.sample(range(10_000, 100_000), 1 + WRONG)
        needle = f" {SENTENCE.format(city=city)} {number}."
        answer = self.answer(case.form)
        room = case.length - answer - len(self._ask(case.form, needle, city))
        if room < 0:
            least = case.length - room
            raise UserError(f"a length of {case.length} tokens does not hold needle and question; give {least} or more")
        pieces, starts = self.haystack.sentences(self.seed, case.trial, room + room // 8)

        def build(count: int) -> tuple[list[int], int]:
            """(prompt with the first `count` sentences, where the needle is)"""
            place = sum(start <= case.depth * starts[count] for start in starts[: count + 1]) - 1
            text = "".join(pieces[:place]) + needle + "".join(pieces[place:count])
            return self._ask(case.form, text, city), place

        most = case.length - answer
        count = sum(start <= room for start in starts) - 1
        while count and len(build(count)[0]) > most:  # pieces may have other tokens together than apart
            count -= 1
        while count + 1 < len(starts) and len(build(count + 1)[0]) <= most:
            count += 1
        ids, place = build(count)
        start = ids if case.form == "copy" else ids + self.tokenizer.encode_plain(SENTENCE.format(city=city))
        at = starts[place] / max(starts[count], 1)
        return Prompt(ids, start, city, str(number), tuple(map(str, wrong)), at, answer)

    def answer(self, form: Form) -> int:
        """Room for an answer: the number, and for `chat` the sentence that it stands in."""
        said = ["99999"] if form == "copy" else [f"{SENTENCE.format(city=city)} 99999" for city in CITIES]
        return SPARE[form] + max(len(self.tokenizer.encode_plain(f" {text}.")) for text in said)

    def _ask(self, form: Form, text: str, city: str) -> list[int]:
        text = text.lstrip()
        if form == "copy":
            ids = self.tokenizer.encode_plain(f"{text} {SENTENCE.format(city=city)}")
            return ids if self.tokenizer.bos_id is None else [self.tokenizer.bos_id, *ids]
        assert self.template is not None
        message = f"{text}\n\n{QUESTION.format(city=city)}"
        return self.template.encode(self.tokenizer, [{"role": "user", "content": message}])


def is_right(said: str, number: str) -> bool:
    """Exact match: the first number in the answer is the needle's (48,291 counts as 48291)."""
    found = re.search(r"\d[\d,]*", said)
    return found is not None and found[0].replace(",", "") == number
