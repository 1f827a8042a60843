"""Small tables and what can be read from them: a cell, a row by its value, a column, how many, the largest."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from fathom.text.synthetic.grammar import COLOURS, SNACKS, THINGS
from fathom.text.synthetic.knowledge import DAYS
from fathom.text.synthetic.vocabulary import CATEGORIES, code, names, number

COLUMNS: dict[str, Callable[[random.Random], str]] = {
    "Age": lambda rng: str(rng.randint(3, 99)),
    "Points": lambda rng: str(number(rng, 3)),
    "Price": lambda rng: str(number(rng, 3)),
    "Color": lambda rng: rng.choice(COLOURS),
    "Food": lambda rng: rng.choice(SNACKS),
    "Day": lambda rng: rng.choice(DAYS),
    "Thing": lambda rng: rng.choice(THINGS),
    "Animal": lambda rng: rng.choice(CATEGORIES["animals"]),
    "Job": lambda rng: rng.choice(CATEGORIES["jobs"]),
    "Code": code,
}
NUMERIC = ("Age", "Points", "Price")


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first column holds different names."""

    header: list[str]
    rows: list[list[str]]

    def text(self, form: str) -> str:
        """As `bars` (Markdown), `commas`, or `lines` ("Name: Anna, Age: 7")."""
        if form == "lines":
            return "\n".join(", ".join(f"{h}: {c}" for h, c in zip(self.header, r, strict=True)) for r in self.rows)
        if form == "commas":
            return "\n".join(",".join(row) for row in [self.header, *self.rows])
        lines = [f"| {' | '.join(row)} |" for row in [self.header, *self.rows]]
        return "\n".join([lines[0], "|" + "---|" * len(self.header), *lines[1:]])


def table(rng: random.Random) -> Table:
    """2 to 8 rows, 2 to 5 columns."""
    columns = rng.sample(list(COLUMNS), rng.randint(1, 4))
    people = names(rng, 2 + min(rng.randint(0, 6), rng.randint(0, 6)))
    return Table(["Name", *columns], [[who, *(COLUMNS[c](rng) for c in columns)] for who in people])


def question(rng: random.Random, t: Table) -> tuple[str, str]:
    """One question about a table, with its answer."""
    at, row = rng.randrange(1, len(t.header)), rng.choice(t.rows)
    column, cells = t.header[at], [r[at] for r in t.rows]
    roll = rng.random()
    if roll < 0.5:
        ask = rng.choice(
            ("What is the {c} of {n}?", "{n}: {c}?", "Which {c} does {n} have?", "Look up the {c} of {n}.")
        )
        return ask.format(c=column.lower(), n=row[0]), row[at]
    if roll < 0.65 and cells.count(row[at]) == 1:
        return f"Who has the {column.lower()} {row[at]}?", row[0]
    if roll < 0.75:
        return f"List the column {column}.", ", ".join(cells)
    if roll < 0.83:
        return "Which names are in the table?", ", ".join(r[0] for r in t.rows)
    if roll < 0.9:
        return "How many rows are there?", f"{', '.join(f'{n} {r[0]}' for n, r in enumerate(t.rows, 1))}. {len(t.rows)}"
    values = [int(c) for c in cells] if column in NUMERIC else []
    if values and values.count(max(values)) == 1:
        best = t.rows[values.index(max(values))][0]
        return f"Who has the highest {column.lower()}?", f"{best} with {max(values)}"
    return f"Write the row of {row[0]}.", ", ".join(row)


def tables(rng: random.Random) -> str:
    """A table and some questions."""
    made = table(rng)
    form, between = rng.choice((("Question: {q}\nAnswer: {a}", "\n"), ("{q} {a}", "\n"), ("Q: {q}\nA: {a}", "\n\n")))
    pairs = {q: a for q, a in (question(rng, made) for _ in range(rng.randint(2, 7)))}
    said = between.join(form.format(q=q, a=a) for q, a in pairs.items())
    return f"{made.text(rng.choice(('bars', 'bars', 'commas', 'lines')))}\n\n{said}"
