"""Written arithmetic: sums and differences column by column with carries, products in parts, chains; and plain facts.

A model that says one token at a time cannot carry in its head: the sum's first digit depends on all later ones. So it
works from the ones up, as on paper, and each line repeats what is written so far; the last line only copies. Small
numbers are answered at once. Every `a + b = c` here is true.

    347 + 285: 7 + 5 = 12, write 2, carry 1: 2. 4 + 8 + 1 = 13, write 3, carry 1: 32. 3 + 2 + 1 = 6, write 6: 632.
    So 347 + 285 = 632.
"""

from __future__ import annotations

import random
from itertools import zip_longest

from fathom.text.synthetic.asking import Exchange
from fathom.text.synthetic.vocabulary import number

_ASK = ("What is {}?", "How much is {}?", "Calculate {}.", "{} = ?", "Work out {}.", "{}", "Please compute {}.", "{} =")


def _question(rng: random.Random, expression: str) -> str:
    return rng.choice(_ASK).format(expression)


def add_steps(a: int, b: int) -> str:
    """Column by column, ending in `a + b = c`."""
    steps, written, carry = [], "", 0
    for x, y in zip_longest(str(a)[::-1], str(b)[::-1], fillvalue=None):
        terms = [int(d) for d in (x, y) if d is not None] + [carry] * (carry > 0)
        total = sum(terms)
        digit, carry = total % 10, total // 10
        written = f"{digit}{written}"
        sum_of = f"{' + '.join(map(str, terms))} = {total}" if len(terms) > 1 else f"{total}"
        steps.append(f"{sum_of}, write {digit}{', carry 1' if carry else ''}: {written}")
    if carry:
        steps.append(f"1: 1{written}")
    return f"{'. '.join(steps)}. So {a} + {b} = {a + b}"


def subtract_steps(a: int, b: int) -> str:
    """Column by column with borrowing, ending in `a - b = c`; b is not above a."""
    steps, written, borrow = [], "", 0
    below = str(b).zfill(len(str(a)))
    for x, y in zip(map(int, str(a)[::-1]), map(int, below[::-1]), strict=True):
        top = x - borrow
        said = f"{x} - 1 = {top}, " if borrow and x else "0 - 1: borrow, 10 - 1 = 9, " if borrow else ""
        top, owed = (top, False) if top >= 0 else (9, True)
        short = top < y
        said += f"{top} - {y}: borrow, {top + 10} - {y} = {top + 10 - y}" if short else f"{top} - {y} = {top - y}"
        written = f"{(top - y) % 10}{written}"
        borrow = int(short or owed)
        steps.append(f"{said}: {written}")
    return f"{'. '.join(steps)}. So {a} - {b} = {a - b}"


def times_digit(a: int, b: int) -> str:
    """A product with a one-digit number by tens and ones, ending in `a * b = c`."""
    if a < 11 or not b:
        return f"{a} * {b} = {a * b}"
    parts = [int(d) * 10**k for k, d in enumerate(str(a)[::-1]) if d != "0"][::-1]
    said = [f"{part} * {b} = {part * b}" for part in parts]
    if len(parts) > 1:
        said.append(f"{' + '.join(str(part * b) for part in parts)} = {a * b}")
    return f"{'. '.join(said)}. So {a} * {b} = {a * b}"


def addition(rng: random.Random) -> Exchange:
    a, b = number(rng), number(rng)
    sign = rng.choice((" + ", " + ", " plus "))
    question = _question(rng, f"{a}{sign}{b}")
    if a + b < 20 or (a + b < 100 and rng.random() < 0.3):
        return question, rng.choice(("{} + {} = {}.", "{} + {} = {}")).format(a, b, a + b)
    return question, f"{add_steps(a, b)}."


def subtraction(rng: random.Random) -> Exchange:
    b, a = sorted((number(rng), number(rng)))
    question = _question(rng, f"{a}{rng.choice((' - ', ' - ', ' minus '))}{b}")
    if a < 20 or (a < 100 and rng.random() < 0.3):
        return question, f"{a} - {b} = {a - b}."
    return question, f"{subtract_steps(a, b)}."


def multiplication(rng: random.Random) -> Exchange:
    a, b = rng.choice(((1, 1), (2, 1), (2, 1), (2, 2), (3, 1)))
    x, y = rng.randrange(10**a), rng.randrange(10**b)
    question = _question(rng, f"{x}{rng.choice((' * ', ' x ', ' times '))}{y}")
    if y < 10:
        return question, f"{times_digit(x, y)}."
    tens, ones = y // 10 * 10, y % 10
    first, second = x * tens, x * ones
    steps = [f"{x} * {y // 10} = {x * (y // 10)}, so {x} * {tens} = {first}"]
    if ones:
        steps += [times_digit(x, ones), add_steps(first, second)]
    return question, f"{'. '.join(steps)}. So {x} * {y} = {x * y}."


def division(rng: random.Random) -> Exchange:
    b = rng.randint(1, 12)
    a = rng.randint(0, 12 * b)
    whole, rest = divmod(a, b)
    question = _question(rng, rng.choice((f"{a} / {b}", f"{a} divided by {b}")))
    if not rest:
        return question, f"{whole} * {b} = {a}, so {a} / {b} = {whole}."
    return (
        question,
        f"{whole} * {b} = {whole * b} and {a} - {whole * b} = {rest}, so it is {whole} with remainder {rest}.",
    )


def chain(rng: random.Random) -> Exchange:
    """Plus and minus from left to right, never below zero."""
    high = rng.choice((9, 9, 20, 50))
    total = rng.randint(0, high)
    said, steps = str(total), []
    for _ in range(rng.randint(2, 5)):
        term = rng.randint(0, high)
        sign = "-" if term <= total and rng.random() < 0.5 else "+"
        new = total + term if sign == "+" else total - term
        steps.append(f"{total} {sign} {term} = {new}")
        said, total = f"{said} {sign} {term}", new
    return _question(rng, said), f"{'. '.join(steps)}. So {said} = {total}."


def variables(rng: random.Random) -> Exchange:
    """a = 5. b = a + 3. What is b?"""
    letters = rng.sample("abcdefghkmnpqrstuvwxyz", rng.randint(2, 5))
    known = {letters[0]: rng.randint(0, 20)}
    told, steps = [f"{letters[0]} = {known[letters[0]]}"], [f"{letters[0]} is {known[letters[0]]}"]
    for letter in letters[1:]:
        of = rng.choice(list(known))
        term = rng.randint(0, 9)
        sign = "-" if term <= known[of] and rng.random() < 0.4 else "+"
        known[letter] = known[of] + term if sign == "+" else known[of] - term
        told.append(f"{letter} = {of} {sign} {term}")
        steps.append(f"{letter} is {known[of]} {sign} {term} = {known[letter]}")
    return f"{'. '.join(told)}. What is {letter}?", f"{'. '.join(steps)}. So {letter} = {known[letter]}."


def facts(rng: random.Random) -> Exchange:
    """Many small equations without words; as an exchange only so that it stands beside the others."""
    sign = rng.choice("+-*")
    high = rng.choice((9, 12, 20)) if sign != "*" else 10
    rows = []
    for _ in range(rng.randint(4, 12)):
        a, b = rng.randint(0, high), rng.randint(0, high)
        if sign == "-":
            a += b
        rows.append(f"{a} {sign} {b} = {a + b if sign == '+' else a - b if sign == '-' else a * b}")
    names = {"+": "sums", "-": "differences", "*": "products"}
    ask = rng.choice(("Write some {}.", "Give me a few {}.", "Some {}:", "Practise {}."))
    return ask.format(names[sign]), "\n".join(rows)


KINDS = (
    (addition, 8), (subtraction, 7), (multiplication, 6), (division, 2), (chain, 4), (variables, 3), (facts, 3),
)  # fmt: skip
