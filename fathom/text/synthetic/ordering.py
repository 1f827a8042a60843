"""Which is larger, what comes next, in which order: over numbers and the alphabet."""

from __future__ import annotations

import random
from itertools import pairwise

from fathom.text.synthetic.asking import Exchange
from fathom.text.synthetic.vocabulary import ADJECTIVES, LETTERS, NOUNS, names, number


def compare(rng: random.Random) -> Exchange:
    """Two numbers, digit by digit where they have as many digits."""
    a, b = number(rng), number(rng)
    if rng.random() < 0.5:  # as long as the other
        b = rng.randrange(10 ** (len(str(a)) - 1), 10 ** len(str(a)))
    if a == b:
        return f"Which is larger, {a} or {b}?", f"Neither. {a} = {b}."
    word = rng.choice(("larger", "bigger", "greater", "smaller"))
    want = min(a, b) if word == "smaller" else max(a, b)
    question = rng.choice((f"Which is {word}, {a} or {b}?", f"Which number is {word}: {a} or {b}?"))
    one, two = str(a), str(b)
    if len(one) != len(two):
        why = f"{a} has {_digits(len(one))} and {b} has {_digits(len(two))}"
    else:
        at = next(k for k in range(len(one)) if one[k] != two[k])
        sign = "<" if one[at] < two[at] else ">"
        why = (
            f"{one[at]} {sign} {two[at]}" if not at else f"Both begin with {one[:at]}, then {one[at]} {sign} {two[at]}"
        )
    return question, f"{why}, so {a} {'<' if a < b else '>'} {b}. The {word} one is {want}."


def _digits(count: int) -> str:
    return "1 digit" if count == 1 else f"{count} digits"


def sign(rng: random.Random) -> Exchange:
    a, b = number(rng, 3), number(rng, 3)
    if rng.random() < 0.15:
        b = a
    return rng.choice((f"Put <, > or = between {a} and {b}.", f"{a} ? {b} (<, > or =)")), (
        f"{a} {'<' if a < b else '>' if a > b else '='} {b}"
    )


def _numbers(rng: random.Random) -> list[int]:
    digits = rng.choice((1, 2, 2, 3))
    size = 2 + min(rng.randint(0, 6), rng.randint(0, 6))
    return rng.sample(range(10 ** (digits - 1) if digits > 2 else 0, 10 ** max(digits, 1)), size)


def sort_numbers(rng: random.Random) -> Exchange:
    """By taking the smallest (or largest) of what is left."""
    row = _numbers(rng)
    down = rng.random() < 0.35
    ask = (
        ("Sort from large to small: {}", "Put these numbers in descending order: {}")
        if down
        else ("Sort these numbers: {}", "Put in ascending order: {}", "Sort from small to large: {}", "Sort: {}")
    )
    done = ", ".join(map(str, sorted(row, reverse=down)))
    return rng.choice(ask).format(", ".join(map(str, row))), done


def extreme(rng: random.Random) -> Exchange:
    row = _numbers(rng)
    word = rng.choice(("largest", "biggest", "smallest", "highest", "lowest"))
    value = min(row) if word in ("smallest", "lowest") else max(row)
    ask = rng.choice(("What is the {} of these numbers: {}?", "Find the {} number: {}", "Which is the {}: {}?"))
    return ask.format(word, ", ".join(map(str, row))), str(value)


def sort_words(rng: random.Random) -> Exchange:
    size = 2 + min(rng.randint(0, 5), rng.randint(0, 5))
    kind = rng.randrange(3)
    if kind == 0:
        row = rng.sample(LETTERS, size)
    else:
        pool = rng.choice((NOUNS, ADJECTIVES, names(rng, 30, 0.3)))
        first = {word[0].lower(): word for word in rng.sample(pool, min(len(pool), 40))}  # no two begin alike
        row = rng.sample(sorted(first.values()), min(size, len(first)))
    ask = rng.choice(("Sort alphabetically: {}", "Put these in alphabetical order: {}", "Order from A to Z: {}"))
    return ask.format(", ".join(row)), ", ".join(sorted(row, key=str.lower))


def next_letter(rng: random.Random) -> Exchange:
    at = rng.randrange(25)
    if rng.random() < 0.5:
        return f"Which letter comes after {LETTERS[at]} in the alphabet?", LETTERS[at + 1]
    return f"Which letter comes before {LETTERS[at + 1]} in the alphabet?", LETTERS[at]


def next_number(rng: random.Random) -> Exchange:
    """Counting on, up, down and in steps."""
    step = rng.choice((1, 1, 1, 2, 3, 5, 10, -1, -1, -2))
    start = number(rng, 3) + (20 if step < 0 else 0)
    row = [start + step * k for k in range(rng.randint(3, 8))]
    more = rng.randint(1, 5)
    ask = rng.choice(
        ("Continue with {n} more: {r}", "Which {n} numbers come next: {r}?", "Go on counting, {n} times: {r}")
    )
    if more == 1:
        ask = rng.choice(("What comes next: {r}?", "Which number comes next: {r}?", "Give the next number: {r}"))
    shown = ", ".join(map(str, row))
    return ask.format(n=more, r=shown), ", ".join(str(row[-1] + step * k) for k in range(1, more + 1))


def relation(rng: random.Random) -> Exchange:
    """Anna is taller than Ben. Ben is taller than Carl. Who is tallest?"""
    people = names(rng, rng.randint(2, 5))
    more, most, least = rng.choice((
        ("older", "oldest", "youngest"), ("taller", "tallest", "shortest"), ("faster", "fastest", "slowest"),
        ("stronger", "strongest", "weakest"), ("richer", "richest", "poorest"),
    ))  # fmt: skip
    said = [f"{a} is {more} than {b}." for a, b in pairwise(people)]
    if rng.random() < 0.4:
        rng.shuffle(said)
    which = rng.choice((most, least))
    return f"{' '.join(said)} Who is the {which}?", people[0 if which == most else -1]


KINDS = (
    (compare, 5), (sign, 2), (sort_numbers, 5), (extreme, 4), (sort_words, 3), (next_letter, 1), (next_number, 4),
    (relation, 3),
)  # fmt: skip
