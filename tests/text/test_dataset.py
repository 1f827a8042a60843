"""From documents and dialogues to batches: pure functions of the step, nothing lost, nothing doubled."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.runtime import UserError
from fathom.text import build
from fathom.text.dataset import (
    IGNORE,
    DialogueDataset,
    PackedDataset,
    Sample,
    collate,
    digest,
    open_streams,
    pack,
    read_jsonl,
    tokenize,
)

BOS, EOS = 0, 1


def encode_batch(texts: list[str]) -> list[list[int]]:
    return [[10 + c for c in text.encode()] for text in texts]


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def corpus(tmp_path: Path, documents: int = 1100) -> Path:
    records = [{"source": f"s{i % 3}", "text": f"document {i} é"} for i in range(documents)]
    return write(tmp_path / "train.jsonl", *records)


# ---- JSONL and token streams


@pytest.mark.parametrize(
    ("content", "words"),
    [(b'{"a": 1}\n{"b"\n', "line 2 is not JSON"), (b"[1]\n", "line 1 holds a list"), (b"\xff\xfe\n", "not UTF-8"),
     (None, "No such file")],
)  # fmt: skip
def test_broken_jsonl(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        list(read_jsonl(path))
    assert str(path) in str(error.value)


def test_tokenize(tmp_path: Path) -> None:
    jsonl, out = corpus(tmp_path), tmp_path / "tokens"
    meta = tokenize(jsonl, out, encode_batch, BOS, EOS, 300)
    streams = open_streams(out)
    assert list(streams) == ["s0", "s1", "s2"] and all(s.dtype == np.uint16 for s in streams.values())
    for number, (name, stream) in enumerate(streams.items()):
        texts = [f"document {i} é" for i in range(1100) if i % 3 == number]
        assert stream.tolist() == [t for ids in encode_batch(texts) for t in (BOS, *ids, EOS)]
        size = sum(len(t.encode()) for t in texts)
        counts = {"tokens": len(stream), "documents": len(texts), "bytes": size}
        assert meta["sources"][name] == counts | {"shards": [[len(stream), len(texts)]]}
        assert [stream[a : a + 1].tolist() for a in stream.starts[:-1]] == [[BOS]] * len(texts)
    files = [f"s{i}-00000.{kind}" for i in range(3) for kind in ("bin", "idx")]
    assert sorted(p.name for p in out.iterdir()) == ["meta.json", *files]
    assert tokenize(jsonl, tmp_path / "wide", encode_batch, BOS, EOS, 2**16 + 1)["dtype"] == "uint32"


def test_tokenize_is_done_once(tmp_path: Path) -> None:
    jsonl, out = corpus(tmp_path, 30), tmp_path / "tokens"
    calls: list[int] = []

    def counted(texts: list[str]) -> list[list[int]]:
        calls.append(len(texts))
        return encode_batch(texts)

    first = tokenize(jsonl, out, counted, BOS, EOS, 300)
    calls.clear()
    assert tokenize(jsonl, out, counted, BOS, EOS, 300) == first
    assert calls == [1]  # the probe alone
    for arguments in ((counted, BOS, EOS, 301), (counted, 2, EOS, 300), (lambda t: [[5] for _ in t], BOS, EOS, 300)):
        changed = tokenize(jsonl, out, *arguments)
        assert changed["fingerprint"] != first["fingerprint"]
    assert set(open_streams(out)["s0"].tolist()) == {BOS, 5, EOS}


def test_an_edited_corpus_is_tokenised_again(tmp_path: Path) -> None:
    """Same size, other words."""
    jsonl, out = corpus(tmp_path, 30), tmp_path / "tokens"
    tokenize(jsonl, out, encode_batch, BOS, EOS, 300)
    before = open_streams(out)["s0"].tolist()
    jsonl.write_text(jsonl.read_text().replace("document", "DOCUMENT"))
    later = (out / "meta.json").stat().st_mtime + 10
    os.utime(jsonl, (later, later))
    tokenize(jsonl, out, encode_batch, BOS, EOS, 300)
    after = open_streams(out)["s0"].tolist()
    assert before != after and len(before) == len(after)


def test_an_interrupted_rebuild_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the new streams were written, then run with the old corpus again: the old streams come back."""
    old, out = corpus(tmp_path, 30), tmp_path / "tokens"
    new = write(tmp_path / "new.jsonl", *[{"source": "s0", "text": "x" * 40} for _ in range(30)])
    tokenize(old, out, encode_batch, BOS, EOS, 300)
    wanted = {n: s.tolist() for n, s in open_streams(out).items()}

    write_json = build.write_json

    def interrupt(path: Path, value: Any) -> None:
        if path.name == "meta.json":
            raise KeyboardInterrupt
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_json", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tokenize(new, out, encode_batch, BOS, EOS, 300)
    tokenize(old, out, encode_batch, BOS, EOS, 300)
    assert {n: s.tolist() for n, s in open_streams(out).items()} == wanted


@pytest.mark.parametrize(
    ("record", "words"),
    [({"source": "a"}, "line 2 has no 'text'"), ({"source": "a", "text": 5}, "line 2: 'text' is a int"),
     ({"text": "a"}, "line 2: source is None"), ({"source": "../a", "text": "a"}, "line 2: source is '../a'"),
     ({"source": "a", "text": "\ud800"}, "line 2 holds half")],
)  # fmt: skip
def test_wrong_documents(tmp_path: Path, record: dict[str, Any], words: str) -> None:
    jsonl = write(tmp_path / "train.jsonl", {"source": "a", "text": "fine"}, record)
    with pytest.raises(UserError, match=words):
        tokenize(jsonl, tmp_path / "tokens", encode_batch, BOS, EOS, 300)
    with pytest.raises(UserError, match="no finished tokens"):
        open_streams(tmp_path / "tokens")


@pytest.mark.parametrize("damage", ["short", "gone"])
def test_a_damaged_stream_is_named(tmp_path: Path, damage: str) -> None:
    tokenize(corpus(tmp_path, 30), tmp_path / "tokens", encode_batch, BOS, EOS, 300)
    path = tmp_path / "tokens" / "s1-00000.bin"
    path.unlink() if damage == "gone" else os.truncate(path, 10)
    with pytest.raises(UserError, match=r"s1-00000\.bin.*remove"):
        open_streams(tmp_path / "tokens")


# ---- pretraining batches


def counting(start: int, tokens: int) -> np.ndarray[Any, Any]:
    """Every token tells where it stood."""
    return np.arange(start, start + tokens, dtype=np.int64)


def packed(**changes: Any) -> PackedDataset:
    streams = {"big": counting(0, 801), "small": counting(100_000, 250), "tiny": counting(200_000, 8)}
    return PackedDataset(streams, **({"rows": 4, "length": 8, "seed": 7} | changes))


def test_rows_are_consecutive_tokens_and_labels_the_next() -> None:
    batch = packed().batch(3)
    assert batch.tokens.shape == (4, 8) and batch.tokens.dtype == torch.int64 and batch.segments is None
    assert torch.equal(batch.labels, batch.tokens + 1)


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    wanted = {step: digest(packed().batch(step)) for step in (0, 1, 5, 70, 400, 20_000)}
    one = packed()
    for step in (400, 5, 20_000, 0, 1, 70, 400):  # a plan grown late equals one made early
        assert digest(one.batch(step)) == wanted[step]
    assert len(set(wanted.values())) == len(wanted)
    assert digest(packed(seed=8).batch(0)) != wanted[0]


def test_every_epoch_has_each_chunk_once() -> None:
    data = packed(rows=1)
    seen: dict[str, list[int]] = {"big": [], "small": []}
    for step in range(700):
        first = int(data.batch(step).tokens[0, 0])
        seen["small" if first >= 100_000 else "big"].append(first)
    for name, chunks in (("big", 100), ("small", 31)):  # (801 - 1) // 8, (250 - 1) // 8
        epochs = [seen[name][i : i + chunks] for i in range(0, len(seen[name]) - chunks + 1, chunks)]
        assert len(epochs) >= 4
        for epoch in epochs:
            assert len(set(epoch)) == chunks and {(f % 100_000) % 8 for f in epoch} == {0}
        assert epochs[0] != epochs[1]


@pytest.mark.parametrize("weights", [None, {"small": 3.0}, {"big": 0.0}, {"big": 0.5, "small": 2.0}])
def test_sources_come_by_their_weight(weights: dict[str, float] | None) -> None:
    data = packed(rows=500, weights=weights)
    share = float((data.batch(2).tokens[:, 0] >= 100_000).float().mean())
    big, small = 801 * (weights or {}).get("big", 1), 250 * (weights or {}).get("small", 1)
    assert share == pytest.approx(small / (big + small), abs=0.07)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"weights": {"huge": 1.0}}, "huge"), ({"weights": {"big": 0.0, "small": 0.0}}, "weight above 0"),
     ({"length": 1000}, "no source holds more than 1000 tokens")],
)  # fmt: skip
def test_wrong_mixtures(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        packed(**changes)


# ---- dialogues


def dialogues(count: int, seed: int = 0) -> list[Sample]:
    random = np.random.Generator(np.random.PCG64(seed))
    lengths = random.integers(2, 14, count)
    return [Sample([n * 100 + i for i in range(k)], [i >= k // 2 for i in range(k)]) for n, k in enumerate(lengths, 1)]


def make(samples: list[Sample], **changes: Any) -> DialogueDataset:
    return DialogueDataset(samples, **({"rows": 3, "length": 16, "seed": 1, "pad": 2} | changes))


@given(st.lists(st.integers(1, 20), max_size=200), st.integers(1, 8))
def test_pack_loses_nothing_and_never_overfills(lengths: list[int], window: int) -> None:
    groups = pack(lengths, 20, window)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in group) <= 20 for group in groups)


def test_pack_is_tight() -> None:
    lengths = np.random.Generator(np.random.PCG64(0)).integers(1, 200, 2000).tolist()
    assert len(pack(lengths, 512)) <= 1.05 * sum(lengths) / 512 + 64


def test_collate() -> None:
    one, two, three = (
        Sample([5, 6, 7], [False, True, True]),
        Sample([8, 9], [True, True]),
        Sample([4, 3], [False, False]),
    )
    batch = collate([[one, two], [three]], 7, pad=2)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9, 2, 2], [4, 3, 2, 2, 2, 2, 2]]
    x = IGNORE
    assert batch.labels.tolist() == [[6, 7, x, 9, x, x, x], [x] * 7]  # 7 does not predict 8, the next sample's first
    assert batch.segments is not None
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1, -1, -1], [0, 0, -1, -1, -1, -1, -1]]


def test_every_epoch_has_each_dialogue_once() -> None:
    samples = dialogues(60)
    data = make(samples)
    rows, firsts = len(data.packed), {s.ids[0] for s in samples}
    steps = 3 * rows  # three rows a step: nine epochs, cut in the middle of batches
    stream = [row for step in range(steps) for row in data.batch(step).tokens.tolist()]
    orders = []
    for start in range(0, len(stream), rows):
        epoch = stream[start : start + rows]
        seen = Counter(t for row in epoch for t in row if t in firsts)
        assert seen == Counter(firsts)
        orders.append(str(epoch))
    assert len(set(orders)) == len(orders) == 9


def test_dialogue_batches_are_pure_functions_of_the_step() -> None:
    samples = dialogues(60)
    wanted = {step: digest(make(samples).batch(step)) for step in (0, 1, 17, 90)}
    one = make(samples)
    assert all(digest(one.batch(step)) == wanted[step] for step in (90, 0, 17, 1, 0))
    assert len(set(wanted.values())) == 4 and digest(make(samples, seed=2).batch(0)) != wanted[0]


def test_labels_of_a_batch_are_exactly_the_trained_tokens() -> None:
    samples = dialogues(60)
    trained = {t for s in samples for i, (t, keep) in enumerate(zip(s.ids, s.trained, strict=True)) if keep and i}
    data = make(samples)
    seen: Counter[int] = Counter()
    for step in range(len(data.packed)):  # three epochs
        labels = data.batch(step).labels
        seen.update(labels[labels != IGNORE].tolist())
    assert seen == Counter({t: 3 for t in trained})


def test_fewer_rows_than_a_batch() -> None:
    data = make(dialogues(2), rows=8)
    assert data.steps_per_epoch == 1 and data.batch(0).tokens.shape == (8, 16)


def test_dialogues_that_do_not_fit() -> None:
    long = Sample(list(range(17)), [True] * 17)
    assert len(make([*dialogues(20), long, Sample([1], [True])]).samples) == 20
    with pytest.raises(UserError, match=r"none of 1 dialogues fits into 16 tokens, the shortest has 17; raise data"):
        make([long])
