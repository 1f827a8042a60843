"""Every kind of generated document by its name, and how much of each there is unless a recipe says otherwise."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from fathom.runtime import UserError
from fathom.text.synthetic import arithmetic, digits, formats, list_tasks, ordering
from fathom.text.synthetic.asking import document
from fathom.text.synthetic.copying import copying
from fathom.text.synthetic.dialogues import as_text, dialogue
from fathom.text.synthetic.people import people
from fathom.text.synthetic.recall import recalled
from fathom.text.synthetic.stories import story
from fathom.text.synthetic.tables import tables
from fathom.text.synthetic.tool_talks import tool_text

Maker = Callable[[random.Random], str]


def _story(rng: random.Random) -> str:
    made = story(rng)
    return f"{made.title}\n\n{made.text}" if rng.random() < 0.3 else made.text


def _arithmetic(rng: random.Random) -> str:
    return "\n\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in (
        arithmetic.exchange(rng) for _ in range(rng.randint(3, 8))))  # fmt: skip


MAKERS: dict[str, Maker] = {
    "stories": _story,
    "dialogues": lambda rng: as_text(dialogue(rng)),
    "arithmetic": _arithmetic,
    "copying": copying,
    "recall": recalled,
    "people": people,
    "tables": tables,
    "lists": lambda rng: document(rng, list_tasks.KINDS),
    "digits": lambda rng: document(rng, digits.KINDS),
    "ordering": lambda rng: document(rng, ordering.KINDS),
    "formats": lambda rng: document(rng, formats.KINDS),
    "functions": tool_text,
}
SHARES: dict[str, float] = {  # of the generated tokens
    "stories": 0.18, "dialogues": 0.18, "arithmetic": 0.04, "copying": 0.12, "recall": 0.11, "people": 0.08,
    "tables": 0.03, "lists": 0.06, "digits": 0.09, "ordering": 0.03, "formats": 0.06, "functions": 0.02,
}  # fmt: skip


def shares(weights: Mapping[str, float]) -> dict[str, float]:
    """The share of each maker; `weights` are factors, as for natural sources. Unknown names are a UserError."""
    if unknown := sorted(weights.keys() - MAKERS.keys()):
        raise UserError(f"data.generated names {', '.join(unknown)}, known are {', '.join(MAKERS)}")
    found = {name: share * weights.get(name, 1.0) for name, share in SHARES.items()}
    total = sum(found.values())
    if not total > 0:
        raise UserError("data.generated leaves nothing of the generated kinds; give at least one a weight above 0")
    return {name: share / total for name, share in found.items() if share > 0}
