"""Long documents whose later parts depend on earlier ones. Only the long-context extension trains on them.

The corpus has short documents; packed into long rows they teach nothing about distance. Here facts about people,
rooms, lists and meetings lie between stories, and are said again or asked for later, some at once, some thousands of
words on, and many together at the end. The distance between a fact and its recall is drawn log-uniformly, so that
every distance up to the length of the document is about equally frequent.

What must not be here: the needle test (evals/needle_text.py) hides "The magic number of CITY is NUMBER." Neither that
wording nor any of its cities occurs in these documents, so the test measures recall and not a sentence learned.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from fathom.text.synthetic.grammar import BOYS, COLOURS, GIRLS, PLACES, SNACKS, THINGS, and_list, expand
from fathom.text.synthetic.knowledge import DAYS
from fathom.text.synthetic.stories import story

WORDS_PER_FACT = 110  # one fact, with its recalls, among so many words
TITLES = ("A long day", "Many stories", "A book of stories", "Things to remember")
ENDINGS = ("At the end, let us remember.", "Now let us see what we still know.", "What do you remember?")
RECALLS = 2.5  # how often a fact is recalled on average, the end of the document included


@dataclass(frozen=True)
class Fact:
    """What is said first, and the sentences that recall it."""

    said: str
    recalls: tuple[str, ...]


def _digits(rng: random.Random) -> str:
    return str(rng.randrange(10 ** (size := rng.randint(2, 5)) // 10, 10**size))


def _code(rng: random.Random) -> Fact:
    owner, thing, digits = (
        rng.choice([*GIRLS, *BOYS]),
        rng.choice(("locker", "bike", "suitcase", "mailbox")),
        _digits(rng),
    )
    said = expand(rng, f"The [lock|code|lock code] of {owner}'s {thing} is {digits}.")
    subject = said.removesuffix(f" is {digits}.")
    return Fact(said, (
        said, f"What is {subject[0].lower() + subject[1:]}? It is {digits}.",
        f"Which number opens {owner}'s {thing}? {digits}.",
    ))  # fmt: skip


def _count(rng: random.Random) -> Fact:
    place, things, number = rng.choice(PLACES), rng.choice(SNACKS), str(rng.randint(11, 999))
    said = f"In the {place} they counted {number} {things}."
    return Fact(said, (said, f"How many {things} were in the {place}? They counted {number}."))


def _keeper(rng: random.Random) -> Fact:
    name, colour, thing, place = (
        rng.choice([*GIRLS, *BOYS]),
        rng.choice(COLOURS),
        rng.choice(THINGS),
        rng.choice(PLACES),
    )
    said = f"{name} left the {colour} {thing} in the {place}."
    return Fact(said, (
        said, f"Where did {name} leave the {colour} {thing}? In the {place}.",
        f"What did {name} leave in the {place}? The {colour} {thing}.",
    ))  # fmt: skip


def _list(rng: random.Random) -> Fact:
    name, items = rng.choice([*GIRLS, *BOYS]), rng.sample(SNACKS, rng.randint(3, 6))
    said = f"{name} wrote a shopping list: {and_list(items)}."
    return Fact(said, (f"This was {name}'s shopping list: {and_list(items)}.", said))


def _meeting(rng: random.Random) -> Fact:
    name, day, hour, place = rng.choice([*GIRLS, *BOYS]), rng.choice(DAYS), rng.randint(1, 12), rng.choice(PLACES)
    said = f"{name} wants to come to the {place} on {day} at {hour} o'clock."
    return Fact(said, (
        said, f"When does {name} want to come to the {place}? On {day} at {hour} o'clock.",
        f"Who wants to come to the {place} on {day}? {name}.",
    ))  # fmt: skip


KINDS: tuple[tuple[Callable[[random.Random], Fact], int], ...] = (
    (_code, 6), (_count, 3), (_keeper, 3), (_list, 2), (_meeting, 2),
)  # fmt: skip


def facts(rng: random.Random, count: int) -> list[Fact]:
    """Up to `count` facts of which no two ask the same question."""
    makers, weights = zip(*KINDS, strict=True)
    out: list[Fact] = []
    asked: set[str] = set()
    for maker in rng.choices(makers, weights, k=count):
        fact = maker(rng)
        # a question, or for what is only said again the words before the answer
        keys = {r.split("?")[0] for r in fact.recalls if "?" in r} | {fact.said.split(" is ")[0].split(":")[0]}
        if not keys & asked:
            out.append(fact)
            asked |= keys
    return out


def long_document(rng: random.Random, words: int) -> str:
    """A document of about `words` words."""
    told = facts(rng, max(words // WORDS_PER_FACT, 1))
    slots = max(words // 15, 4 * len(told))  # places of a sentence each; most hold the sentences of stories
    at: dict[int, list[str]] = {}
    for fact in told:
        first = rng.randrange(int(slots * 0.9))
        at.setdefault(first, []).append(fact.said)
        for _ in range(math.floor(RECALLS - 1 + rng.random())):
            distance = math.exp(rng.uniform(0, math.log(slots)))
            if (later := first + 1 + int(distance)) < slots:
                at.setdefault(later, []).append(rng.choice(fact.recalls))
    end = rng.sample(told, min(len(told), 12))
    parts: list[str] = []
    used = sum(len(s.split()) for sentences in at.values() for s in sentences)
    used += sum(len(f.said.split()) for f in end)
    filler = _sentences(rng, max(words - used, 0))
    share = len(filler) / slots
    for slot in range(slots):
        parts += filler[round(slot * share) : round((slot + 1) * share)]
        parts += at.get(slot, [])
    parts.append("\n\n" + rng.choice(ENDINGS))
    parts += [rng.choice(fact.recalls) for fact in end]
    text = " ".join(parts).replace(" \n\n", "\n\n").lstrip()
    return f"{rng.choice(TITLES)}\n\n{text}"


def _sentences(rng: random.Random, words: int) -> list[str]:
    """Stories of `words` words, to a sentence; the first sentence of each begins with a line break."""
    out: list[str] = []
    while words > 0:
        for number, sentence in enumerate(re.split(r"(?<=[.!?]) ", story(rng).text)):
            out.append(sentence if number else f"\n\n{sentence}")
            words -= len(sentence.split())
            if words <= 0:
                break
    return out
