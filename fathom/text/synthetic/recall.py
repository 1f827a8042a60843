"""Keys and values, and the question for a value later: at once, after other facts, or after a page of other text.

Values are strings that say nothing (numbers, letters, words), so the answer stands in the text and nowhere else. The
number of facts and the length of the filler are drawn so that short and near ones are the most frequent.

The needle test's words (evals/needle_text.py) do not occur: no magic numbers of cities.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from fathom.text.synthetic.grammar import COLOURS, PLACES, THINGS
from fathom.text.synthetic.stories import story
from fathom.text.synthetic.vocabulary import NOUNS, code, items, name, number

FILLER = 450  # words between facts and questions, at most


@dataclass(frozen=True)
class Fact:
    """What is said, and questions with the answer."""

    said: str
    asked: tuple[str, ...]
    answer: str


def _code(rng: random.Random) -> Fact:
    who, what, value = name(rng), rng.choice(("code", "password", "number", "room", "ticket", "address")), code(rng)
    return Fact(
        f"The {what} of {who} is {value}.", (f"What is the {what} of {who}?", f"Tell me {who}'s {what}."), value
    )


def _box(rng: random.Random) -> Fact:
    box, value = number(rng, 3), f"{rng.choice(COLOURS)} {rng.choice(THINGS)}"
    return Fact(f"In box {box} there is a {value}.".replace("a orange", "an orange"),
                (f"What is in box {box}?", f"Which thing is in box {box}?"), value)  # fmt: skip


def _word(rng: random.Random) -> Fact:
    key, value = rng.choice(NOUNS), rng.choice(NOUNS)
    return Fact(
        f"The word for {key} is {value}.", (f"What is the word for {key}?", f"Which word stands for {key}?"), value
    )


def _place(rng: random.Random) -> Fact:
    who, thing, place = name(rng), rng.choice(THINGS), rng.choice(PLACES)
    return Fact(f"{who} left the {thing} in the {place}.", (f"Where did {who} leave the {thing}?",), place)


def _friend(rng: random.Random) -> Fact:
    who, friend = name(rng), name(rng)
    return Fact(f"The best friend of {who} is called {friend}.", (f"Who is the best friend of {who}?",), friend)


def _many(rng: random.Random) -> Fact:
    who, what, count = name(rng), rng.choice(("books", "stamps", "coins", "shells", "marbles", "cards")), number(rng)
    return Fact(f"{who} has {count} {what}.", (f"How many {what} does {who} have?",), str(count))


KINDS = ((_code, 5), (_box, 2), (_word, 2), (_place, 2), (_friend, 2), (_many, 2))


def facts(rng: random.Random, count: int) -> list[Fact]:
    """`count` facts of which no two answer the same question; often all of one kind, easily mixed up."""
    makers, weights = zip(*KINDS, strict=True)
    if rng.random() < 0.5:
        makers, weights = (rng.choices(makers, weights)[0],), (1,)
    found: dict[str, Fact] = {}
    while len(found) < count:
        fact = rng.choices(makers, weights)[0](rng)
        found.setdefault(fact.asked[0], fact)
    return list(found.values())


def filler(rng: random.Random, words: int) -> str:
    """The beginning of a story, in whole sentences; empty for fewer than ten words."""
    out: list[str] = []
    while words >= 10:
        for sentence in re.split(r"(?<=[.!?]) ", story(rng).text.replace("\n\n", " ")):
            out.append(sentence)
            words -= len(sentence.split())
            if words < 10:
                break
    return " ".join(out)


def recall(rng: random.Random) -> str:
    """Facts among sentences of a story, then questions about some of them, in any order."""
    told = facts(rng, round(10 ** rng.uniform(0, 1.1)))
    words = round(FILLER * rng.random() ** 2) if rng.random() < 0.7 else 0
    parts: list[str] = []
    gaps = [rng.random() for _ in range(len(told) + 1)]
    for fact, gap in zip(told, gaps, strict=False):
        parts += [filler(rng, round(words * gap / sum(gaps))), fact.said]
    parts.append(filler(rng, round(words * gaps[-1] / sum(gaps))))
    joint = "\n" if not words and rng.random() < 0.4 else " "
    asked = rng.sample(told, min(len(told), rng.randint(1, 6)))
    if rng.random() < 0.3:
        recalled = " ".join(fact.said for fact in asked)
        return (
            f"{joint.join(filter(None, parts))}\n\n{rng.choice(('Again:', 'Remember:', 'What was said:'))} {recalled}"
        )
    form, between = rng.choice((
        ("{q} {a}.", "\n"), ("Question: {q}\nAnswer: {a}", "\n"), ("Q: {q} A: {a}", "\n"),
        ("User: {q}\nAssistant: {a}.", "\n"),
    ))  # fmt: skip
    said = between.join(form.format(q=rng.choice(fact.asked), a=fact.answer) for fact in asked)
    return f"{joint.join(filter(None, parts))}\n\n{said}"


def dictionary(rng: random.Random) -> str:
    """`key: value` lines and look-ups; also the other way round, where the values differ too."""
    count = round(2 * 8 ** rng.random())
    keys, values = items(rng, count), items(rng, count)
    form = rng.choice(("{} = {}", "{}: {}", "{} -> {}", "{} {}", '"{}": "{}"'))
    joint = rng.choice(("\n", "\n", ", ", "; "))
    table = joint.join(form.format(k, v) for k, v in zip(keys, values, strict=True))
    lines = []
    for at in rng.choices(range(count), k=rng.randint(1, 6)):
        if set(keys) & set(values) or rng.random() < 0.75:
            ask = rng.choice(("{}?", "What is the value of {}?", "Look up {}."))
            lines.append(f"{ask.format(keys[at])} {values[at]}")
        else:
            lines.append(
                f"{rng.choice(('Which key has the value {}?', 'Find the key of {}.')).format(values[at])} {keys[at]}"
            )
    return f"{table}\n\n" + "\n".join(lines)


def recalled(rng: random.Random) -> str:
    """One document of either form."""
    return recall(rng) if rng.random() < 0.7 else dictionary(rng)
