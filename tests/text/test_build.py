"""From files to shards: nothing lost, in order, once, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import build_lives
import pytest
from build_lives import BOS, EOS, encode

from fathom.runtime import UserError, read_json
from fathom.text.bpe import train_bpe
from fathom.text.build import build
from fathom.text.dedup import is_heldout
from fathom.text.encoder import PlainEncoder, vocabulary
from fathom.text.filters import Rules, normalise
from fathom.text.ingest import Reading, find
from fathom.text.shards import Stream, open_streams, require_tokens, stored_weights
from fathom.text.stages import Plan, Vocabulary
from fathom.text.tokenizer import Tokenizer

BYTES = Vocabulary(encode, BOS, EOS, 300)
LOOSE = Rules(0, 10**9, 0.0, 1.0, 1.0)


def texts(count: int, seed: int = 0, size: int = 40) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(f"word{rng.randrange(5000)}" for _ in range(size)) for _ in range(count)]


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return str(path)


def contents(stream: Stream) -> list[str]:
    """The documents of a byte-wise stream."""
    starts = stream.starts.tolist()
    out = []
    for n, start in enumerate(starts[:-1]):
        ids = stream[start : starts[n + 1]].tolist()
        assert ids[0] == BOS and ids[-1] == EOS
        out.append(bytes(i - 10 for i in ids[1:-1]).decode())
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_documents_arrive_in_order_and_in_shards(tmp_path: Path) -> None:
    one, two = texts(300, 1), texts(50, 2)
    inputs = find([f"a={write(tmp_path / 'x.jsonl', one)}", f"b={write(tmp_path / 'y.jsonl', two)}"])
    meta = build(tmp_path / "out", Plan(inputs, shard_tokens=20_000), BYTES)
    streams = open_streams(tmp_path / "out")
    assert contents(streams["a"]) == one and contents(streams["b"]) == two
    shards = meta["sources"]["a"]["shards"]
    assert len(shards) > 3 and all(20_000 <= tokens < 20_400 for tokens, _ in shards[:-1])
    assert meta["sources"]["b"]["bytes"] == sum(len(t.encode()) for t in two)
    assert meta["counts"] == {"read": 350, "kept": 350}
    stems = [f"{name}-{n:05d}" for name in "ab" for n in range(len(meta["sources"][name]["shards"]))]
    wanted = ["meta.json", *[f"{stem}.{kind}" for stem in stems for kind in ("bin", "idx")]]
    assert sorted(files(tmp_path / "out")) == sorted(wanted)


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    good = texts(20)
    bad = ["", "tiny", "?!? ... *** " * 9, "\n".join([good[0]] * 9)]
    copies = [good[3].upper(), good[4] + " end"]
    path = write(tmp_path / "x.jsonl", [*good, *bad, *copies, "cafe\u0301 \r\n" + good[5][:120]])
    meta = build(tmp_path / "out", Plan(find([path])), BYTES)
    assert meta["counts"] == {
        "read": 27, "kept": 21, "empty": 1, "short": 1, "letters": 1, "lines": 1, "copy": 1, "near": 1,
    }  # fmt: skip
    assert contents(open_streams(tmp_path / "out")["x"]) == [*good, "café\n" + good[5][:120]]
    plain = Plan(find([path]), normalise=False, rules=LOOSE, near=0.0)
    meta = build(tmp_path / "all", plain, BYTES)
    assert meta["counts"] == {"read": 27, "empty": 1, "kept": 26}


def test_copies_are_found_across_sources(tmp_path: Path) -> None:
    one = texts(30)
    inputs = [f"a={write(tmp_path / 'x.jsonl', one)}", f"b={write(tmp_path / 'y.jsonl', [*one[::2], *texts(5, 9)])}"]
    meta = build(tmp_path / "out", Plan(find(inputs)), BYTES)
    assert meta["counts"] == {"read": 50, "kept": 35, "copy": 15}
    assert contents(open_streams(tmp_path / "out")["b"]) == texts(5, 9)


def test_held_out_documents(tmp_path: Path) -> None:
    one = texts(200)
    build(tmp_path / "out", Plan(find([write(tmp_path / "x.jsonl", one)]), heldout_percent=20), BYTES)
    train, held = (contents(open_streams(tmp_path / "out" / side)["x"]) for side in (".", "heldout"))
    assert held == [text for text in one if is_heldout(text, 20)] and 20 < len(held) < 60
    assert train == [text for text in one if not is_heldout(text, 20)]


# ---- again, and from where it stopped


def test_it_is_done_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(given: list[str]) -> list[list[int]]:
        calls.append(len(given))
        return encode(given)

    counting, out = dataclasses.replace(BYTES, encode=counted), tmp_path / "out"
    plan = Plan(find([write(tmp_path / "x.jsonl", texts(30))]))
    first = build(out, plan, counting)
    assert sum(calls) == 31
    before = files(out)
    calls.clear()
    assert build(out, plan, counting) == first and calls == [1] and files(out) == before
    assert build(out, plan, counting, weights={"x": 2.0})["weights"] == {"x": 2.0} == stored_weights(out)
    assert build(out, plan, counting)["weights"] == {"x": 2.0} and calls == [1] * 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"near": 0.5}, "near duplicates"), ({"rules": LOOSE}, "filters"), ({"shard_tokens": 5}, "shard size"),
     ({"reading": Reading("body")}, "columns"), ({"heldout_percent": 1.0}, "held-out share"),
     ({"parts": []}, "inputs")],
)  # fmt: skip
@pytest.mark.parametrize("finished", [True, False])
def test_another_plan_does_not_mix(tmp_path: Path, finished: bool, changes: dict[str, Any], words: str) -> None:
    plan, out = Plan(find([write(tmp_path / "x.jsonl", texts(30))])), tmp_path / "out"
    build(out, plan, BYTES)
    if not finished:
        os.rename(out / "meta.json", out / "state.json")
    before = files(out)
    with pytest.raises(UserError, match=f"built with other {words}; remove it"):
        build(out, dataclasses.replace(plan, **changes), BYTES)
    assert files(out) == before


def test_an_edited_input_does_not_mix(tmp_path: Path) -> None:
    path, out = write(tmp_path / "x.jsonl", texts(30)), tmp_path / "out"
    build(out, Plan(find([path])), BYTES)
    write(tmp_path / "x.jsonl", texts(30, 5))
    with pytest.raises(UserError, match="other inputs"):
        build(out, Plan(find([path])), BYTES)
    build(out, Plan(find([path])), BYTES, replace=True)
    assert contents(open_streams(out)["x"]) == texts(30, 5)


def test_killed_at_any_moment_and_continued(tmp_path: Path) -> None:
    """kill -9 in the middle of commits, again and again; the shards are those of a life without a kill."""
    lines = texts(400)
    for n in range(7, 400, 11):
        lines[n] = lines[n - 5] + " again"  # copies of documents that an earlier life wrote
    path = write(tmp_path / "x.jsonl", lines)
    lives = [1, 2, 3, 5, 9, 13, 14, 15, 26, 40]
    script = [sys.executable, build_lives.__file__, path, str(tmp_path / "killed"), *map(str, lives)]
    root = Path(build_lives.__file__).parents[2]
    done = subprocess.run(script, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)})
    assert done.stdout.split() == ["-9"] * len(lives) + ["0"], done.stderr
    whole = build(tmp_path / "whole", build_lives.plan(path), BYTES)
    assert whole["counts"]["near"] > 20 and len(whole["sources"]["x"]["shards"]) > 2
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_an_interrupted_build_reads_on_where_it_was(tmp_path: Path) -> None:
    """Only what was not committed is read again."""
    path, out = write(tmp_path / "x.jsonl", texts(2000)), tmp_path / "out"
    encoded: list[int] = []

    def stops(given: list[str]) -> list[list[int]]:
        if sum(encoded) > 1000:
            raise KeyboardInterrupt
        encoded.append(len(given))
        return encode(given)

    with pytest.raises(KeyboardInterrupt):
        build(out, Plan(find([path])), dataclasses.replace(BYTES, encode=stops), commit_bytes=1)
    with pytest.raises(UserError, match=r"no finished tokens .*it continues"):
        open_streams(out)
    at = read_json(out / "state.json")["at"]
    assert at[0] == 0 and at[1] == sum(encoded) - 1  # without the probe
    encoded.clear()

    def counts(given: list[str]) -> list[list[int]]:
        encoded.append(len(given))
        return encode(given)

    build(out, Plan(find([path])), dataclasses.replace(BYTES, encode=counts))
    assert sum(encoded) - 1 == 2000 - at[1]
    assert contents(open_streams(out)["x"]) == texts(2000)


def test_two_builds_of_one_folder(tmp_path: Path) -> None:
    plan, out = Plan(find([write(tmp_path / "x.jsonl", texts(30))])), tmp_path / "out"

    def again(given: list[str]) -> list[list[int]]:
        with pytest.raises(UserError, match="another build is writing"):
            build(out, plan, BYTES)
        return encode(given)

    build(out, plan, dataclasses.replace(BYTES, encode=again))
    assert len(contents(open_streams(out)["x"])) == 30


# ---- a real tokenizer, in other processes


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(texts(200, 3), 400, folder)
    return folder


def test_processes_change_nothing(tmp_path: Path, trained: Path) -> None:
    lines = texts(900)
    lines[700] = lines[3] + " again"
    plan = Plan(find([write(tmp_path / "x.jsonl", lines)]), shard_tokens=30_000)
    for processes in (0, 2):
        build(tmp_path / str(processes), plan, vocabulary(trained), processes=processes)
    assert files(tmp_path / "0") == files(tmp_path / "2")
    tokenizer = Tokenizer.from_pretrained(trained)
    stream = open_streams(tmp_path / "2")["x"]
    first, second = stream.starts[:2].tolist()
    assert tokenizer.decode(stream[first:second].tolist()) == lines[0]


def test_text_never_becomes_a_control_token(trained: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(trained)
    given = ["a <｜User｜> b<｜end▁of▁sentence｜>", "word1 word2.\n\nword3", ""]
    found = PlainEncoder(str(trained))(given)
    assert found == [tokenizer.encode_plain(text) for text in given]
    assert not {token for ids in found for token in ids} & set(tokenizer.control_tokens)


# ---- mistakes


def test_an_unknown_weight_loses_nothing(tmp_path: Path) -> None:
    plan, out = Plan(find([write(tmp_path / "x.jsonl", texts(30))])), tmp_path / "out"
    with pytest.raises(UserError, match=r"weights name \['y'\], the sources are \['x'\]"):
        build(out, plan, BYTES, weights={"y": 1.0})

    def only_the_probe(given: list[str]) -> list[list[int]]:
        assert len(given) == 1
        return encode(given)

    build(out, plan, dataclasses.replace(BYTES, encode=only_the_probe), weights={"x": 1.0})
    assert contents(open_streams(out)["x"]) == texts(30)


def test_nothing_is_left(tmp_path: Path) -> None:
    for name, lines in (("none", []), ("short", ["tiny", "small"])):
        with pytest.raises(UserError, match=r"no source has a document left .*loosen the filters"):
            build(tmp_path / f"out-{name}", Plan(find([write(tmp_path / f"{name}.jsonl", lines)])), BYTES)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x-00000.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match="not of a build"):
        build(tmp_path / "out", Plan(find([write(tmp_path / "x.jsonl", texts(3))])), BYTES)
    assert files(tmp_path / "out") == {"x-00000.bin": b"mine"}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        build(tmp_path / "file", Plan(find([write(tmp_path / "x.jsonl", texts(3))])), BYTES)


def test_the_tokens_of_another_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(out, Plan(find([write(tmp_path / "x.jsonl", texts(30))])), BYTES)
    require_tokens(out, BOS, EOS, 300)
    for bos, eos, size in ((2, EOS, 300), (BOS, 2, 300), (BOS, EOS, 299)):
        with pytest.raises(UserError, match="take the tokenizer that belongs to the model"):
            require_tokens(out, bos, eos, size)
    with pytest.raises(UserError, match="no folder of tokens"):
        open_streams(tmp_path / "gone")


def test_normalise_is_what_the_build_uses(tmp_path: Path) -> None:
    text = "ｗide \u200btabs\tand\u00a0spaces   \r\n" + texts(1)[0]
    build(tmp_path / "out", Plan(find([write(tmp_path / "x.jsonl", [text])])), BYTES)
    assert contents(open_streams(tmp_path / "out")["x"]) == [normalise(text)]
