"""Tasks over short lists of words, letters, numbers or names: repeat, reverse, count, find, take apart.

Lists have 1 to 12 items, short ones more often. Answers that need counting count aloud, since a model that answers at
once cannot count.
"""

from __future__ import annotations

import random

from fathom.text.synthetic.asking import Exchange
from fathom.text.synthetic.vocabulary import items

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def _some(rng: random.Random, least: int = 2, most: int = 12, kind: str = "") -> list[str]:
    size = least + min(rng.randint(0, most - least), rng.randint(0, most - least))
    return items(rng, size, kind)


def _shown(rng: random.Random, row: list[str]) -> str:
    return rng.choice((", ", ", ", ", ", " ")).join(row)


def repeat(rng: random.Random) -> Exchange:
    shown = _shown(rng, _some(rng, 1))
    ask = rng.choice(("Repeat: {}", "Repeat after me: {}", "Say this again: {}", "Copy this: {}",
                      "Write this once more: {}", "Please repeat the following: {}"))  # fmt: skip
    return ask.format(shown), shown


def twice(rng: random.Random) -> Exchange:
    word, times = items(rng, 1)[0], rng.randint(2, 6)
    count = {2: "twice", 3: "three times", 4: "four times", 5: "five times", 6: "six times"}[times]
    return rng.choice(("Write {} {}.", "Say {} {}.")).format(f'"{word}"', count), " ".join([word] * times)


def reverse(rng: random.Random) -> Exchange:
    row = _some(rng, 2, 8)
    ask = rng.choice(("Reverse this list: {}", "Say these backwards: {}", "Write the list in reverse order: {}",
                      "Turn the order around: {}"))  # fmt: skip
    return ask.format(", ".join(row)), ", ".join(reversed(row))


def count(rng: random.Random) -> Exchange:
    row = _some(rng, 1)
    ask = rng.choice(("How many items are in this list: {}?", "Count the items: {}", "How many are these: {}?",
                      "What is the length of the list {}?"))  # fmt: skip
    aloud = ", ".join(f"{n} {item}" for n, item in enumerate(row, 1))
    return ask.format(", ".join(row)), rng.choice(("{}. The answer is {}.", "{}: {}.", "{}. So there are {}.")).format(
        aloud, len(row)
    )


def occurrences(rng: random.Random) -> Exchange:
    pool = _some(rng, 2, 5)
    row = rng.choices(pool, k=rng.randint(3, 12))
    word = rng.choice(pool)
    ask = rng.choice(("How often does {} occur in: {}?", "How many times do you see {} here: {}?", "Count {} in: {}"))
    aloud, seen = [], 0
    for item in row:
        seen += item == word
        aloud.append(f"{item} ({seen})" if item == word else item)
    return ask.format(word, ", ".join(row)), f"{', '.join(aloud)}. The answer is {seen}."


def ordinal(rng: random.Random) -> Exchange:
    row = _some(rng, 2, 10)
    at = min(rng.randrange(len(row)), rng.randrange(len(row)))
    which, value = ORDINALS[at], row[at]
    if rng.random() < 0.4:
        which, value = rng.choice((("first", row[0]), ("last", row[-1])))
    ask = rng.choice(("What is the {} item of: {}?", "Which one is the {} of these: {}?", "Give me the {} item: {}",
                      "Name the {} in the list: {}"))  # fmt: skip
    return ask.format(which, ", ".join(row)), value


def neighbour(rng: random.Random) -> Exchange:
    row = _some(rng, 2, 10)
    at = rng.randrange(len(row) - 1)
    shown = ", ".join(row)
    if rng.random() < 0.6:
        ask = rng.choice(("What comes after {} in this list: {}?", "Which item follows {}: {}?"))
        return ask.format(row[at], shown), row[at + 1]
    ask = rng.choice(("What comes before {} in this list: {}?", "Which item is right before {}: {}?"))
    return ask.format(row[at + 1], shown), row[at]


def member(rng: random.Random) -> Exchange:
    row = _some(rng, 3, 10)
    word = row.pop() if rng.random() < 0.5 else rng.choice(row)
    ask = rng.choice(("Is {} in this list: {}?", "Does the list {1} contain {0}?", "Can you find {} among these: {}?"))
    yes, no = rng.choice((("Yes.", "No."), ("Yes", "No"), ("Yes, it is there.", "No, it is not there.")))
    return ask.format(word, ", ".join(row)), yes if word in row else no


def position(rng: random.Random) -> Exchange:
    row = _some(rng, 2, 9)
    at = rng.randrange(len(row))
    ask = rng.choice(("At which position is {} in: {}?", "Where in this list is {}: {}?"))
    aloud = ", ".join(f"{n} {item}" for n, item in enumerate(row[: at + 1], 1))
    return ask.format(row[at], ", ".join(row)), f"{aloud}. It is at position {at + 1}."


def remove(rng: random.Random) -> Exchange:
    row = _some(rng, 2, 9)
    word = rng.choice(row)
    ask = rng.choice(("Remove {} from this list: {}", "Leave out {}: {}", "Write the list without {}: {}"))
    return ask.format(word, ", ".join(row)), ", ".join(item for item in row if item != word)


def replace(rng: random.Random) -> Exchange:
    *row, new = _some(rng, 3, 9)
    old = rng.choice(row)
    ask = rng.choice(("Replace {} by {}: {}", "Write {1} in place of {0}: {2}", "Change {} to {} in: {}"))
    return ask.format(old, new, ", ".join(row)), ", ".join(new if item == old else item for item in row)


def append(rng: random.Random) -> Exchange:
    *row, new = _some(rng, 2, 9)
    if rng.random() < 0.5:
        return f"Add {new} to the end of: {', '.join(row)}", ", ".join([*row, new])
    return f"Put {new} in front of: {', '.join(row)}", ", ".join([new, *row])


def duplicate(rng: random.Random) -> Exchange:
    row = _some(rng, 3, 9)
    word = rng.choice(row)
    row.insert(rng.randint(0, len(row)), word)
    ask = rng.choice(("Which item is there twice: {}?", "One item comes two times. Which one: {}?"))
    return ask.format(", ".join(row)), word


def between(rng: random.Random) -> Exchange:
    row = _some(rng, 4, 10)
    a = rng.randrange(len(row) - 2)
    b = rng.randrange(a + 2, len(row))
    return f"Which items are between {row[a]} and {row[b]}: {', '.join(row)}?", ", ".join(row[a + 1 : b])


KINDS = (
    (repeat, 6), (twice, 2), (reverse, 5), (count, 5), (occurrences, 3), (ordinal, 6), (neighbour, 5), (member, 4),
    (position, 3), (remove, 3), (replace, 3), (append, 2), (duplicate, 2), (between, 2),
)  # fmt: skip
