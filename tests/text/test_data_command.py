"""`fathom data build` and `fathom data show`: from a folder of files to a batch that can be read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fathom.commands.data import main
from fathom.runtime import UserError, read_json
from fathom.text.bpe import train_bpe
from fathom.text.packed import Noise, PackedDataset
from fathom.text.shards import open_streams
from fathom.text.tokenizer import Tokenizer


def story(number: int) -> str:
    names = ["Anna", "Bela", "Carl", "Dora", "Emil"]
    lines = [f"{names[(number + n) % 5]} saw {number * 7 + n} birds near tree {n * n}." for n in range(12)]
    return "\n\n".join(lines)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two inputs, a tokenizer, and what a build made of them."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "web").mkdir()
    for name, numbers in (("one", range(30)), ("two", range(20, 50))):  # ten stories twice
        lines = [json.dumps({"text": story(n)}) + "\n" for n in numbers]
        (folder / "web" / f"{name}.jsonl").write_text("".join(lines))
    (folder / "notes.txt").write_text("\n%\n".join(story(n) for n in range(60, 90)))
    train_bpe([story(n) for n in range(100)], 420, folder / "tokenizer")
    assert main(["build", *arguments(folder), "--weights", "web=0.5", "--separator", "%"]) == 0
    return folder


def arguments(folder: Path, out: str = "out") -> list[str]:
    inputs = [str(folder / "web"), f"mine={folder / 'notes.txt'}"]
    return [*inputs, "--out", str(folder / out), "--tokenizer", str(folder / "tokenizer")]


def test_build(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = read_json(shop / "out" / "meta.json")
    documents = {name: entry["documents"] for name, entry in meta["sources"].items()}
    assert documents == {"web": 50, "mine": 30} and meta["counts"] == {"read": 90, "kept": 80, "copy": 10}
    assert main(["build", *arguments(shop), "--weights", "web=0.5", "--separator", "%"]) == 0  # done before
    said = capsys.readouterr().out
    tokens = {name: entry["tokens"] for name, entry in meta["sources"].items()}
    share = tokens["mine"] / (tokens["mine"] + 0.5 * tokens["web"])
    assert re.search(rf"mine +30 .* {share:.1%}", said) and "copy 10" in said
    tokenizer = Tokenizer.from_pretrained(shop / "out" / "tokenizer")
    stream = open_streams(shop / "out")["web"]
    first, second = stream.starts[:2].tolist()
    assert tokenizer.decode(stream[first:second].tolist()) == story(0)


def test_a_tokenizer_of_its_own(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, trained = shop / "own" / "tokenizer", ["--train-tokenizer", "300"]
    command = ["build", str(shop / "notes.txt"), "--out", str(shop / "own"), "--separator", "%"]
    assert main([*command, *trained, "--digits", "single"]) == 0
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.vocab_size == 300 and [tokenizer.decode([i]) for i in tokenizer.encode_plain("2537")] == list(
        "2537"
    )
    ids = open_streams(shop / "own")["notes"].tolist()
    assert tokenizer.decode(ids[1 : ids.index(1)]) == story(60)
    with pytest.raises(UserError, match="made from other inputs or in another way"):
        main([*command, *trained])  # with V3's digits
    before = folder.stat().st_ino, (folder / "tokenizer.json").stat().st_mtime_ns
    assert main([*command, *trained, "--digits", "single"]) == 0  # not trained again
    assert before == (folder.stat().st_ino, (folder / "tokenizer.json").stat().st_mtime_ns)
    (folder / "tokenizer_config.json").unlink()  # killed before it was written
    assert main([*command, *trained, "--digits", "single"]) == 0 and (folder / "tokenizer_config.json").exists()


def test_flags_reach_the_build(shop: Path) -> None:
    changes = ["--no-dedup", "--no-filter", "--no-normalise", "--heldout-percent", "50", "--shard-tokens", "900"]
    assert main(["build", *arguments(shop, "other"), *changes]) == 0
    meta = read_json(shop / "other" / "meta.json")
    assert meta["counts"] == {"read": 61, "kept": 61} and len(meta["sources"]["web"]["shards"]) > 2
    assert read_json(shop / "other" / "heldout" / "meta.json")["sources"]["web"]["documents"] > 10
    assert main(["build", *arguments(shop, "strict"), "--min-chars", "500", "--near", "0.5"]) == 0
    assert read_json(shop / "strict" / "meta.json")["fingerprint"]["near duplicates"][0] == 0.5


def test_show_prints_the_batch(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    noise = ["--fim-rate", "0.5", "--split-rate", "0.5"]
    sizes = ["--step", "7", "--rows", "3", "--length", "64", "--seed", "5", "--chars", "0"]
    assert main(["show", str(shop / "out"), *sizes, *noise]) == 0
    said = capsys.readouterr().out
    tokenizer = Tokenizer.from_pretrained(shop / "tokenizer")
    data = PackedDataset(
        open_streams(shop / "out"), rows=3, length=64, seed=5, weights={"web": 0.5}, noise=Noise.of(tokenizer, 0.5, 0.5)
    )
    wanted = ""
    for row, place in zip(data.batch(7).tokens.tolist(), data.places(7), strict=True):
        text = tokenizer.decode(row, skip_special=False)
        wanted += f"--- {place.source}, epoch {place.epoch}, window {place.window} ---\n{text}\n"
    assert said == wanted and "<｜fim▁hole｜>" in said
    assert main(["show", str(shop / "out"), "--length", "64", "--chars", "9"]) == 0
    assert capsys.readouterr().out.count("more characters)") == 4


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no action": ([], "needs an action"),
    "another action": (["make"], "has no 'make'"),
    "no output": (["build", "x.txt"], "missing --out"),
    "missing file": (["build", "gone.txt", "--out", "o", "--tokenizer", "SHOP/tokenizer"], "gone.txt does not exist"),
    "no tokenizer": (["build", "SHOP/notes.txt", "--out", "o", "--tokenizer", "gone"], "gone"),
    "no tokenizer at all": (["build", "SHOP/notes.txt", "--out", "o"], "one of the two"),
    "two tokenizers": (
        ["build", "SHOP/notes.txt", "--out", "o", "--tokenizer", "SHOP/tokenizer", "--train-tokenizer", "400"],
        "one of the two",
    ),
    "a folder of something else": (
        ["build", "SHOP/notes.txt", "--out", "SHOP/web", "--train-tokenizer", "300"], "not of a build",
    ),
    "digits of a tokenizer that is there": (
        ["build", "SHOP/notes.txt", "--out", "o", "--tokenizer", "SHOP/tokenizer", "--digits", "single"],
        "--digits single has no effect",
    ),
    "unknown weight": (
        ["build", "SHOP/notes.txt", "--out", "o", "--tokenizer", "SHOP/tokenizer", "--weights", "web=1"],
        r"name \['web'\], the sources are \['notes'\]",
    ),
    "weight without a number": (
        ["build", "SHOP/notes.txt", "--out", "o", "--tokenizer", "SHOP/tokenizer", "--weights", "notes"],
        "'notes' is not NAME=FACTOR",
    ),
    "negative weight": (
        ["build", "SHOP/notes.txt", "--out", "o", "--tokenizer", "SHOP/tokenizer", "--weights", "notes=-1"],
        "0 or more",
    ),
    "negative processes": (
        ["build", "SHOP/notes.txt", "--out", "o", "--tokenizer", "SHOP/tokenizer", "--processes", "-1"],
        "--processes is -1",
    ),
    "a share above one": (
        ["build", "SHOP/notes.txt", "--out", "o", "--tokenizer", "SHOP/tokenizer", "--min-letters", "2"],
        "min_letters is 2.0",
    ),
    "other settings": (
        ["build", "SHOP/notes.txt", "--out", "SHOP/out", "--tokenizer", "SHOP/tokenizer"], "built with other inputs",
    ),
    "no shards": (["show", "gone"], "no folder of tokens"),
    "negative step": (["show", "SHOP/out", "--step", "-1"], "--step"),
    "rows too long": (["show", "SHOP/out", "--length", "99999999"], "no source holds more than"),
    "unknown weight to show": (["show", "SHOP/out", "--weights", "x=1", "--length", "64"], r"name \['x'\]"),
    "rate above one": (["show", "SHOP/out", "--fim-rate", "2", "--length", "64"], "fim_rate is 2.0"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    command, words = MISTAKES[case]
    with pytest.raises(UserError, match=words):
        main([word.replace("SHOP", str(shop)) for word in command])
    assert not list(tmp_path.iterdir()) and len(list((shop / "web").iterdir())) == 2


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0 and "fathom data build" in capsys.readouterr().out
    for action, flags in (("build", ["--no-dedup", "--near", "--max-repeated-lines"]), ("show", ["--fim-rate"])):
        with pytest.raises(SystemExit):
            main([action, "--help"])
        said = capsys.readouterr().out
        assert all(flag in said for flag in flags) and "examples:" in said
