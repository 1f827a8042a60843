"""A named model is in the cache whole or not at all: two at once, killed, damaged, no room, another recipe."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fathom.models.build import ensure, fingerprint
from fathom.models.cache import Cache
from fathom.models.registry import NamedModel, Recipe, Wheel
from fathom.models.state import remove, state_of
from fathom.runtime import UserError
from fathom.upcycle.options import Options

CONTENT = b"weights" * 100


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def model(tmp_path: Path) -> NamedModel:
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "README.md").write_text("# made up\n")
    wheel = Wheel("made-up", "1.0", "made_up-1.0-py3-none-any.whl", 5, "00", "made_up/model.gguf", "00")
    return NamedModel("madeup", "MIT", "made up", assets, wheel)


class Builder:
    """Stands in for pip and for the conversion, and counts."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.fetched, self.made = cache, 0, 0
        self.while_fetching: Callable[[], object] = lambda: None
        self.while_making: Callable[[], object] = lambda: None

    def fetch(self, wheel: Wheel, downloads: Path) -> Path:
        target = downloads / wheel.filename
        if not target.exists():
            self.fetched += 1
            self.while_fetching()
            target.write_bytes(b"wheel")
        return target

    def make(self, model: NamedModel, wheel: Path, part: Path) -> Path:
        assert wheel.read_bytes() == b"wheel"
        self.made += 1
        made = part / "model"
        made.mkdir()
        (made / "config.json").write_text("{}")
        self.while_making()
        (made / "model.safetensors").write_bytes(CONTENT)
        return made

    def ensure(self, model: NamedModel, **more: bool) -> Path:
        return ensure(model, cache=self.cache, fetch=self.fetch, make=self.make, **more)


@pytest.fixture
def builder(cache: Cache) -> Builder:
    return Builder(cache)


def assert_whole(folder: Path, cache: Cache) -> None:
    """A finished model, and nothing unfinished beside it."""
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    names = {path.name for path in cache.models.iterdir()}
    assert names == {folder.name, ".madeup.lock"}
    assert [path.name for path in cache.downloads.iterdir()] == ["made_up-1.0-py3-none-any.whl"]


def killed(work: Callable[[], object]) -> None:
    """Do it in another process, which dies on the way as by `kill -9`."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise OSError(28, "No space left on device")


def test_made_once_and_then_found(builder: Builder, model: NamedModel, cache: Cache) -> None:
    folder = builder.ensure(model)
    assert_whole(folder, cache)
    assert builder.ensure(model) == folder and builder.ensure(model, thorough=True) == folder
    assert (builder.fetched, builder.made) == (1, 1)


@pytest.mark.parametrize("when", ["while_fetching", "while_making"])
def test_killed_and_started_again(builder: Builder, model: NamedModel, cache: Cache, when: str) -> None:
    setattr(builder, when, die)
    killed(lambda: builder.ensure(model))
    assert state_of(model, cache).kind == "not fetched"
    setattr(builder, when, lambda: None)
    assert_whole(builder.ensure(model), cache)
    assert builder.fetched == (1 if when == "while_fetching" else 0), "a wheel that is there is used again"


@pytest.mark.parametrize("when", ["while_fetching", "while_making"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    builder: Builder, model: NamedModel, cache: Cache, when: str
) -> None:
    setattr(builder, when, fail)
    with pytest.raises(
        UserError, match=r"madeup cannot be made in .*: No space left on device; free some space or set"
    ):
        builder.ensure(model)
    assert state_of(model, cache).kind == "not fetched" and not cache.parts("madeup")
    setattr(builder, when, lambda: None)
    assert_whole(builder.ensure(model), cache)


def test_files_that_may_not_grow(builder: Builder, model: NamedModel, cache: Cache) -> None:
    """A quota, as the kernel has it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, hard))
    try:
        with pytest.raises(UserError, match="File too large"):
            builder.ensure(model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert state_of(model, cache).kind == "not fetched" and not cache.parts("madeup")


def test_too_little_room_is_refused_before_anything_is_fetched(builder: Builder, model: NamedModel) -> None:
    with pytest.raises(UserError, match=r"madeup needs .* while it is made, .* MB are free; .* set FATHOM_CACHE"):
        builder.ensure(replace(model, room_bytes=2**60))
    assert builder.fetched == 0


def test_a_folder_that_may_not_be_written(builder: Builder, model: NamedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    builder.cache = Cache(tmp_path / "file" / "cache")
    with pytest.raises(UserError, match=r"cannot keep models in .*; set FATHOM_CACHE to a folder"):
        builder.ensure(model)


def test_interrupted_by_hand(builder: Builder, model: NamedModel, cache: Cache) -> None:
    def ctrl_c() -> None:
        raise KeyboardInterrupt

    builder.while_making = ctrl_c
    with pytest.raises(KeyboardInterrupt):
        builder.ensure(model)
    assert not cache.parts("madeup") and state_of(model, cache).kind == "not fetched"


def test_two_at_once_build_once(
    builder: Builder, model: NamedModel, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go_on.wait(20)

    builder.while_making = slow
    found: list[Path] = []
    first = threading.Thread(target=lambda: found.append(builder.ensure(model)))
    second = threading.Thread(target=lambda: found.append(builder.ensure(model)))
    first.start()
    assert begun.wait(20)
    second.start()
    said, end = "", time.monotonic() + 20
    while "another process is at work on madeup; waiting" not in said and time.monotonic() < end:
        said += capsys.readouterr().err
        time.sleep(0.01)
    assert "waiting" in said
    go_on.set()
    first.join(20)
    second.join(20)
    assert builder.made == 1 and found[0] == found[1]
    assert_whole(found[0], cache)


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 10)


def flip(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"W" + CONTENT[1:])


def flip_unseen(folder: Path) -> None:
    """As a failing disk does: neither size nor time changes."""
    path = folder / "model.safetensors"
    times = path.stat()
    flip(folder)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "model.safetensors has 10 bytes, it had 700"),
    "other bytes": (flip, "model.safetensors has another content"),
    "a file is gone": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "no record": (lambda f: (f / "build.json").unlink(), "build.json cannot be read"),
    "a broken record": (lambda f: (f / "build.json").write_text('{"fingerprint": '), "build.json cannot be read"),
    "an odd record": (lambda f: (f / "build.json").write_text('{"fingerprint": 3}'), "build.json belongs to another"),
}


@pytest.mark.parametrize("case", list(DAMAGE))
def test_a_damaged_model_is_made_again_without_network(
    builder: Builder, model: NamedModel, cache: Cache, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    hurt, words = DAMAGE[case]
    folder = builder.ensure(model)
    hurt(folder)
    assert state_of(model, cache).kind == "damaged"
    assert_whole(builder.ensure(model), cache)
    assert (builder.fetched, builder.made) == (1, 2) and words in capsys.readouterr().err


def test_what_only_a_thorough_look_finds(builder: Builder, model: NamedModel, cache: Cache) -> None:
    flip_unseen(builder.ensure(model))
    builder.ensure(model)
    assert builder.made == 1
    assert_whole(builder.ensure(model, thorough=True), cache)


def test_a_copied_cache_is_as_good(builder: Builder, model: NamedModel) -> None:
    folder = builder.ensure(model)
    os.utime(folder / "model.safetensors", (1, 1))
    assert builder.ensure(model) == folder and builder.made == 1


def test_another_recipe_or_difference_file_is_another_folder(builder: Builder, model: NamedModel, cache: Cache) -> None:
    first = builder.ensure(model)
    assert fingerprint(replace(model, summary="in other words")) == fingerprint(model)
    assert model.wheel is not None
    others = [
        replace(model, name="other"),
        replace(model, wheel=replace(model.wheel, sha256="01")),
        replace(model, recipe=Recipe(Options(ffn="dense"), ("", ""))),
        replace(model, recipe=Recipe(Options(ffn="dense", to="fp8"), ("", ""))),
    ]
    assert len({fingerprint(model), *map(fingerprint, others)}) == 5
    (model.assets / "delta.safetensors").write_bytes(b"trained")
    second = builder.ensure(model)
    assert first != second and not first.exists(), "the older build makes room"
    assert_whole(second, cache)
    assert builder.fetched == 1


def test_state_and_removal(builder: Builder, model: NamedModel, cache: Cache) -> None:
    assert remove(model, cache) == 0 and not cache.root.exists()
    folder = builder.ensure(model)
    state = state_of(model, cache)
    on_disk = sum(path.stat().st_size for path in cache.root.rglob("*") if path.is_file())
    assert (state.kind, state.folder, state.nbytes) == ("cached", folder, on_disk)
    (cache.models / ".madeup-old.part").mkdir()
    assert remove(model, cache) == on_disk
    assert [path.name for path in cache.root.rglob("*") if path.is_file()] == [".madeup.lock"]
    assert state_of(model, cache).kind == "not fetched" and not cache.parts("madeup")
    bundled = replace(model, wheel=None)
    assert state_of(bundled, cache).kind == "bundled"
    with pytest.raises(UserError, match="part of Fathom"):
        remove(bundled, cache)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FATHOM_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert Cache.of_user().root == tmp_path / "x" / "fathom"
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert Cache.of_user().root == tmp_path / ".cache" / "fathom"
    monkeypatch.setenv("FATHOM_CACHE", "~/own")
    assert Cache.of_user().root == tmp_path / "own"
