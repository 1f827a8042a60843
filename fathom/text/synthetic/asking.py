"""Questions with answers as documents: a few in a row, of one kind (the form is then known) or of several.

A task is a function of a random generator that returns (question, answer). The same tasks make dialogues for
fine-tuning (skills.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Exchange = tuple[str, str]  # question, answer
Task = Callable[[random.Random], Exchange]
Kinds = Sequence[tuple[Task, int]]  # with how often

FORMS = (  # between a question and its answer, before the next question
    ("Question: {q}\nAnswer: {a}", "\n\n"), ("Q: {q}\nA: {a}", "\n"), ("User: {q}\nAssistant: {a}", "\n"),
    ("{q}\n{a}", "\n\n"), ("Task: {q}\nSolution: {a}", "\n\n"), ("- {q}\n- {a}", "\n"),
)  # fmt: skip
LONGEST = 1400  # characters from which on no further question is asked


def pick(rng: random.Random, kinds: Kinds) -> Task:
    """One of the tasks, by weight."""
    return rng.choices([task for task, _ in kinds], [weight for _, weight in kinds])[0]


def document(rng: random.Random, kinds: Kinds) -> str:
    """Some exchanges in one of the forms."""
    one = pick(rng, kinds) if rng.random() < 0.5 else None
    form, joint = rng.choice(FORMS)
    parts: list[str] = []
    size = 0
    for _ in range(rng.randint(2, 8)):
        question, answer = (one or pick(rng, kinds))(rng)
        parts.append(form.format(q=question, a=answer))
        size += len(parts[-1])
        if size > LONGEST:
            break
    return joint.join(parts)
