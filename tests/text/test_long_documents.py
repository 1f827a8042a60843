"""Made-up long documents: what they ask was said before, and the needle test's words are not in them."""

from __future__ import annotations

import random
import re

import pytest

from fathom.evals.needle_text import CITIES, QUESTION, SENTENCE
from fathom.text.synthetic.long_documents import facts, long_document

DOCUMENTS = [long_document(random.Random(f"test/{i}"), 2500) for i in range(40)]


@pytest.mark.parametrize("words", [60, 400, 5000])
def test_length(words: int) -> None:
    for seed in range(5):
        assert len(long_document(random.Random(seed), words).split()) == pytest.approx(words, rel=0.1, abs=60)


def test_a_seed_gives_the_same_document() -> None:
    assert DOCUMENTS[3] == long_document(random.Random("test/3"), 2500) != DOCUMENTS[4]


def test_every_question_can_be_answered_from_before() -> None:
    patterns = (
        (r"Which number opens (\w+)'s (\w+)\? (\d+)\.", "of {0}'s {1} is {2}."),
        (r"How many (\w+(?: \w+)?) were in the ([\w ]+)\? They counted (\d+)\.", "In the {1} they counted {2} {0}."),
        (r"Where did (\w+) leave the ([\w -]+)\? In the ([\w ]+)\.", "{0} left the {1} in the {2}."),
        (r"This was (\w+)'s shopping list: ([\w ,]+)\.", "{0} wrote a shopping list: {1}."),
        (r"When does (\w+) want to come to the ([\w ]+)\? On (\w+ at \d+)", "{0} wants to come to the {1} on {2}"),
    )
    for pattern, said in patterns:
        asked, far = 0, 0
        for text in DOCUMENTS:
            for found in re.finditer(pattern, text):
                place = text.find(said.format(*found.groups()))
                assert 0 <= place < found.start(), found[0]
                asked, far = asked + 1, far + (found.start() - place > 4000)
        assert asked >= 20 and far >= 5, pattern


def test_no_two_facts_ask_the_same() -> None:
    told = facts(random.Random(1), 400)
    questions = [r.split("?")[0] for fact in told for r in fact.recalls if "?" in r]
    assert len(told) > 100 and len(questions) == len(set(questions))


def test_the_needles_words_are_held_out() -> None:
    text = " ".join(DOCUMENTS)
    for words in ("magic number", SENTENCE.split("{")[0], QUESTION.split("{")[0]):
        assert words.lower() not in text.lower()
    assert not [city for city in CITIES if re.search(rf"\b{city}\b", text)]
