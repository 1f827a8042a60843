"""The build cache of the C++ step: built once, private, refused if it cannot be trusted; a reason when it fails."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest
import torch

from fathom.kernels import cpu
from fathom.kernels.cpu import build
from fathom.kernels.step import Matrix
from fathom.runtime import UserError

pytestmark = pytest.mark.skipif(build.os.name != "posix", reason="the C++ step is built by a POSIX compiler")


@pytest.fixture
def small_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source of one line instead of the real one, and an empty cache."""
    source = tmp_path / "source"
    source.mkdir()
    (source / build.MAIN["step"]).write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return source


def test_second_build_is_the_first(small_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.library()
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    monkeypatch.setattr(build, "_compile", None)  # would fail if it were called
    assert build.library() == first
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    monkeypatch.undo()


def test_other_source_is_another_library(small_source: Path) -> None:
    first = build.library()
    (small_source / build.MAIN["step"]).write_text('extern "C" int answer() { return 43; }\n')
    second = build.library()
    assert second != first and first.exists() and second.exists()


@pytest.mark.usefixtures("small_source")
def test_broken_compiler_gives_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "block.cpp:1: error: no such thing" >&2\nexit 1\n'
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(build.BuildError, match=r"cannot compile.*no such thing"):
        build.library()
    assert not list((tmp_path / "cache" / "fathom" / "kernels").iterdir())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match=r"no-such-compiler.*unset CXX"):
        build.library()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler"):
        build.library()


@pytest.mark.usefixtures("small_source")
def test_reason_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    from fathom.kernels.cpu import step

    monkeypatch.setenv("CXX", "no-such-compiler")
    step._load.cache_clear()
    try:
        assert "no-such-compiler" in str(cpu.available())
        with pytest.raises(UserError, match=r"not available.*no-such-compiler"):
            cpu.CpuLinear(Matrix(torch.zeros(2, 2)))
    finally:
        monkeypatch.undo()
        step._load.cache_clear()


@pytest.mark.usefixtures("small_source")
def test_cache_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build.cache_folder()
    folder.chmod(0o777)
    assert stat.S_IMODE(build.cache_folder().stat().st_mode) == 0o700
    monkeypatch.setattr(build.os, "getuid", lambda: 12345)
    with pytest.raises(build.BuildError, match="belongs to another user"):
        build.library()


@pytest.mark.parametrize("flags", ["-mno-avx512f -mno-avx2 -mno-avx -mno-fma"])
@pytest.mark.parametrize("main", build.MAIN.values())
def test_without_wide_vectors(main: str, flags: str, tmp_path: Path) -> None:
    """The portable form compiles; the library of the widest one is what the other tests run."""
    command = [*build.find_compiler(), *build.FLAGS, *flags.split(), "-O0", "-fsyntax-only"]
    done = subprocess.run([*command, str(build.SOURCE / main)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
