"""Every generated task: its answer is computed again from the question alone, by other code than made it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

import pytest

from fathom.text.synthetic import digits, formats, list_tasks, ordering
from fathom.text.synthetic.asking import Exchange
from fathom.text.synthetic.knowledge import COUNTRIES, LISTS

ORDER = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
TIMES = {"twice": 2, "three times": 3, "four times": 4, "five times": 5, "six times": 6}


def listed(question: str) -> list[str]:
    """The list after the last colon, or after `list`."""
    text = re.split(r": |list (?=\S+,)", question.rstrip("?"))[-1]
    return [item.strip() for item in text.split(",")]


def last(answer: str) -> str:
    return re.findall(r"\w+", answer)[-1]


# ---- lists ----------------------------------------------------------------------------------------------------------


def named(question: str) -> list[str]:
    """What the question says before the list, without its own words."""
    return re.findall(r"\S+", question.split(":")[0].rstrip("?"))


def check_repeat(q: str, a: str) -> None:
    assert q.split(": ", 1)[1] == a


def check_twice(q: str, a: str) -> None:
    word, times = re.fullmatch(r'(?:Write|Say) "(.+)" (.+)\.', q).groups()  # type: ignore[union-attr]
    assert a.split() == [word] * TIMES[times]


def check_reverse(q: str, a: str) -> None:
    assert a.split(", ")[::-1] == listed(q)


def check_count(q: str, a: str) -> None:
    row = re.search(r"(?:: | the list )(.*?)\??$", q)[1].split(", ")  # type: ignore[index]
    assert int(last(a)) == len(row) and all(f"{n} {item}" in a for n, item in enumerate(row, 1))


def check_occurrences(q: str, a: str) -> None:
    word = re.match(r"(?:How often does|How many times do you see|Count) (\S+)", q)[1]  # type: ignore[index]
    assert int(last(a)) == listed(q).count(word) >= 0 and a.count("(") == listed(q).count(word)


def check_ordinal(q: str, a: str) -> None:
    which = re.search(rf"\b({'|'.join([*ORDER, 'last'])})\b(?=.*:)", q)[1]  # type: ignore[index]
    assert a == listed(q)[-1 if which == "last" else ORDER.index(which)]


def check_neighbour(q: str, a: str) -> None:
    row, step = listed(q), -1 if "before" in q else 1
    word = re.search(r"(?:after|before|follows) (\S+?)(?: in this list)?:", q)[1]  # type: ignore[index]
    assert a == row[row.index(word) + step]


def check_member(q: str, a: str) -> None:
    word = re.match(r"(?:Is|Can you find) (\S+)|.* contain (\S+)\?$", q)
    inside = re.search(r"the list (.*) contain", q)
    row = inside[1].split(", ") if inside else listed(q)
    assert a.startswith("Yes") == ((word[1] or word[2]) in row)  # type: ignore[index]


def check_position(q: str, a: str) -> None:
    word = re.search(r"(?:position is|list is) (\S+?)(?: in)?:", q)[1]  # type: ignore[index]
    assert listed(q)[int(last(a)) - 1] == word


def check_remove(q: str, a: str) -> None:
    word = re.match(r"(?:Remove|Leave out|Write the list without) (\S+?)(?: from this list)?:", q)[1]  # type: ignore[index]
    assert a.split(", ") == [item for item in listed(q) if item != word]


def check_replace(q: str, a: str) -> None:
    found = re.match(r"(Replace|Write|Change) (\S+) (?:by|in place of|to) (\S+?)(?: in)?:", q)
    old, new = found.group(2, 3) if found[1] != "Write" else found.group(3, 2)  # type: ignore[index, union-attr]
    assert old in listed(q) and a.split(", ") == [new if item == old else item for item in listed(q)]


def check_append(q: str, a: str) -> None:
    word = re.match(r"(?:Add|Put) (\S+)", q)[1]  # type: ignore[index]
    assert a.split(", ") == ([*listed(q), word] if q.startswith("Add") else [word, *listed(q)])


def check_duplicate(q: str, a: str) -> None:
    assert [item for item in set(listed(q)) if listed(q).count(item) == 2] == [a]


def check_between(q: str, a: str) -> None:
    one, two = re.match(r"Which items are between (\S+) and (\S+):", q).groups()  # type: ignore[union-attr]
    row = listed(q)
    assert a.split(", ") == row[row.index(one) + 1 : row.index(two)]


# ---- arithmetic -----------------------------------------------------------------------------------------------------

EQUATION = re.compile(r"\b(\d+(?: [-+*] \d+)+) = (\d+)\b")
WORDS = {"plus": "+", "minus": "-", "x": "*", "times": "*", "divided by": "/"}


def true_equations(a: str) -> list[tuple[str, str]]:
    found = EQUATION.findall(a)
    assert all(eval(left) == int(right) for left, right in found), a
    return found


def check_sum(q: str, a: str) -> None:
    asked = re.search(r"\d+(?: (?:\+|-|\*|x|plus|minus|times) \d+)+", q)[0]  # type: ignore[index]
    for word, sign in WORDS.items():
        asked = asked.replace(f" {word} ", f" {sign} ")
    assert true_equations(a)[-1] == (asked, str(eval(asked)))
    for x, y, carried in re.findall(r"= (\d+), write (\d)(, carry 1)?", a):
        assert int(x) == 10 * bool(carried) + int(y)


def check_division(q: str, a: str) -> None:
    x, y = map(int, re.findall(r"\d+", q))
    true_equations(a)
    want = f"{x} / {y} = {x // y}." if x % y == 0 else f"{x // y} with remainder {x % y}."
    assert a.endswith(want)


def check_variables(q: str, a: str) -> None:
    known: dict[str, int] = {}
    for name, value in re.findall(r"(\w) = ([^.]+)\.", q):
        known[name] = eval(value, {}, known)
    true_equations(a)
    assert a.endswith(f"So {q[-2]} = {known[q[-2]]}.")


def check_facts(q: str, a: str) -> None:
    assert len(true_equations(a)) == len(a.splitlines()) >= 4


# ---- order ----------------------------------------------------------------------------------------------------------


def check_compare(q: str, a: str) -> None:
    x, y = map(int, re.findall(r"\d+", q))
    if x == y:
        assert a == f"Neither. {x} = {y}."
    else:
        assert int(last(a)) == (min(x, y) if "smaller" in q else max(x, y)) and f"{x} {'<' if x < y else '>'} {y}" in a


def check_sign(q: str, a: str) -> None:
    assert re.findall(r"\d+", q) == re.findall(r"\d+", a) and eval(a.replace(" = ", " == "))


def check_sort_numbers(q: str, a: str) -> None:
    down = "large to small" in q or "descending" in q
    assert list(map(int, a.split(", "))) == sorted(map(int, listed(q)), reverse=down)


def check_extreme(q: str, a: str) -> None:
    row = list(map(int, listed(q)))
    assert int(a) == (min(row) if re.search("smallest|lowest", q) else max(row))


def check_sort_words(q: str, a: str) -> None:
    assert a.split(", ") == sorted(listed(q), key=str.lower)


def check_next_letter(q: str, a: str) -> None:
    letter = re.search(r"(?:after|before) (\w) in", q)[1]  # type: ignore[index]
    assert ord(a) == ord(letter) + (1 if "after" in q else -1)


def check_next_number(q: str, a: str) -> None:
    row, more = list(map(int, listed(q))), list(map(int, a.split(", ")))
    asked = re.search(r"(?:with|Which|counting,) (\d)", q)
    assert len(more) == int(asked[1] if asked else 1)
    assert {y - x for x, y in zip([*row, *more], [*row, *more][1:], strict=False)} == {row[1] - row[0]}


def check_relation(q: str, a: str) -> None:
    above = dict(re.findall(r"(\w+) is \w+ than (\w+)\.", q))
    best = re.search(r"oldest|tallest|fastest|strongest|richest", q)
    assert (a in above and a not in above.values()) if best else (a in above.values() and a not in above)


# ---- formats --------------------------------------------------------------------------------------------------------

COUNTS = ["zero", "one", "two", "three", "four", "five", "six", "seven"]


def check_list_of(q: str, a: str) -> None:
    count, kind = re.match(r"(?:List|Name|Give me|Write down) (\w+) (?:of the )?(.*?)(?: as |\.|, )", q).groups()  # type: ignore[union-attr]
    if "JSON" in q:
        found = json.loads(a)
    elif "commas" in q:
        found = a.split(", ")
    else:
        found = [re.sub(r"^(\d\. |- )", "", line) for line in a.splitlines()]
        assert ("bullet" in q) == a.startswith("- ") and ("bullet" in q or a.startswith("1. "))
    assert len(found) == (COUNTS.index(count) if count in COUNTS else int(count)) == len(set(found))
    assert set(found) <= set(LISTS[kind])


def check_as_json(q: str, a: str) -> None:
    keys = re.search(r"(?:with the keys|object with|Extract) (.*?)(?: from this text| as JSON)?:", q)[1]  # type: ignore[index]
    found = json.loads(a)
    assert list(found) == keys.split(", ")
    assert all(re.search(rf"\b{re.escape(str(value))}\b", q) for value in found.values())
    assert "age" not in found or isinstance(found["age"], int)


def check_make_json(q: str, a: str) -> None:
    said = dict(re.findall(r"(\w+) is (\w+)", q))
    assert {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in json.loads(a).items()} == said


def check_read_json(q: str, a: str) -> None:
    key = re.search(r'(?:value of|What is|Read) "(\w+)"', q)[1]  # type: ignore[index]
    assert str(json.loads(re.search(r"\{.*\}", q)[0])[key]) == a  # type: ignore[index]


def check_yes_or_no(q: str, a: str) -> None:
    word, kind = re.match(r"(?:Does the word|Is) (.*?) (?:belong to|one of the) (.*?)\?", q).groups()  # type: ignore[union-attr]
    assert a == ("Yes" if word in LISTS[kind] else "No")


def check_edge_word(q: str, a: str) -> None:
    color, word = re.match(r"The .* is (\w+)\. What", q)[1], re.search(r'"(\w+)"', q)[1]  # type: ignore[index]
    assert color in a and (a.startswith(word) if "Begin" in q else a.endswith(word))


def check_one_word(q: str, a: str) -> None:
    if "first of these" in q:
        assert a == listed(q)[0]
    else:
        country = re.search(r"(?:capital of|continent is) (.*?)\?", q)[1]  # type: ignore[index]
        assert a == COUNTRIES[country]["continent" in q]


def check_case(q: str, a: str) -> None:
    text = q.split(": ", 1)[1]
    assert a == (text.lower() if re.search("small|lower", q.split(":")[0]) else text.upper())


def check_spell(q: str, a: str) -> None:
    word = re.sub(r'["?.]', "", q.split()[1 if q.startswith(("Write", "How")) and "letter" not in q.split()[1] else -1])
    if q.startswith("How is"):
        word = q.split()[2]
    assert a == word.replace("-", "") if "-" in q else a.replace("-", "") == word


def check_letters(q: str, a: str) -> None:
    if "letter " not in q and "often" not in q:
        word = re.search(r'(?:word "|letters of |word )(\w+)', q)[1]  # type: ignore[index]
        assert f"{len(word)} letters" in a and re.findall(r"\d (\w)[,.]", a) == list(word)
        return
    letter = re.search(r"(?:letter|does) (\w)\b", q)[1]  # type: ignore[index]
    word = re.findall(r"\w+", q)[-1]
    assert (
        int(last(a)) == word.count(letter) and "".join(re.findall(r"(\w)(?: \(\d\))?[,.]", a.split(" The")[0])) == word
    )


def check_which_letter(q: str, a: str) -> None:
    which, word = re.search(r"the (\w+) letter of (\w+)", q).groups()  # type: ignore[union-attr]
    assert last(a) == word[-1 if which == "last" else ORDER.index(which)] and a.startswith("-".join(word))


def check_which_word(q: str, a: str) -> None:
    which, text = re.search(r"the (\w+) word of this sentence: (.*)\.", q).groups()  # type: ignore[union-attr]
    assert a == text.split()[-1 if which == "last" else ORDER.index(which)]


def check_count_words(q: str, a: str) -> None:
    assert a.endswith(f"It has {len(q.split(': ')[1].split())} words.")


def check_quote(q: str, a: str) -> None:
    assert a in (q.split(": ", 1)[1], q.split(" What did")[0], f'"{q.split(": ", 1)[1]}"')


def check_letter_to(q: str, a: str) -> None:
    found = re.match(r"Write a short note from (\w+) to (\w+): (.*)\.|(\w+) wants to tell (\w+) that (.*)\. Write", q)
    sender, to, said = [x for x in found.groups() if x]  # type: ignore[union-attr]
    assert a == f"Dear {to},\n{said[0].upper()}{said[1:]}.\n{sender}"


CHECKS: dict[Callable[[random.Random], Exchange], Callable[[str, str], None]] = {
    list_tasks.repeat: check_repeat, list_tasks.twice: check_twice, list_tasks.reverse: check_reverse,
    list_tasks.count: check_count, list_tasks.occurrences: check_occurrences, list_tasks.ordinal: check_ordinal,
    list_tasks.neighbour: check_neighbour, list_tasks.member: check_member, list_tasks.position: check_position,
    list_tasks.remove: check_remove, list_tasks.replace: check_replace, list_tasks.append: check_append,
    list_tasks.duplicate: check_duplicate, list_tasks.between: check_between,
    digits.addition: check_sum, digits.subtraction: check_sum, digits.multiplication: check_sum,
    digits.division: check_division, digits.chain: check_sum, digits.variables: check_variables,
    digits.facts: check_facts,
    ordering.compare: check_compare, ordering.sign: check_sign, ordering.sort_numbers: check_sort_numbers,
    ordering.extreme: check_extreme, ordering.sort_words: check_sort_words, ordering.next_letter: check_next_letter,
    ordering.next_number: check_next_number, ordering.relation: check_relation,
    formats.list_of: check_list_of, formats.as_json: check_as_json, formats.make_json: check_make_json,
    formats.read_json: check_read_json, formats.yes_or_no: check_yes_or_no, formats.edge_word: check_edge_word,
    formats.one_word: check_one_word, formats.case: check_case, formats.spell: check_spell,
    formats.letters: check_letters, formats.which_letter: check_which_letter, formats.which_word: check_which_word,
    formats.count_words: check_count_words, formats.quote: check_quote, formats.letter_to: check_letter_to,
}  # fmt: skip
KINDS = [task for module in (list_tasks, digits, ordering, formats) for task, _ in module.KINDS]


@pytest.mark.parametrize("task", KINDS, ids=lambda task: task.__name__)
def test_answers(task: Callable[[random.Random], Exchange]) -> None:
    rng = random.Random(1)
    for _ in range(400):
        question, answer = task(rng)
        try:
            CHECKS[task](question, answer)
        except (AssertionError, TypeError, ValueError, KeyError, IndexError, AttributeError):
            pytest.fail(f"{question}\n{answer}")


def test_every_task_is_checked() -> None:
    assert set(KINDS) == set(CHECKS)
