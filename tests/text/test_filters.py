"""Normalisation, the rules, and near duplicates."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.runtime import UserError
from fathom.text.dedup import NearDuplicates, words
from fathom.text.filters import Rules, letters, normalise, repeated_lines, repeated_phrases

HINDI = "हिन्दी में लिखा गया एक वाक्य, जो काफ़ी लंबा भी है और सही भी।"
CHINESE = "这是一个关于船的故事，" + "".join(map(chr, range(0x4E00, 0x4E40)))
PROSE = "The old boat lay on the sand, and nobody in the village could say who had brought it there."


def test_normalise() -> None:
    assert normalise("e\u0301te\u0301\ufeff\x07\r\nif x:\r\n\ty = 1  \t\r\n\r\n\r\n\r\n\r\nend\ud800\n") == (
        "été\nif x:\n\ty = 1\n\n\nend"
    )


@given(st.text())
def test_normalise_twice_is_once(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    once.encode()  # nothing is left that UTF-8 cannot write


@pytest.mark.parametrize(
    ("text", "verdict"),
    [(PROSE, None), ("short", "short"), (PROSE * 300, "long"), ("1 + ... ??? !!! ### " * 5, "letters"),
     (CHINESE, None), (HINDI, None),
     ("\n".join([PROSE] * 3), "lines"), ("buy it now at our shop today " * 4, "phrases")],
)  # fmt: skip
def test_rules(text: str, verdict: str | None) -> None:
    assert Rules(max_chars=20_000).verdict(text) == verdict


def test_the_loosest_thresholds_accept_everything() -> None:
    rules = Rules(0, 10**9, 0.0, 1.0, 1.0)
    assert all(rules.verdict(text) is None for text in ("", "?", "a\na\na", "x " * 1000))


def test_measures() -> None:
    assert letters("ab1_ .!") == 3 / 6 and letters("") == 0 and letters("नि") == 1
    assert repeated_lines("ab\ncdef\n ab\nab") == 4 / 10
    assert repeated_phrases(list("abcdefabcde")) == pytest.approx(1 / 7) and repeated_phrases(list("abcd")) == 0
    assert words("Ab-c 12 船和水") == ["ab", "c", "12", "船", "和", "水"]


@pytest.mark.parametrize(
    "wrong", [{"min_letters": 1.5}, {"max_repeated_lines": -1.0}, {"min_chars": 9, "max_chars": 8}]
)
def test_wrong_thresholds(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Rules(**wrong)  # type: ignore[arg-type]


# ---- near duplicates


def text_of(rng: random.Random, number: int) -> list[str]:
    return [f"w{rng.randrange(3000)}" for _ in range(number)]


def changed(rng: random.Random, text: list[str], number: int) -> list[str]:
    out = list(text)
    for place in rng.sample(range(len(text)), number):
        out[place] = "other"
    return out


def similarity(a: list[str], b: list[str]) -> float:
    one, two = ({tuple(t[i : i + 5]) for i in range(len(t) - 4)} for t in (a, b))
    return len(one & two) / len(one | two)


def test_near_duplicates_by_their_true_similarity() -> None:
    """Against the definition: above the threshold found, below it not, with the width of an estimate in between."""
    rng = random.Random(0)
    found: dict[str, list[bool]] = {"above": [], "below": []}
    for _ in range(150):
        text = text_of(rng, 300)
        other = changed(rng, text, rng.choice([1, 2, 3, 10, 15, 25]))
        true = similarity(text, other)
        seen = NearDuplicates(0.8)
        assert seen.verdict(seen.mark(text)) is None
        if abs(true - 0.8) > 0.07:
            found["above" if true > 0.8 else "below"].append(seen.verdict(seen.mark(other)) == "near")
    assert len(found["above"]) > 50 and sum(found["above"]) >= 0.98 * len(found["above"])
    assert len(found["below"]) > 50 and sum(found["below"]) <= 0.05 * len(found["below"])


def test_copies_and_the_first_stays() -> None:
    seen = NearDuplicates()
    text = "One two three."
    verdicts = [seen.verdict(seen.mark(words(t))) for t in (text, "one, TWO   three!", "One two four.", text)]
    assert verdicts == [None, "copy", None, "copy"]
    rng = random.Random(1)
    long = [text_of(rng, 100) for _ in range(50)]
    assert all(seen.verdict(seen.mark(t)) is None for t in long)
    assert all(seen.verdict(seen.mark([*t, "more"])) == "near" for t in long)


def test_a_wrong_similarity_or_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="similarity"):
        NearDuplicates(1.5)
    monkeypatch.setitem(sys.modules, "rensa", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"pip install rensa.*--no-dedup"):
        NearDuplicates()
