"""The tasks of the generated documents as turns of a dialogue: a question alone, or a text with questions about it."""

from __future__ import annotations

import random
from collections.abc import Callable

from fathom.text.synthetic import digits, formats, list_tasks, ordering, recall
from fathom.text.synthetic.asking import Exchange, Kinds, pick
from fathom.text.synthetic.people import questions, world
from fathom.text.synthetic.tables import question, table

Topic = Callable[[random.Random], list[Exchange]]


def _asks(kinds: Kinds) -> Topic:
    return lambda rng: [pick(rng, kinds)(rng)]


def _about(rng: random.Random, text: str, pairs: list[Exchange]) -> list[Exchange]:
    """The text with the first question, then up to two more."""
    (first, answer), *more = pairs[: rng.randint(1, 3)]
    form = rng.choice(("{t}\n\n{q}", "{t}\n{q}", "Read this:\n{t}\n\n{q}", "{q}\n\n{t}"))
    return [(form.format(t=text, q=first), answer), *more]


def worlds(rng: random.Random) -> list[Exchange]:
    made = world(rng)
    return _about(rng, " ".join(made.told), questions(rng, made))


def rows(rng: random.Random) -> list[Exchange]:
    made = table(rng)
    return _about(rng, made.text(rng.choice(("bars", "commas", "lines"))), [question(rng, made) for _ in range(3)])


def remembered(rng: random.Random) -> list[Exchange]:
    """Facts, with or without sentences between them; one of them may be asked much later."""
    told = recall.facts(rng, rng.randint(1, 6))
    between = recall.filler(rng, rng.choice((0, 0, 30, 80)))
    text = " ".join(filter(None, (told[0].said, between, *(fact.said for fact in told[1:]))))
    asked = rng.sample(told, min(3, len(told)))
    return _about(rng, text, [(rng.choice(fact.asked), f"{fact.answer}.") for fact in asked])


SKILLS: tuple[tuple[Topic, int], ...] = (  # with how often
    (_asks(list_tasks.KINDS), 14), (_asks(digits.KINDS), 10), (_asks(ordering.KINDS), 6), (_asks(formats.KINDS), 24),
    (worlds, 7), (rows, 5), (remembered, 8),
)  # fmt: skip
