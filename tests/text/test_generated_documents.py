"""Generated documents: what they ask can be found in them, by reading them again; they are many and well formed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from itertools import pairwise

import pytest

from fathom.evals.needle_text import CITIES
from fathom.runtime import UserError
from fathom.text.synthetic.copying import alphabet, copying, pairs, repeats
from fathom.text.synthetic.dialogues import dialogue
from fathom.text.synthetic.makers import MAKERS, SHARES, shares
from fathom.text.synthetic.people import people
from fathom.text.synthetic.recall import dictionary, recall
from fathom.text.synthetic.tables import question, table
from fathom.text.synthetic.tool_talks import tool_dialogue, tool_text


def made(make: Callable[[random.Random], str], count: int = 300) -> list[str]:
    rng = random.Random("documents")
    return [make(rng) for _ in range(count)]


# What holds for every maker.

REPEATED = {"dialogues": 0.9, "copying": 0.97}  # short chats come again: "Hello!"


@pytest.mark.parametrize("name", MAKERS)
def test_many_different_documents(name: str) -> None:
    rng = random.Random(2)
    texts = [MAKERS[name](rng) for _ in range(2000)]
    assert len(set(texts)) >= 2000 * REPEATED.get(name, 0.98)
    assert all(text == text.strip() != "" and "<｜" not in text for text in texts)
    assert max(map(len, texts)) < 6000
    assert MAKERS[name](random.Random(5)) == MAKERS[name](random.Random(5))


def test_shares() -> None:
    assert set(SHARES) == set(MAKERS) and sum(SHARES.values()) == pytest.approx(1)
    assert shares({}) == pytest.approx(SHARES)
    changed = shares({"stories": 0, "digits": 2})
    assert "stories" not in changed and sum(changed.values()) == pytest.approx(1)
    assert changed["digits"] / changed["lists"] == pytest.approx(2 * SHARES["digits"] / SHARES["lists"])
    with pytest.raises(UserError, match=r"data.generated names books, known are stories, .*functions"):
        shares({"books": 1})
    with pytest.raises(UserError, match="leaves nothing"):
        shares(dict.fromkeys(MAKERS, 0))


def test_the_needles_words_are_held_out() -> None:
    text = "\n".join(text for name in ("recall", "people", "tables", "copying") for text in made(MAKERS[name]))
    assert "magic number" not in text.lower() and not re.search(rf"\b(?:{'|'.join(CITIES)})\b", text)


# Copies.


def test_repeats_repeat() -> None:
    for text in made(repeats):
        words = re.findall(r"\w+", text)
        words = [word for word in words if word not in ("Once", "more")] if "Once more" in text else words
        assert any(words == words[: len(words) // n] * n for n in range(2, 120) if len(words) % n == 0), text


def test_pairs_keep_their_values() -> None:
    for text in made(pairs):
        form = re.compile(r"\(?(\w+)(?: -> | is |: |=|, | )(\w+)\)?")
        known: dict[str, str] = {}
        assert all(known.setdefault(key, value) == value for key, value in form.findall(text)), text


def test_small_alphabets_are_as_frequent_as_large_ones() -> None:
    rng = random.Random(0)
    sizes = [len(set(alphabet(rng))) for _ in range(1000)]
    assert min(sizes) == 2 and max(sizes) > 40
    assert sum(size <= 8 for size in sizes) > 300 and sum(size > 16 for size in sizes) > 150


def test_an_induction_head_is_paid() -> None:
    """A word is what followed its neighbour the last time, far more often than in a story."""
    assert foretold(made(copying)) > 0.3 > 0.05 > foretold(made(MAKERS["stories"], 50))


def foretold(texts: list[str]) -> float:
    right = total = 0
    for text in texts:
        follower: dict[str, str] = {}
        words = text.split()
        for one, two in pairwise(words):
            right, total = right + (follower.get(one) == two), total + 1
            follower[one] = two
    return right / total


# Recall.


def test_recalled_values_were_said() -> None:
    asked = (
        (r"(?:What is the (\w+) of (\w+)\?|Tell me (\w+)'s (\w+)\.)", ""),
        (r"(?:What|Which thing) is in box (\d+)\?", "In box {0} there is an? {a}."),
        (r"(?:What is the word|Which word stands) for (\w+)\?", "The word for {0} is {a}."),
        (r"Where did (\w+) leave the ([\w -]+)\?", "{0} left the {1} in the {a}."),
        (r"Who is the best friend of (\w+)\?", "The best friend of {0} is called {a}."),
        (r"How many (\w+) does (\w+) have\?", "{1} has {a} {0}."),
    )
    counts, far = [0] * len(asked), 0
    for text in made(recall, 600):
        for number, (question_form, said) in enumerate(asked):
            for found in re.finditer(question_form + r"(?:\nAnswer: | A: |\nAssistant: | )([\w -]+)", text):
                *slots, answer = [slot for slot in found.groups() if slot is not None]
                if not said:
                    what, who = slots if found[1] else slots[::-1]
                    sentence = f"The {what} of {who} is {answer}."
                else:
                    sentence = said.format(*slots, a=answer)
                place = re.search(sentence.replace("(", r"\("), text)
                assert place and place.start() < found.start(), found[0]
                counts[number] += 1
                far += found.start() - place.start() > 800
    assert min(counts) >= 40 and far >= 60


def test_dictionaries_are_looked_up() -> None:
    looked = 0
    for text in made(dictionary):
        table_text, lines = text.rsplit("\n\n", 1)
        rows = [
            re.fullmatch(r'"?([^"]+?)"?(?: = |: | -> | )"?([^"]+?)"?', part)
            for part in re.split(r"\n|, |; ", table_text)
        ]
        known = {row[1]: row[2] for row in rows if row}
        for line in lines.splitlines():
            found = re.fullmatch(r"(?:What is the value of (.*)\?|Look up (.*)\.|(\S+)\?) (\S+)", line)
            back = re.fullmatch(r"(?:Which key has the value (.*)\?|Find the key of (.*)\.) (\S+)", line)
            key, value = ([x for x in (found or back).groups() if x])[:2]  # type: ignore[union-attr]
            assert known[key if found else value] == (value if found else key), text
            looked += 1
    assert looked > 500


# Worlds, tables.


def test_worlds_end_as_they_were_told() -> None:
    """The sentences are followed with a reading of their own."""
    answers = 0
    for text in made(people, 600):
        story, asked = text.split("\n\n", 1)
        place: dict[str, str] = {}
        lies: dict[str, str] = {}
        holds: dict[str, str] = {}
        job: dict[str, str] = {}
        pet: dict[str, str] = {}
        who = ""
        for sentence in re.findall(r"[^.]+\.", story):
            s = sentence.strip().removeprefix("Then ").rstrip(".")
            if m := re.fullmatch(
                r"(?:There is )?(\w+)(?: is|,| works as) an? (\w+)(?: (?:and has|and lives with) an? (\w+))?", s
            ):
                if m[1] in ("He", "She"):
                    raise AssertionError(s)
                who, job[m[1]] = m[1], m[2]
                if m[3]:
                    pet[m[1]] = m[3]
            elif m := re.fullmatch(r"(?:He|She) has an? (\w+)", s):
                pet[who] = m[1]
            elif m := re.fullmatch(r"(\w+) (?:went|walked|ran) to the (.+)", s):
                place[m[1]] = m[2]
            elif m := re.fullmatch(r"(\w+) (?:gave|handed) the (.+) to (\w+)", s):
                assert holds[m[2]] == m[1]
                holds[m[2]] = m[3]
            elif m := re.fullmatch(r"(\w+) (?:put down|dropped|left) the (.+?)(?: there)?", s):
                assert holds.pop(m[2]) == m[1]
                lies[m[2]] = place[m[1]]
            elif m := re.fullmatch(r"(\w+) (?:took|picked up|found) the (.+?)(?: there)?", s):
                assert m[2] not in holds and lies.pop(m[2], place[m[1]]) == place[m[1]]
                holds[m[2]] = m[1]
            else:
                raise AssertionError(s)
        for line in re.findall(r"([A-Z][^?]*\?)\s*(?:Answer: |A: |Assistant: )?([^\n]+)\.", asked):
            q, a = line[0].removeprefix("Question: ").removeprefix("Q: ").removeprefix("User: "), line[1]
            if m := re.fullmatch(r"Where is (\w+)\?", q):
                assert a in (f"{m[1]} is at the {place.get(m[1])}", f"The {m[1]} is at the {lies.get(m[1])}")
            elif m := re.fullmatch(r"Where is the (.+)\?", q):
                assert a == f"The {m[1]} is at the {lies[m[1]]}"
            elif m := re.fullmatch(r"Who has the (.+)\?", q):
                assert a == f"{holds[m[1]]} has the {m[1]}"
            elif m := re.fullmatch(r"What does (\w+) carry\?", q):
                mine = [thing for thing, owner in holds.items() if owner == m[1]]
                assert a == f"{m[1]} carries {'nothing' if not mine else f'the {mine[0]}'}" and len(mine) < 2
            elif m := re.fullmatch(r"What is (\w+)'s job\?", q):
                assert a.split()[-1] == job[m[1]]
            elif m := re.fullmatch(r"Who is the (\w+)\?", q):
                assert job[a.split()[0]] == m[1]
            elif m := re.fullmatch(r"Which pet does (\w+) have\?", q):
                assert a.split()[-1] == pet[m[1]]
            elif m := re.fullmatch(r"Who has an? (\w+)\?", q):
                assert pet[a.split()[0]] == m[1]
            else:
                raise AssertionError(q)
            answers += 1
    assert answers > 1000


def test_tables_are_read_right() -> None:
    rng = random.Random(3)
    for _ in range(1500):
        t = table(rng)
        q, a = question(rng, t)
        rows = [dict(zip([h.lower() for h in t.header], row, strict=True)) for row in t.rows]
        column = next((h for h in rows[0] if re.search(rf"\b{h}\b", q, re.I) and h != "name"), "name")
        named = [row for row in rows if re.search(rf"\b{row['name']}\b", q)]
        if q.startswith("Who has the highest"):
            best = max(rows, key=lambda row: int(row[column]))
            assert a == f"{best['name']} with {best[column]}"
        elif q.startswith("Who has the"):
            assert [row["name"] for row in rows if q == f"Who has the {column} {row[column]}?"] == [a]
        elif q.startswith("List"):
            assert a == ", ".join(row[column] for row in rows)
        elif q.startswith("Which names"):
            assert a == ", ".join(row["name"] for row in rows)
        elif q.startswith("How many"):
            assert a.endswith(f". {len(rows)}")
        elif q.startswith("Write"):
            assert a == ", ".join(named[0].values())
        else:
            assert a == named[0][column], (q, a)
        for form, mark in (
            ("bars", f"| {t.rows[-1][-1]} |"),
            ("commas", f",{t.rows[-1][-1]}"),
            ("lines", f": {t.rows[-1][-1]}"),
        ):
            assert t.text(form).endswith(mark)


# Dialogues.


def test_calls_fit_their_functions() -> None:
    rng = random.Random(4)
    called = 0
    for _ in range(500):
        talk = tool_dialogue(rng)
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in talk["tools"]}
        assert talk["messages"][-1]["role"] == "assistant" and len(schemas) == len(talk["tools"])
        for before, message in zip(talk["messages"], talk["messages"][1:], strict=False):
            for call in message.get("tool_calls", ()):
                schema, arguments = schemas[call["function"]["name"]], json.loads(call["function"]["arguments"])
                kinds = {"string": str, "integer": int}
                assert set(arguments) == set(schema["required"])
                assert all(isinstance(v, kinds[schema["properties"][k]["type"]]) for k, v in arguments.items())
                assert all(str(v) in before["content"] for v in arguments.values())
                called += 1
            if message["role"] == "assistant" and before["role"] == "tool" and before["content"][0] == "{":
                assert all(str(v) in message["content"] for v in json.loads(before["content"]).values())
    assert called > 300


def test_calls_as_text_are_json() -> None:
    for text in made(tool_text):
        calls = re.findall(r"^Call: (.*)$", text, re.M)
        assert all(f"Function: {json.loads(call)['name']}(" in text for call in calls)


def test_dialogues_have_the_new_tasks() -> None:
    rng = random.Random(6)
    text = "\n".join(message["content"] for _ in range(1500) for message in dialogue(rng))
    for words in (
        "JSON",
        "alphabetical",
        "letter by letter",
        "Who has the",
        "carry 1",
        "Repeat",
        "| Name |",
        "password of",
    ):
        assert words in text, words
