"""Rows of the mixture with rearranged documents and split tokens, against streams that are rearranged as a whole."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.runtime import UserError
from fathom.text.batch import digest
from fathom.text.fim import FimTokens, Joined, chosen, cuts
from fathom.text.packed import BLOCK, Noise, PackedDataset, permutation
from fathom.text.prefetch import Prefetched
from fathom.text.ramp import Ramp
from fathom.text.shards import Stream

BOS, EOS = 0, 1
FIM = FimTokens(2, 3, 4)
JOINED, DOT, BREAK = 5, 6, 7


def stream(lengths: list[int], first: int = 100, shards: int = 1, joined: int = 0) -> Stream:
    """Documents of counted tokens; every `joined`-th token is a joined one."""
    documents = []
    for length in lengths:
        body = [JOINED if joined and n % joined == 0 else n for n in range(first, first + length)]
        documents.append(np.array([BOS, *body, EOS], dtype=np.uint32))
        first += length
    files, indices = [], []
    for part in np.array_split(np.arange(len(documents)), shards):
        chosen_ones = [documents[i] for i in part]
        files.append(np.concatenate(chosen_ones))
        indices.append(np.cumsum([0, *map(len, chosen_ones[:-1])]))
    return Stream(files, indices)


def told(source: Stream, number: int, epoch: int, rate: float, seed: int) -> list[int]:
    """The whole rearranged stream of an epoch, the plain way."""
    starts = source.starts.tolist()
    flags = chosen(len(starts) - 1, rate, seed, number, epoch)
    out: list[int] = []
    for n, (start, end) in enumerate(itertools.pairwise(starts)):
        document = source[start:end].tolist()
        if flags[n]:
            a, b = cuts(len(document) - 2, [seed, 5, number, epoch, n])
            body = document[1:-1]
            out += [BOS, FIM.begin, *body[:a], FIM.hole, *body[b:], FIM.end, *body[a:b], EOS]
        else:
            out += document
    return out


# ---- shards as one stream


@given(st.lists(st.integers(0, 6), min_size=4, max_size=20), st.integers(1, 4), st.data())
def test_a_stream_of_shards_is_one_sequence(lengths: list[int], shards: int, data: st.DataObject) -> None:
    whole, cut = stream(lengths), stream(lengths, shards=shards)
    assert len(cut) == len(whole) and cut.tolist() == whole.tolist() and cut.starts.tolist() == whole.starts.tolist()
    start, end = (data.draw(st.integers(-3, len(whole) + 3)) for _ in range(2))
    assert cut[start:end].tolist() == whole.tolist()[start:end]
    assert [whole[s : s + 1].tolist() for s in whole.starts[:-1]] == [[BOS]] * len(lengths)
    with pytest.raises(IndexError):
        cut[0:4:2]


# ---- the draw


def test_the_draw_is_the_long_plan_cut_into_blocks() -> None:
    """The definition: one uniform number per row, all of them from the first on; occurrences counted one by one."""
    sources = {"a": np.arange(4000), "b": np.arange(9000, 10_500), "c": np.arange(50_000, 50_300)}
    data = PackedDataset(sources, rows=64, length=16, seed=9, weights={"b": 2.0})
    count = 2 * BLOCK + 200
    uniform = np.random.Generator(np.random.PCG64([9, 1])).random(count)
    plan = np.searchsorted(np.cumsum(data.shares), uniform * (1 - 1e-12))
    for step in (count // 64 - 1, 0, BLOCK // 64 - 1, BLOCK // 64, 3, 2 * BLOCK // 64):
        batch, places = data.batch(step), data.places(step)
        for r in range(0, 64, 7):
            row = step * 64 + r
            name, tokens = "abc"[plan[row]], sources["abc"[plan[row]]]
            windows = (len(tokens) - 1) // 16
            epoch, index = divmod(int((plan[:row] == plan[row]).sum()), windows)
            window = permutation(9, int(plan[row]), epoch, windows)[index]
            assert places[r] == (name, epoch, window)
            assert batch.tokens[r].tolist() == tokens[window * 16 : window * 16 + 16].tolist()


def test_shares_converge() -> None:
    sources = {"a": np.arange(5000), "b": np.arange(5000), "c": np.arange(2500)}
    data = PackedDataset(sources, rows=5000, length=8, seed=0, weights={"a": 0.5, "c": 3.0})
    wanted = np.array([2500, 5000, 7500]) / 15_000
    for steps, tolerance in ((1, 0.03), (8, 0.01)):
        names = [place.source for step in range(steps) for place in data.places(step)]
        shares = np.array([names.count(name) for name in "abc"]) / len(names)
        assert np.abs(shares - wanted).max() < tolerance


# ---- noise


def made(rate: float = 0.3, split: float = 0.0, **changes: Any) -> PackedDataset:
    random = np.random.Generator(np.random.PCG64(0))
    streams = {
        "long": stream(random.integers(0, 90, 40).tolist(), 1000, shards=3, joined=9),
        "short": stream(random.integers(0, 9, 60).tolist(), 9000, joined=4),
    }
    noise = Noise(rate, split, FIM, Joined({JOINED: [DOT, BREAK]}))
    return PackedDataset(streams, **({"rows": 6, "length": 16, "seed": 7, "noise": noise} | changes))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_rows_are_windows_of_the_rearranged_stream(rate: float) -> None:
    data = made(rate)
    seen = set()
    for step in (0, 1, 5, 17, 26, 33, 60):
        batch = data.batch(step)
        assert torch.equal(batch.tokens[:, 1:], batch.labels[:, :-1])
        for tokens, place in zip(batch.tokens.tolist(), data.places(step), strict=True):
            number = data.names.index(place.source)
            source = data.streams[place.source]
            assert isinstance(source, Stream)
            whole = told(source, number, place.epoch, rate, 7)
            assert tokens == whole[place.window * 16 : place.window * 16 + 16]
            seen.add(place)
    assert len({place.epoch for place in seen}) > 2  # more than one way of telling it was tried


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_an_epoch_holds_every_window_of_the_rearranged_stream_once(rate: float) -> None:
    source = stream([5, 40, 0, 3, 70, 11, 2, 2, 33] * 4)
    data = PackedDataset({"a": source}, rows=1, length=8, seed=3, noise=Noise(rate, 0.0, FIM))
    for epoch in range(3):
        whole = told(source, 0, epoch, rate, 3)
        windows = (len(whole) - 1) // 8
        rows = [tuple(data.batch(epoch * windows + n).tokens[0].tolist()) for n in range(windows)]
        assert sorted(rows) == sorted(tuple(whole[w * 8 : w * 8 + 8]) for w in range(windows))


def joined_again(row: list[int]) -> list[int]:
    out: list[int] = []
    for token in row:
        out = [*out[:-1], JOINED] if token == BREAK and out[-1:] == [DOT] else [*out, token]
    return out


def test_split_rows_are_windows_too() -> None:
    data = made(0.3, 0.5)
    split = whole_tokens = 0
    begins: dict[tuple[str, int], set[int]] = {}
    for step in range(30):
        for tokens, place in zip(data.batch(step).tokens.tolist(), data.places(step), strict=True):
            source = data.streams[place.source]
            assert isinstance(source, Stream) and len(tokens) == 16
            number = data.names.index(place.source)
            whole = told(source, number, place.epoch, 0.3, 7)
            row = joined_again(tokens[1:-1] if tokens[0] == BREAK else tokens[:-1])  # its ends may be half a token
            row = row[:-1] if row[-1:] == [DOT] else row
            at = [s for s in range(place.window * 16, place.window * 16 + 17) if whole[s : s + len(row)] == row]
            assert at, (row, place)
            begins.setdefault((place.source, place.epoch), set()).add(at[0] - place.window * 16)
            split += tokens.count(BREAK)
            whole_tokens += tokens.count(JOINED)
    assert 0.35 < split / (split + whole_tokens) < 0.65
    # All windows of an epoch begin at the same offset, other epochs at others.
    common = [starts for starts in begins.values() if len(starts) == 1]
    assert len(common) > len(begins) / 2 and len(set(map(str, common))) > 1


@pytest.mark.parametrize(("rate", "split"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.5)])
def test_any_step_after_any_other_on_any_rank(rate: float, split: float) -> None:
    ramp = Ramp(12, start=4, over=2000, length=16, multiple=4)
    fresh = {step: made(rate, split, rows=ramp).batch(step) for step in (0, 3, 40, 12_000)}
    assert [len(batch.tokens) for batch in fresh.values()] == [ramp.rows(step) for step in fresh]
    one = made(rate, split, rows=ramp)
    for step in (12_000, 0, 40, 3, 0, 40):
        assert digest(one.batch(step)) == digest(fresh[step])
    for step, batch in fresh.items():
        rows = len(batch.tokens)
        for ranks in (1, 2, 4):
            parts = [one.part(step, r * rows // ranks, (r + 1) * rows // ranks) for r in range(ranks)]
            assert torch.equal(torch.cat([p.tokens for p in parts]), batch.tokens)
            assert torch.equal(torch.cat([p.labels for p in parts]), batch.labels)
    with Prefetched(made(rate, split, rows=ramp), 4, 6) as early:
        for step in (*range(30), 12_000, 3, 40):
            assert digest(early.batch(step)) == digest(one.batch(step))
    assert digest(made(rate, split, rows=ramp, seed=8).batch(3)) != digest(fresh[3])


def test_a_ramp_sees_each_row_once() -> None:
    ramp = Ramp(8, start=2, over=600, length=16)
    wide, ramped = made(rows=1), made(rows=ramp)
    rows = torch.cat([ramped.batch(step).tokens for step in range(12)])
    assert torch.equal(rows, torch.cat([wide.batch(row).tokens for row in range(len(rows))]))


def test_what_noise_needs() -> None:
    with pytest.raises(UserError, match=r"fim_rate is 1\.5"):
        Noise(1.5, 0.0, FIM)
    with pytest.raises(UserError, match="index of documents"):
        PackedDataset({"a": np.arange(100)}, rows=1, length=8, seed=0, noise=Noise(0.1, 0.0, FIM))
    with pytest.raises(UserError, match="no source holds more than 32 tokens"):
        PackedDataset({"a": stream([20])}, rows=1, length=16, seed=0, noise=Noise(0.0, 0.1, None, Joined({})))
