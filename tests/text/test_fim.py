"""Fill-in-the-middle and joined tokens: nothing is lost, and undoing it gives the text back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.runtime import UserError
from fathom.text.fim import FimTokens, Joined, chosen, cuts, rearranged, restored
from fathom.text.tokenizer import Tokenizer

BOS, EOS = 0, 1
TOKENS = FimTokens(5, 6, 7)


def applied(document: list[int], first: int, second: int) -> list[int]:
    out: list[int] = []
    for piece in rearranged(len(document), first, second, TOKENS):
        out += [piece] if isinstance(piece, int) else document[piece[0] : piece[1]]
    return out


def test_the_order_of_the_report() -> None:
    assert applied([BOS, 10, 11, 12, 13, 14, EOS], 1, 3) == [BOS, 5, 10, 6, 13, 14, 7, 11, 12, EOS]


@given(st.lists(st.integers(10, 99), max_size=30), st.integers(0, 2**32))
def test_round_trip(body: list[int], key: int) -> None:
    document = [BOS, *body, EOS]
    first, second = cuts(len(body), [key])
    assert 0 <= first <= second <= len(body) and (first, second) == cuts(len(body), [key])
    told = applied(document, first, second)
    assert restored(told, TOKENS) == document
    assert len(told) == len(document) + 3 and [t for t in told if t in TOKENS] == list(TOKENS)


def test_cuts_are_uniform() -> None:
    found = np.array([cuts(9, [1, n]) for n in range(4000)])
    counts = np.bincount(found.ravel(), minlength=10)
    assert counts.min() > 0.8 * 800 and counts.max() < 1.2 * 800  # ten places for 8000 cuts


@pytest.mark.parametrize(("documents", "rate"), [(1000, 0.1), (30, 0.5), (7, 1.0), (5, 0.01), (0, 0.1)])
def test_every_epoch_has_its_share_and_others_than_the_last(documents: int, rate: float) -> None:
    count = round(rate * documents)
    epochs = [chosen(documents, rate, 3, 0, epoch) for epoch in range(10)]
    assert [int(flags.sum()) for flags in epochs] == [count] * 10
    if count > 0 and 10 * count <= documents:
        assert np.sum(epochs, axis=0).max() == 1  # no document twice before all were told
    assert np.array_equal(chosen(documents, rate, 3, 0, 7), epochs[7])
    if documents == 1000:
        assert not np.array_equal(chosen(documents, rate, 4, 0, 0), epochs[0])
        assert not np.array_equal(chosen(documents, rate, 3, 1, 0), epochs[0])


def test_control_tokens_by_name(v3_tokenizer: Tokenizer) -> None:
    assert FimTokens.of(v3_tokenizer) == (128801, 128800, 128802)


# ---- joined tokens


@pytest.fixture(scope="module")
def joined(v3_tokenizer: Tokenizer) -> Joined:
    return Joined.of(v3_tokenizer)


def test_joined_tokens_of_v3(v3_tokenizer: Tokenizer, joined: Joined) -> None:
    (dot,) = v3_tokenizer.encode(".")
    (lines,) = v3_tokenizer.encode("\n\n")
    assert joined.parts[339] == [dot, lines]  # 339 is ".\n\n"
    assert 100 < len(joined.parts) < 2000
    for token, parts in joined.parts.items():
        text = v3_tokenizer.decode([token])
        assert v3_tokenizer.decode(parts) == text and text[-1] in "\r\n" and not text.isspace()
        assert not set(parts) & set(joined.parts) and token not in v3_tokenizer.control_tokens
    # The definition, once more: what reads as signs followed by line breaks, and is one token.
    for text in (".\n", "。\n", ");\n\n", '"\n', " {\n", "!\n\n", ":\r\n"):
        ids = v3_tokenizer.encode(text)
        assert len(ids) > 1 or ids[0] in joined.parts, text
    for text in (".", "\n\n", " the", "\n", "1", "a\n"):
        assert not set(v3_tokenizer.encode(text)) & set(joined.parts)


TEXT = st.lists(st.sampled_from(["The end", ".\n\n", "。\n", " {\n", ");\n\n", "\n", "x = 1", "!\n", " ", "é", "漢字"]))


@given(TEXT, st.floats(0, 1), st.integers(0, 1000))
def test_splitting_keeps_the_text(
    v3_tokenizer: Tokenizer, joined: Joined, pieces: list[str], rate: float, seed: int
) -> None:
    text = "".join(pieces)
    row = np.array(v3_tokenizer.encode(text), dtype=np.int64)
    split = joined.split(row, rate, np.random.Generator(np.random.PCG64(seed)))
    assert v3_tokenizer.decode(split.tolist()) == text and len(split) >= len(row)
    every = joined.split(row, 1.0, np.random.Generator(np.random.PCG64(seed)))
    assert not set(every.tolist()) & set(joined.parts)
    assert joined.split(row, 0.0, np.random.Generator(np.random.PCG64(seed))).tolist() == row.tolist()


def test_the_share_that_is_split() -> None:
    joined = Joined({50: [1, 2]})
    row = np.array([50, 3] * 5000)
    split = joined.split(row, 0.2, np.random.Generator(np.random.PCG64(0)))
    assert 0.18 < (len(split) - len(row)) / 5000 < 0.22
    assert [t for t in split.tolist() if t == 3] == [3] * 5000


def test_a_tokenizer_without_control_tokens() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    bare = Tokenizer(Backend(models.BPE()))
    with pytest.raises(UserError, match=r"no token .*fim_begin.*data\.fim_rate"):
        FimTokens.of(bare)
    assert Joined.of(bare).parts == {}
