"""Documents out of a corpus: by shares, held-out ones never among them, the same for a seed."""

from __future__ import annotations

import json

import pytest

from fathom.cli import main as cli
from fathom.runtime import UserError
from fathom.text.documents import Selection, held_out

SHARES = {"first": 0.75, "second": 0.25}


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "train.jsonl"
    sources = ("first", "second", "third")
    lines = [{"source": source, "text": f"{source} {n:04} " + "x" * 88} for n in range(400) for source in sources]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_shares_hold_and_what_is_held_out_is_never_picked(corpus):
    picked = Selection(corpus, SHARES, 20_000, measured=("first", "third"), seed=1)
    characters = dict.fromkeys(SHARES, 0)
    for document in picked.train:
        characters[document["source"]] += len(document["text"])
    assert 15_000 <= characters["first"] < 15_100 and 5_000 <= characters["second"] < 5_100
    assert not any(held_out(document["text"]) for document in picked.train)
    assert picked.heldout and all(held_out(text) for text in picked.heldout)
    assert {text.split()[0] for text in picked.heldout} == {"first", "third"}
    everything = Selection(corpus, SHARES, 10**7, measured=("first", "second"), seed=2)
    assert len(everything.train) + len(everything.heldout) == 800 and set(everything.short) == set(SHARES)


def test_a_seed_gives_the_same_documents(corpus):
    one, again, other = (Selection(corpus, SHARES, 9_000, measured=(), seed=seed).train for seed in (1, 1, 2))
    assert one == again != other


def test_the_command_writes_both_files(corpus, tmp_path, capsys):
    out, held = tmp_path / "out/picked.jsonl", tmp_path / "out/held.txt"
    flags = ["--shares", "first=3,second=1", "--megabytes", "0.02", "--heldout", str(held)]
    measured = ["--heldout-sources", "third", "--heldout-megabytes", "0.001"]
    assert cli(["corpus", "documents", "--corpus", str(corpus), "--out", str(out), *flags, *measured]) == 0
    assert "202 documents" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 202
    assert [line[:5] for line in held.read_text().split("\n\n")[:-1]] == ["third"] * 11


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--shares", "first"], "give NAME=SHARE"),
        (["--shares", "first=nan"], "a share above 0"),
        (["--shares", "fourth=1"], "no documents of fourth"),
        (["--megabytes", "0"], "--megabytes is 0"),
        (["--heldout-sources", "third"], "--heldout-sources has no effect without --heldout"),
        (["--heldout", "CORPUS"], "must be different files"),
    ],
)
def test_refused(corpus, tmp_path, capsys, flags, said):
    flags = [str(corpus) if flag == "CORPUS" else flag for flag in flags]
    assert cli(["corpus", "documents", "--corpus", str(corpus), "--out", str(tmp_path / "out.jsonl"), *flags]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out.jsonl").exists()


def test_a_missing_corpus_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.jsonl"):
        Selection(tmp_path / "nothing.jsonl", SHARES, 100, measured=(), seed=1)
