"""Text that can be foretold from itself alone: the teacher of induction heads.

An induction head finds the last place where the present token stood and says what came after it there. Ordinary text
pays for it rarely, random text that repeats pays for it at every token. Lengths and distances are drawn at random, so
that counting places back does not help, and alphabets are small at first: a small model finds the trick with few
signs, and never with many.

    repeats    a random sequence, said again, once or several times; its signs are all different, or not
    mixed      a few random phrases in random order, each many times
    pairs      each key has one value; pairs are drawn again and again, in any order
    lines      lines of words, copied under a heading, all or only those that were asked for
"""

from __future__ import annotations

import random

from fathom.text.synthetic.vocabulary import ADJECTIVES, LETTERS, NAMES, NOUNS, VERBS, code

LONGEST = 320  # signs of a document
DIGITS = "0123456789"


def alphabet(rng: random.Random, largest: int = 64) -> list[str]:
    """2 to `largest` different signs of one kind; small alphabets are as frequent as large ones."""
    size = round(2 * (largest / 2) ** rng.random())
    signs = rng.choice((LETTERS, LETTERS.upper(), DIGITS, NOUNS, NOUNS, NAMES, [*VERBS, *ADJECTIVES]))
    return rng.sample(signs, min(size, len(signs)))


def repeats(rng: random.Random) -> str:
    """A sequence two to five times, between marks or without any."""
    signs = alphabet(rng)
    if rng.random() < 0.6:
        length = rng.randint(2, len(signs))  # each sign once: the last place where it stood says all
        row = " ".join(rng.sample(signs, length))
    else:
        length = round(3 * 30 ** rng.random())
        row = " ".join(rng.choices(signs, k=length))
    times = max(2, min(rng.randint(2, 5), LONGEST // length))
    form, joint = rng.choice((
        ("{}", "\n"), ("{}", " "), ("{}", " | "), ("{}.", " "), ("[{}]", "\n"), ("Once more: {}", "\n"), ("{}", " = "),
    ))  # fmt: skip
    return joint.join([form.format(row)] * times)


def mixed(rng: random.Random) -> str:
    """Phrases of two to eight signs, drawn again and again."""
    signs = alphabet(rng)
    phrases = [" ".join(rng.choices(signs, k=rng.randint(2, 8))) for _ in range(rng.randint(2, 8))]
    joint = rng.choice((" ", ", ", "\n", " / ", ". "))
    count = rng.randint(2 * len(phrases), 5 * len(phrases))
    return joint.join(rng.choices(phrases, k=count))


def pairs(rng: random.Random) -> str:
    """`k 7, b 2, k 7, ...`: what belongs to a key stays."""
    keys = alphabet(rng, 32)
    kind = rng.randrange(5)
    values = ([rng.choice((DIGITS, NOUNS, LETTERS)[kind]) for _ in keys] if kind < 3 else
              [code(rng) if kind == 3 else str(rng.randint(10, 999)) for _ in keys])  # fmt: skip
    table = dict(zip(keys, values, strict=True))
    form, joint = rng.choice((
        ("{} {}", ", "), ("{}={}", " "), ("{}: {}", "\n"), ("{} -> {}", "\n"), ("{} is {}", ". "), ("({}, {})", " "),
        ("{} {}", " "),
    ))  # fmt: skip
    count = min(rng.randint(2, 6) * len(keys), LONGEST // 3)
    return joint.join(form.format(key, table[key]) for key in rng.choices(keys, k=count))


def lines(rng: random.Random) -> str:
    """Lines of words, then the same lines: all of them, or the one that begins as it is asked."""
    pool = rng.choice((NOUNS, NAMES, [*ADJECTIVES, *NOUNS], [*VERBS, *NOUNS]))
    first = rng.sample(pool, rng.randint(2, 9))  # no two lines begin alike
    rows = [" ".join([start, *rng.choices(pool, k=rng.randint(2, 7))]) for start in first]
    text = "\n".join(rows)
    if rng.random() < 0.4:
        heading = rng.choice(("Copy:", "The same again:", "Copy of the lines above:", "---", "Again:"))
        return f"{text}\n{heading}\n{text}"
    asked = rng.choices(rows, k=rng.randint(1, 5))
    form = rng.choice(("The line that begins with {}: {}", "{}? {}", "Which line begins with {}? {}"))
    return "\n".join([text, "", *(form.format(row.split()[0], row) for row in asked)])


KINDS = ((repeats, 4), (mixed, 3), (pairs, 4), (lines, 2))


def copying(rng: random.Random) -> str:
    """One document."""
    return rng.choices([make for make, _ in KINDS], [weight for _, weight in KINDS])[0](rng)
