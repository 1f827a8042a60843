"""`fathom upcycle` as a person types it: mistakes are one line and exit code 2, and leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from llama_files import tiny, write_folder

from fathom.cli import main
from fathom.upcycle import write


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("llama"), tiny())


def test_the_report_for_people_and_for_programs(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 300)
    common = ["--calibrate", str(text), "--held-out", "256", "--row", "64"]
    assert main(["upcycle", str(llama), str(tmp_path / "a"), "--ffn", "sparse", "--values", "constant", *common]) == 0
    out = capsys.readouterr().out
    assert "256 held-out tokens in rows of 64" in out
    assert "of the strongest experts are found" in out and "constant is off by" in out
    assert main(["upcycle", str(llama), str(tmp_path / "b"), "--json", *common]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["comparison"]["tokens"] == 256 and report["values"] == "exact"
    assert main(["inspect", str(tmp_path / "b")]) == 0


BAD = [
    (["--rope-width", "40"], "multiple of the head width 16"),
    (["--rope-width", "0"], "multiple of the head width 16"),
    (["--slow-angle", "-1"], "above 0"),
    (["--slow-angle", "1000"], "choose less"),
    (["--nope-width", "2", "--rope-width", "16"], "need 16"),
    (["--latent", "64"], "--values constant"),
    (["--values", "constant", "--latent", "20"], "need at least 33"),
    (["--ffn", "dense", "--experts", "4"], "no meaning with --ffn dense"),
    (["--ffn", "dense", "--dense-layers", "1"], "all layers are"),
    (["--chosen", "4"], "no meaning with --ffn exact"),
    (["--ffn", "grown", "--chosen", "9"], "8 experts to choose from"),
    (["--ffn", "grown", "--expert-width", "7"], "divide the 96 neurons"),
    (["--ffn", "grown", "--experts", "0"], "at least 1"),
    (["--experts", "97"], "96 neurons"),
    (["--shared", "17"], "do not split"),
    (["--dense-layers", "2"], "from 0 to 1"),
    (["--no-verify", "--row", "64"], "--no-verify"),
    (["--untie"], "of its own already"),
    (["--seed", "1"], "--ffn grown or sparse"),
    (["--calibrate", "/nowhere/text"], "calibration text"),
    (["--to", "int4"], "--to"),
    (["--rope-widht", "32"], "--rope-width"),
]


@pytest.mark.parametrize(("flags", "said"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_mistakes(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    assert main(["upcycle", str(llama), str(tmp_path / "out" / "a"), *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_text_that_is_too_short_or_no_text(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, said in ((b"A few words.", "tokens; about"), (b"\xff\xfe\x00" * 900, "not UTF-8")):
        (tmp_path / "text").write_bytes(content)
        assert main(["upcycle", str(llama), str(tmp_path / "a"), "--calibrate", str(tmp_path / "text")]) == 2
        assert said in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"text"}


def test_sources_and_destinations(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for source, destination, said in (
        (tmp_path / "nothing", tmp_path / "a", "does not exist"),
        (llama, tmp_path, "exists already"),
        (llama, tmp_path / "file", "exists already"),
        (llama, tmp_path / "file" / "a", "cannot write"),
        (Path("~nobody_here/a"), tmp_path / "a", "home folder"),
    ):
        assert main(["upcycle", str(source), str(destination)]) == 2
        assert said in capsys.readouterr().err


def test_a_full_disk_is_noticed_before_anything_is_written(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fathom.runtime.disk_free", lambda path: 1000)
    monkeypatch.setattr(write, "write_file", lambda *args: pytest.fail("wrote weights"))
    assert main(["upcycle", str(llama), str(tmp_path / "a")]) == 2
    assert "are free" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_killed_process_leaves_nothing_that_is_taken_for_a_model(llama: Path, tmp_path: Path) -> None:
    """A pipe as the text holds the process where the folder is begun and not finished; then it is killed for real."""
    pipe, out = tmp_path / "pipe", tmp_path / "out"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "fathom", "upcycle", str(llama), str(out / "a"), "--calibrate", str(pipe)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(out.glob(".a.*.part/tokenizer_config.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [path.name for path in out.iterdir()]
        assert process.poll() is None
        assert main(["upcycle", str(llama), str(out / "b"), "--no-verify"]) == 0
        process.kill()
    assert len(left) == 1 and {path.name for path in out.iterdir()} == {"b", *left}
    assert main(["upcycle", str(llama), str(out / "a"), "--no-verify"]) == 0
    assert {path.name for path in out.iterdir()} == {"a", "b"}
