"""Rows of generated text: pure functions of their number, filled, in the shares that were asked for."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fathom.text.batch import digest
from fathom.text.bpe import train_bpe
from fathom.text.encoder import PlainEncoder
from fathom.text.fim import restored
from fathom.text.generated import GeneratedRows, sample
from fathom.text.mixture import Mixture
from fathom.text.packed import Noise
from fathom.text.prefetch import Prefetched
from fathom.text.ramp import Ramp
from fathom.text.synthetic.makers import MAKERS
from fathom.text.tokenizer import Tokenizer

BOS, EOS, LENGTH = 0, 1, 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    train_bpe([text for name in MAKERS for text in sample(name, 2e4, "tokenizer")], 900, out, digits="single")
    return out


def rows(folder: Path, seed: int = 1, length: int = LENGTH, **kw: Any) -> GeneratedRows:
    return GeneratedRows(PlainEncoder(str(folder)), bos=BOS, eos=EOS, length=length, seed=seed, **kw)


def documents(ids: list[int]) -> list[list[int]]:
    """Whole documents of a row, without BOS and EOS."""
    ends = [i for i, token in enumerate(ids) if token == EOS]
    starts = [0, *(end + 1 for end in ends)]
    return [ids[a + 1 : b] for a, b in zip(starts, ends, strict=False)]


def test_a_row_is_a_pure_function_of_its_number(folder: Path) -> None:
    one, two = rows(folder), rows(folder)
    forth = [one.row(n).tolist() for n in range(20)]
    assert [two.row(n).tolist() for n in reversed(range(20))] == forth[::-1]
    assert len({tuple(row) for row in forth}) == 20 and rows(folder, seed=2).row(0).tolist() != forth[0]
    with Prefetched(one, workers=3) as data:  # several threads at once
        assert [data.batch(n).tokens[0].tolist() for n in range(20)] == [row[:-1] for row in forth]


def test_rows_are_filled_with_whole_documents(folder: Path) -> None:
    data, tokenizer = rows(folder), Tokenizer.from_pretrained(folder)
    for number in range(60):
        row = data.row(number).tolist()
        assert len(row) == LENGTH + 1 and row[0] == BOS
        assert all(row[i + 1] == BOS for i, token in enumerate(row[:-1]) if token == EOS)
        for document in documents(row):
            assert tokenizer.encode_plain(tokenizer.decode(document)) == document
    batch = data.batch(3)
    assert batch.tokens.tolist() == [data.row(3)[:-1].tolist()] and batch.labels.tolist() == [data.row(3)[1:].tolist()]


def test_shares_are_of_tokens(folder: Path) -> None:
    alone = rows(folder, weights=dict.fromkeys(set(MAKERS) - {"digits"}, 0))
    assert alone.names == ["digits"] and "borrow" in Tokenizer.from_pretrained(folder).decode(alone.row(0).tolist())
    weights = dict.fromkeys(set(MAKERS) - {"stories", "tables"}, 0) | {"stories": 1, "tables": 6}
    data = rows(folder, length=6000, weights=weights)
    assert data.shares == pytest.approx({"stories": 0.5, "tables": 0.5})
    tokenizer, counts = Tokenizer.from_pretrained(folder), Counter[bool]()
    for number in range(10):
        row = data.row(number).tolist()
        for document in documents([*row, EOS]):  # the last one is cut, and counts with what is there
            counts[tokenizer.decode(document).startswith(("|", "Name"))] += len(document)
    assert 0.4 < counts[True] / counts.total() < 0.6


def test_fill_in_the_middle_and_split_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    noise = Noise.of(tokenizer, 0.5, 0.5)
    assert noise.fim is not None
    told, plain = 0, 0
    data = rows(folder, noise=Noise.of(tokenizer, 0.5, 0.0))
    for number in range(40):
        for document in documents(data.row(number).tolist()):
            if noise.fim.hole not in document:
                plain += 1
                continue
            told += 1
            whole = restored([BOS, *document, EOS], noise.fim)[1:-1]
            assert tokenizer.encode_plain(tokenizer.decode(whole)) == whole
    assert 0.35 < told / (told + plain) < 0.65
    both = rows(folder, noise=noise)
    assert len(both.row(0)) == LENGTH + 1 and both.row(0).tolist() == rows(folder, noise=noise).row(0).tolist()
    joined = np.array(list(noise.joined.parts))  # type: ignore[union-attr]
    count = [sum(int(np.isin(made.row(n), joined).sum()) for n in range(40)) for made in (rows(folder), both)]
    assert 0.3 < count[1] / count[0] < 0.7


def test_a_mixture_grows_with_its_ramp(folder: Path) -> None:
    """Its rows are those of a constant batch, cut into other steps."""
    main, other = rows(folder, seed=5), rows(folder, seed=6)
    ramp = Ramp(4, start=2, over=8 * LENGTH, length=LENGTH, multiple=2)
    grown, constant = (Mixture(main, other, rows=n, share=0.6) for n in (ramp, 1))
    number = 0
    for step in range(6):
        batch = grown.batch(step)
        assert len(batch.tokens) == ramp.rows(step)
        for row in range(len(batch.tokens)):
            assert digest(batch.rows(row, row + 1)) == digest(constant.batch(number))
            number += 1
    assert ramp.rows(0) == 2 and ramp.rows(5) == 4


def test_what_is_held_out_is_no_row(folder: Path) -> None:
    assert sample("people", 500, "heldout") == sample("people", 500, "heldout") != sample("people", 500, "0")
    held = set(sample("recall", 3e4, "heldout"))
    rng = random.Random(0)
    assert not held & {MAKERS["recall"](rng) for _ in range(300)}
